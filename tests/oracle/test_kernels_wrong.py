"""Kernels that are wrong on purpose: an export says so, and its bytes are llama.cpp's all the same."""

from __future__ import annotations

import logging
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ggufy.data import source
from ggufy.export import families
from ggufy.export.imatrix import Imatrix
from ggufy.export.kernels import build, native
from ggufy.model import tiny
from ggufy.model.safetensors import Checkpoint
from tests.oracle.converter import export

pytestmark = pytest.mark.skipif(not build.compiler(), reason="no C compiler")


@dataclass(frozen=True)
class Fault:
    quants: tuple[str, ...]
    said: str = ""
    """What the export says; nothing where nothing is wrong."""
    file: str = "kernels.c"
    right: str = ""
    wrong: str = ""
    flags: tuple[str, ...] = ()
    weighted: bool = False


KERNEL, MERGE = "kernel differs from llama.cpp's on", "compiled merge differs from numpy's on"
FAULTS = {
    "nothing": Fault(("q4_k_m", "q8_0"), weighted=True),
    "words of lanes from the fourth": Fault(
        ("q4_k_m", "q6_k"), KERNEL, right="offset, &words[i], 4)", wrong="offset, &words[i < 3 ? i : 0], 4)"
    ),
    "one row's mean square for all": Fault(
        ("q4_0",), KERNEL, right="b.sigma2 = sum / (float)columns", wrong="b.sigma2 = splat(sum[0] / (float)columns)",
        weighted=True,
    ),
    "importance from the second row": Fault(
        ("q4_k_m",), KERNEL, right="importance + block % in_row * width",
        wrong="importance + (block < in_row ? block : 0) * width", weighted=True,
    ),
    "permutation": Fault(
        ("q4_k_m", "q8_0"), MERGE, "merge.c", "in % half * 2 + in / half", "in % half * 2 + 1 - in / half"
    ),
    "permutation of the second head": Fault(
        ("q8_0",), MERGE, "merge.c", "to = row - in + in % half", "to = row < m->head ? row - in + in % half"
        " * 2 + in / half : row; in % half"
    ),
    "half below a half": Fault(("q8_0",), KERNEL, "q8_0.h", "0x1.fffffep-2f", "0x1p-1f"),
    "fused multiply-add": Fault(
        ("q4_0", "q5_0"), f"{KERNEL} trial blocks", flags=("-O2", "-mfma", "-ffp-contract=fast")
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_kernel_is_found_and_not_used(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fault = FAULTS[name]
    if fault.flags and "avx2" not in native.variants():
        pytest.skip("this processor has no fused multiply-add that can be asked for")
    monkeypatch.setenv(native.PLACE, str(compiled(fault, tmp_path)))
    assert len(native.variants()) == 1
    made = {}
    with caplog.at_level(logging.WARNING, "ggufy"):
        for kernels in ("llama.cpp", "auto"):
            made[kernels] = {quant: tmp_path / kernels / f"{quant}.gguf" for quant in fault.quants}
            (tmp_path / kernels).mkdir()
            export(base, None, made[kernels], imatrix=importance(base) if fault.weighted else None, kernels=kernels)
    for quant in fault.quants:
        assert made["auto"][quant].read_bytes() == made["llama.cpp"][quant].read_bytes(), quant
    assert fault.said in caplog.text
    assert bool(fault.said) == bool(caplog.text)
    if KERNEL in fault.said:
        assert all(f"so the {quant} file is made with llama.cpp's" in caplog.text for quant in fault.quants)


def compiled(fault: Fault, folder: Path) -> Path:
    """A library of one variant, from source with the fault in it, which says that it is the right source."""
    variant = "avx2" if fault.flags else native.variants()[0]
    flags = build.variants()[variant]
    sources = folder / "source"
    sources.mkdir()
    for path in build.FOLDER.glob("*.[ch]"):
        text = path.read_text("utf-8")
        if path.name == fault.file and fault.right:
            assert fault.right in text
            text = text.replace(fault.right, fault.wrong)
        only = f'ggufy_kernels_supported(void) {{ return "{variant}"; }}'
        text = re.sub(r"ggufy_kernels_supported\(void\) \{.*?\n\}", only, text, flags=re.DOTALL)
        (sources / path.name).write_text(text, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SOURCES", tuple(sources / path.name for path in build.SOURCES))
        patch.setattr(build, "variants", lambda: {variant: flags})
        return build.build(folder / "built", extra=["-O1", *fault.flags]).parent


def importance(base: Path) -> Imatrix:
    rng = np.random.default_rng(0)
    planned = families.read(base).plan(Checkpoint.open(base))
    matrices = [tensor for tensor in planned if tensor.name.startswith("blk.") and len(tensor.shape) == 2]
    means = {t.name: rng.random(t.shape[1], np.float32) ** 2 + np.float32(1e-3) for t in matrices}
    return Imatrix(means, 1, "", "made for a test")


def test_what_does_not_compile_leaves_no_library(tmp_path: Path) -> None:
    stale = tmp_path / build.name()
    stale.write_bytes(b"of another version")
    with pytest.raises(subprocess.CalledProcessError):
        build.build(tmp_path, compiler="false")
    assert not stale.exists()


def test_a_library_of_other_source_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = (build.FOLDER / build.name()).read_bytes()
    assert build.fingerprint().encode() in installed
    (tmp_path / build.name()).write_bytes(installed.replace(build.fingerprint().encode(), b"0" * 16))
    monkeypatch.setenv(native.PLACE, str(tmp_path))
    assert native.variants() == ()
    assert native.refused()


@pytest.mark.parametrize("said", ["environment", "Python"])
def test_a_compiler_that_cannot_be_started(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user names is taken as said; what Python was made with may be elsewhere, and then it is cc."""
    monkeypatch.delenv("CC", raising=False)
    if said == "Python":
        monkeypatch.setattr(build.sysconfig, "get_config_var", lambda _: "no-such-compiler -pthread")
        assert build._command("") == ["cc"]
        return
    monkeypatch.setenv("CC", 'gcc "x')
    with pytest.raises(OSError, match='gcc "x, which cannot be read: No closing quotation'):
        build._command("")
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    assert build._command("") == ["no-such-compiler", "-O1"]
