"""A real Gemma 3 with its vocabulary of 262,144 tokens: the converter's bytes, transformers' logits, and an answer."""

from __future__ import annotations

import ctypes
import filecmp
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ggufy
from ggufy.export import vocab
from ggufy.llamacpp import library
from tests.oracle.converter import convert, export
from tests.real import gemma3

LAST = 24
"""Positions that are compared, at the end of a text that is longer than the window of 512 tokens."""
QUANTS = ("q8_0", "q4_k_m")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gemma3.need()
    folder = tmp_path_factory.mktemp("gemma3")
    gemma3.write(folder)
    return folder


@pytest.fixture(scope="module")
def made(base: Path) -> Path:
    """The folder with f16.gguf and the quants."""
    folder = base / "made"
    folder.mkdir()
    export(base, None, {quant: folder / f"{quant}.gguf" for quant in ("f16", *QUANTS)}, {"name": "gemma"})
    return folder


def loaded(path: Path) -> list[tuple[bytes, float, int]]:
    """Text, score and attributes of every token, as llama.cpp has loaded them."""
    wanted = llama_cpp.llama_model_default_params()
    wanted.vocab_only = True
    with library.quiet():
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), wanted)
    held = llama_cpp.llama_model_get_vocab(model)
    tokens = [
        (
            llama_cpp.llama_vocab_get_text(held, token),
            llama_cpp.llama_vocab_get_score(held, token),
            llama_cpp.llama_vocab_get_attr(held, token),
        )
        for token in map(ctypes.c_int32, range(llama_cpp.llama_vocab_n_tokens(held)))
    ]
    llama_cpp.llama_model_free(model)
    return tokens


def test_the_vocabulary_is_that_of_the_published_file(base: Path, made: Path) -> None:
    ours = loaded(made / "q8_0.gguf")
    assert len(ours) == 262144
    assert ours == loaded(base / "package.gguf")


def test_texts_are_read_alike(base: Path) -> None:
    """What an export proves for every base, and that it is not vacuous."""
    vocab.check(base, 262144, rules=vocab.Rules.GEMMA)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.tokenize("Two  spaces\n\nand 1") == ["Two", "\u2581\u2581", "spaces", "\n\n", "and", "\u2581", "1"]


def test_the_f16_file_is_the_converters(base: Path, made: Path, tmp_path: Path) -> None:
    convert(base, tmp_path / "theirs.gguf", "f16", "--model-name", "gemma", tiny=False)
    assert filecmp.cmp(made / "f16.gguf", tmp_path / "theirs.gguf", shallow=False)


@pytest.mark.parametrize("quant", QUANTS)
def test_quantized_files_are_the_quantizers(quant: str, made: Path, tmp_path: Path) -> None:
    library.quantize_file(made / "f16.gguf", tmp_path / "theirs.gguf", library.ftypes()[quant])
    assert filecmp.cmp(made / f"{quant}.gguf", tmp_path / "theirs.gguf", shallow=False)


def logits(path: Path, ids: list[int]) -> Iterator[np.ndarray]:
    """What follows each of the last tokens."""
    model = llama_cpp.Llama(str(path), n_ctx=len(ids), n_batch=len(ids), n_ubatch=len(ids), verbose=False)
    model.eval(ids[:-LAST])
    for token in ids[-LAST:]:
        model.eval([token])
        found = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        yield np.ctypeslib.as_array(found, (model.n_vocab(),)).copy()
    model.close()


def test_llama_cpp_foretells_what_transformers_does(base: Path, made: Path) -> None:
    text = (gemma3.__doc__ or "") + Path(__file__).read_text("utf-8")
    ids = AutoTokenizer.from_pretrained(base)(text)["input_ids"][: 512 + 4 * LAST]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = model(torch.tensor([ids]), logits_to_keep=LAST).logits[0].numpy()
    assert len(ids) == 512 + 4 * LAST
    # Of numbers that are up to 30: float16 weights, float16 keys and values; then 8 bits.
    for quant, apart in (("f16", 0.1), ("q8_0", 0.5)):
        ours = np.stack(list(logits(made / f"{quant}.gguf", ids)))
        assert np.abs(ours - theirs).mean() < apart, quant
        assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.9, quant


def test_chat(made: Path) -> None:
    answer = str(ggufy.chat(made / "q4_k_m.gguf").ask("What is the capital of France?", temperature=0, max_tokens=8))
    assert answer.split()[0] == "Paris"
