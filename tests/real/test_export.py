"""A real model's files, byte for byte those of llama.cpp's converter and quantizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ggufy.export import imatrix
from ggufy.llamacpp import library
from tests.oracle.converter import convert, export
from tests.oracle.test_export_bytes import assert_same_file

# What the importance matrix is computed from.
TEXT = """The ferry leaves the island at six, and nobody waits for those who are late. A recipe for bread: flour, water,
salt and patience. In 1987 the bridge was closed; it cost 3,412 crowns to mend it, twice what the town had put aside.
def area(width: float, height: float) -> float: return width * height. What the river brings, the river takes again."""


@pytest.fixture(scope="module")
def f16(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "f16.gguf"
    export(
        checkpoint, None, {"f16": path, "q8_0": path.with_name("q8_0.gguf"), "q4_k_m": path.with_name("q4_k_m.gguf")}
    )
    return path


def test_the_f16_file_is_the_converters(f16: Path, checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "theirs.gguf", tiny=False)
    assert_same_file(f16, tmp_path / "theirs.gguf")


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m"])
def test_quantized_files_are_the_quantizers(quant: str, f16: Path, tmp_path: Path) -> None:
    library.quantize_file(f16, tmp_path / "theirs.gguf", library.ftypes()[quant])
    assert f16.with_name(f"{quant}.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_with_an_importance_matrix_too(f16: Path, checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file((checkpoint / "tokenizer.json").as_posix())
    texts = [tokenizer.encode(line).ids for line in TEXT.splitlines()]
    imatrix.compute(f16, texts, "some texts", tmp_path / "matrix.gguf", 1)
    matrix = imatrix.read(tmp_path / "matrix.gguf")
    export(checkpoint, None, {"iq4_xs": tmp_path / "ours.gguf"}, imatrix=matrix)
    kind = library.ftypes()["iq4_xs"]
    library.quantize_file(f16, tmp_path / "theirs.gguf", kind, overrides=matrix.notes, imatrix=matrix.for_llama_cpp())
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
