"""The real Llama 3 vocabulary and the head shapes of 1B and 3B, against the converter exactly as it comes."""

from __future__ import annotations

import copy
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from ggufy.export.imatrix import Imatrix
from ggufy.llamacpp import library
from ggufy.model import random_llama
from ggufy.model.llama3 import Shape
from ggufy.verify.checks import verify
from ggufy.verify.expected import Expected
from tests.oracle.converter import VENDOR, contents, convert, export
from tests.oracle.test_export_bytes import ADAPTERS, assert_same_file, make_adapter

VOCABULARY = VENDOR / "models" / "ggml-vocab-llama-bpe.gguf"
# transformers wants a width that the heads divide.
HEADS = {"1b": (32, 64, 256), "3b": (24, 128, 768)}
SHAPES = {
    f"{name} heads, {'tied' if tied else 'untied'}": Shape(
        layers=2, hidden=hidden, heads=heads, kv_heads=8, head_dim=size, ffn=512, tied=tied
    )
    for (name, (heads, size, hidden)), tied in zip(HEADS.items(), (True, False), strict=True)
}
QUANTS = ("q8_0", "q4_k_m", "q5_k_m", "q6_k", "q3_k_m", "q4_0", "q2_k", "iq4_xs")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    random_llama.write_tokenizer(folder, VOCABULARY)
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


def some_matrix(model: Path) -> Imatrix:
    """Importance for every matrix of the blocks, as uneven as real ones."""
    rng, held = np.random.default_rng(5), contents(model).tensors
    names = [name for name, (_, shape, _) in held.items() if name.startswith("blk.") and len(shape) == 2]
    means = {name: rng.lognormal(0, 2, held[name][1][0]).astype(np.float32) for name in names}
    return Imatrix(means, 1, "some texts", "imatrix.gguf")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_converter_and_the_quantizer_make_the_same_files(shape: str, vocabulary: Path, tmp_path: Path) -> None:
    """With an adapter: from ggufy's own merged checkpoint every tensor and key of the F16 file, and then every byte.

    Each shape has two of the quants without an importance matrix, and two others with one: all of them in two shapes.
    """
    model, theirs, adapter = tmp_path / "model", tmp_path / "theirs.gguf", tmp_path / "adapter"
    shutil.copytree(vocabulary, model)
    random_llama.write_model(model, SHAPES[shape])
    # peft writes the base's name into it.
    make_adapter(model, copy.deepcopy(ADAPTERS["lora"]), adapter)
    # The slowest quants to the smallest shape.
    first = 2 * (len(SHAPES) - 1 - list(SHAPES).index(shape))
    plain, weighed = (QUANTS[at : at + 2] for at in (first, first + 4))
    ours = {quant: tmp_path / f"{quant}.gguf" for quant in ("f16", *plain, *weighed)}
    direct = {"f16": ours["f16"], "merged": tmp_path / "merged", **{quant: ours[quant] for quant in plain}}
    export(model, adapter, direct, {"name": "full"})
    convert(tmp_path / "merged", theirs, tiny=False)
    assert_same_file(ours["f16"], theirs)
    for quant in plain:
        library.quantize_file(ours["f16"], theirs, library.ftypes()[quant])
        assert ours[quant].read_bytes() == theirs.read_bytes(), quant
    matrix = some_matrix(ours["f16"])
    export(model, adapter, {quant: ours[quant] for quant in weighed}, {"name": "full"}, imatrix=matrix)
    for quant in weighed:
        kind = library.ftypes()[quant]
        library.quantize_file(ours["f16"], theirs, kind, overrides=matrix.notes, imatrix=matrix.for_llama_cpp())
        assert ours[quant].read_bytes() == theirs.read_bytes(), quant
    assert verify(ours[plain[0]], model, 2, expected=Expected.of(model, adapter)).rows > 60
