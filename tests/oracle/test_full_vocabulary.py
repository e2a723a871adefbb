"""The real Llama 3 vocabulary and the head shapes of 1B and 3B, against the converter exactly as it comes."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ggufy import ggml
from ggufy.base import shaped
from ggufy.export.verify import verify
from ggufy.llama3 import Shape
from tests.oracle.converter import VENDOR, convert, export
from tests.oracle.test_export_bytes import assert_same_file

VOCABULARY = VENDOR / "models" / "ggml-vocab-llama-bpe.gguf"
SHAPES = {
    "1b heads, tied": Shape(layers=2, hidden=256, heads=32, kv_heads=8, head_dim=64, ffn=512),
    "3b heads, untied": Shape(layers=2, hidden=768, heads=24, kv_heads=8, head_dim=128, ffn=768, tied=False),
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    shaped.write_tokenizer(folder, VOCABULARY)
    return folder


def test_the_tokenizer_is_the_one_llama_cpp_knows_by_its_hash(vocabulary: Path) -> None:
    source = (VENDOR / "conversion" / "base.py").read_text(encoding="utf-8")
    probe = re.search(r"chktxt = '(.*)'\n", source)
    assert probe is not None
    text = (
        probe[1]
        .encode("raw_unicode_escape")
        .decode("unicode_escape")
        .encode("utf-16", "surrogatepass")
        .decode("utf-16")
    )
    ids = Tokenizer.from_file(str(vocabulary / "tokenizer.json")).encode(text).ids
    known = hashlib.sha256(str(ids).encode()).hexdigest()
    assert f'chkhsh == "{known}"' in source
    after = source.partition(known)[2]
    assert re.search(r'res = "([^"]+)"', after)[1] == "llama-bpe"  # type: ignore[index]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_converter_makes_the_same_file(shape: str, vocabulary: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(vocabulary, model)
    shaped.write_model(model, SHAPES[shape])
    ours = {quant: tmp_path / f"{quant}.gguf" for quant in ("f16", "q8_0", "q4_k_m")}
    export(model, None, ours, {"name": "full"})
    convert(model, tmp_path / "theirs.gguf", tiny=False)
    assert_same_file(ours["f16"], tmp_path / "theirs.gguf")
    for quant in ("q8_0", "q4_k_m"):
        ggml.quantize_file(ours["f16"], tmp_path / "theirs.gguf", ggml.ftypes()[quant])
        assert ours[quant].read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert verify(ours["q4_k_m"], model, 2).probes >= 15
