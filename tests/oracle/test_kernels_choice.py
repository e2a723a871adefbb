"""Which kernels an export uses: ggufy's where they make the bytes of llama.cpp's, else those, and it says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from ggufy.data import source
from ggufy.errors import ExportError
from ggufy.export.kernels import native
from ggufy.model import tiny
from tests.oracle.converter import export

QUANTS = ("q4_k_m", "q2_k", "q3_k_m", "q6_k", "q8_0", "q4_0", "q5_0", "iq4_nl", "iq4_xs", "iq3_s")


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def files(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    return {quant: folder / f"{quant}.gguf" for quant in QUANTS}


def contents(made: dict[str, Path]) -> dict[str, bytes]:
    return {quant: path.read_bytes() for quant, path in made.items()}


def test_the_installation_compiled_them() -> None:
    assert native.variants(), "no kernels beside the package: was there no C compiler when it was installed?"


def test_the_same_bytes_whoever_quantizes(base: Path, tmp_path: Path) -> None:
    made = {kernels: files(tmp_path / kernels) for kernels in ("auto", "native", "llama.cpp")}
    for kernels, outputs in made.items():
        export(base, None, outputs, {"name": "tiny"}, kernels=kernels)
    assert contents(made["auto"]) == contents(made["llama.cpp"])
    assert contents(made["native"]) == contents(made["llama.cpp"])


def test_a_kernel_that_differs_is_found_and_not_used(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = files(tmp_path / "expected")
    export(base, None, expected, {"name": "tiny"}, kernels="llama.cpp")
    right = native.quantize

    def wrong(number: int, rows: Any, out: Any, importance: Any = None, variant: str = "") -> bool:
        done = right(number, rows, out, importance, variant)
        out[len(out) // 2] ^= done
        return done

    monkeypatch.setattr(native, "quantize", wrong)
    made = files(tmp_path / "made")
    with caplog.at_level(logging.WARNING, "ggufy"):
        export(base, None, made, {"name": "tiny"})
    assert contents(made) == contents(expected)
    assert "kernel differs from llama.cpp's on" in caplog.text
    assert "so the q4_k_m file is made with llama.cpp's" in caplog.text


def test_without_a_compiled_library(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.PLACE, str(tmp_path))
    made = files(tmp_path / "made")
    export(base, None, made, {"name": "tiny"})
    assert all(path.stat().st_size for path in made.values())
    for outputs in (made, {"f16": tmp_path / "f16.gguf"}, {"merged": tmp_path / "merged"}):
        with pytest.raises(ExportError, match="installed without its own kernels"):
            export(base, None, outputs, {"name": "tiny"}, kernels="native")
    # Of any architecture: it is not read before that is known.
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"architectures": ["OlmoForCausalLM"]}')
    with pytest.raises(ExportError, match="installed without its own kernels"):
        export(other, None, {"merged": tmp_path / "merged"}, kernels="native")


def test_types_without_a_kernel_are_named(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quants = {"q4_1": tmp_path / "q4_1.gguf", "f16": tmp_path / "f16.gguf"}
    with caplog.at_level(logging.INFO, "ggufy"):
        export(base, None, quants)
        assert not caplog.messages
        export(base, None, quants, kernels="native")
    assert caplog.messages == ["llama.cpp's kernels quantize q4_1, for which ggufy has none of its own"]
