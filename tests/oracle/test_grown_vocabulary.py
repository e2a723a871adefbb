"""Adapters with more tokens than their base: the exported file speaks as the model in training did.

The oracles are transformers' and peft's own logits, and llama.cpp's converter run on what they merge.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

import ggufy
from ggufy.errors import ExportError
from tests.oracle import vocabularies
from tests.oracle.converter import contents, convert
from tests.oracle.test_export_bytes import logits

pytestmark = pytest.mark.filterwarnings("ignore")

ADDED = ("<|mine|>", "<|yours|>")
FIRST = 49152
TOKENS = [*range(20, 50), FIRST, FIRST + 1, 7]
# Of no family of ggufy's, so that it goes the converter's way.
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def written(folder: Path, *, tied: bool) -> Path:
    """A random StarCoder2 with its real tokenizer, which the converter knows by its hash."""
    folder.mkdir()
    count = vocabularies.write_byte_level("starcoder", folder, chat_template=vocabularies.TEMPLATE)
    assert count == FIRST
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = Starcoder2Config(**SMALL, num_key_value_heads=2, vocab_size=count, tie_word_embeddings=tied, **ids)
    Starcoder2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def grown(base: Path) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(FIRST + len(ADDED))
    return model


def train(base: Path, out: Path, **settings: Any) -> np.ndarray:
    """An adapter with a tokenizer of its own, and what the model in training then says."""
    model = get_peft_model(grown(base), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        said = model.eval()(torch.tensor([TOKENS])).logits[0].numpy()
    model.save_pretrained(out, save_embedding_layers=True)
    with_tokens(base, out)
    return said


def with_tokens(base: Path, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(ADDED), special_tokens=True)
    tokenizer.save_pretrained(out)


@pytest.mark.parametrize(
    ("tied", "settings"), [(True, {}), (False, {"modules_to_save": ["embed_tokens", "lm_head"]})], ids=str
)
def test_the_converters_way(tied: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    base, adapter = written(tmp_path / "base", tied=tied), tmp_path / "adapter"
    expected = train(base, adapter, **settings)
    made = ggufy.export(adapter, base=str(base), out=tmp_path / "out", quants=["f16"], check_logits=False)
    spoken = logits(made["f16"].path, TOKENS)
    assert spoken.shape == expected.shape == (len(TOKENS), FIRST + 2)
    assert np.abs(spoken - expected).max() < 0.01 * np.abs(expected).max()
    fields = gguf.GGUFReader(made["f16"].path).fields
    assert tuple(fields["tokenizer.ggml.tokens"].contents()[FIRST:]) == ADDED
    if not tied:
        return
    theirs = tmp_path / "theirs"
    PeftModel.from_pretrained(grown(base), adapter).merge_and_unload().half().save_pretrained(theirs)
    for path in adapter.glob("*token*"):
        shutil.copyfile(path, theirs / path.name)
    for path in adapter.glob("*.jinja"):
        shutil.copyfile(path, theirs / path.name)
    convert(theirs, tmp_path / "theirs.gguf", tiny=False)
    ours, right = contents(made["f16"].path), contents(tmp_path / "theirs.gguf")
    assert ours.keys == right.keys
    assert {n: t[:2] for n, t in ours.tensors.items()} == {n: t[:2] for n, t in right.tensors.items()}


def test_one_whose_embedding_has_another_name(tmp_path: Path) -> None:
    """Refused before anything is written, with what helps."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    count = vocabularies.write_byte_level("gpt-2", base, chat_template=vocabularies.TEMPLATE)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=count, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(count + 2)
    get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["wte"])).save_pretrained(adapter)
    with_tokens(base, adapter)
    said = rf"it brings transformer\.wte\.weight with {count + 2:,} rows, and the base has {count:,}"
    with pytest.raises(ExportError, match=said) as caught:
        ggufy.export(adapter, base=str(base), out=tmp_path / "out", quants=["f16"])
    assert "resize_token_embeddings" in str(caught.value.hint)
    assert not list((tmp_path / "out").rglob("*.gguf"))
