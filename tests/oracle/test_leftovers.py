"""What trainers leave in a model folder beside the model: as transformers takes it, or refused before the pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

import ggufy
from ggufy.data import source
from ggufy.errors import ExportError, GgufyError, ModelError
from ggufy.model import tiny
from tests.oracle.converter import contents, convert, export
from tests.oracle.test_export_bytes import logits
from tests.oracle.test_weights_kinds import TOKENS, assert_is, keys, load, said, shards, weights

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tiny.ensure(source.sample_texts())
    return Path(shutil.copytree(folder, tmp_path / "base", ignore=shutil.ignore_patterns("stamp.json")))


@pytest.mark.parametrize("name", ["v_head.summary.weight", "value_head.weight", "score.weight"])
def test_the_head_of_another_task(name: str, base: Path) -> None:
    weights(base, lambda held: {**held, name: torch.ones(1, 256)})
    assert_is(base, said(load(base)))


BIASES = (
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.3.mlp.down_proj.bias",
    "model.norm.bias",
    "lm_head.bias",
)


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_that_the_config_has_not(name: str, base: Path) -> None:
    """transformers leaves it out, and llama.cpp would compute with it, or not load the file."""
    weights(base, lambda held: {**held, name: torch.ones(768 if "lm_head" in name else 256)})
    with pytest.raises(ExportError, match=f"{name} is in the weights, and config.json has none"):
        export(base, None, {"f16": base.parent / "no.gguf"})
    assert not (base.parent / "no.gguf").exists()


HELD: dict[str, Callable[[str], str]] = {
    "peft": lambda name: f"base_model.model.{name}",
    "trl": lambda name: f"pretrained_model.{name}",
    "peft in trl": lambda name: f"pretrained_model.base_model.model.{name}",
    "compiled and distributed": lambda name: f"module._orig_mod.base_model.model.{name}",
}


@pytest.mark.parametrize("kind", HELD)
def test_names_of_what_held_the_model(kind: str, base: Path) -> None:
    expected = said(load(base))
    weights(base, lambda held: {HELD[kind](name): tensor for name, tensor in held.items()})
    assert_is(base, expected)


def test_an_adapter_that_is_not_merged(base: Path) -> None:
    model = get_peft_model(load(base), LoraConfig(r=2, target_modules=["q_proj"]))
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(held, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="is a part of an adapter, which is not merged") as caught:
        export(base, None, {"f16": base.parent / "no.gguf"})
    assert "merge_and_unload" in str(caught.value.hint)


def test_names_of_another_class(base: Path) -> None:
    weights(base, lambda held: {f"language_model.{name}": tensor for name, tensor in held.items()})
    with pytest.raises(ModelError, match=r"names of another class: language_model.model.embed_tokens.weight"):
        export(base, None, {"f16": base.parent / "no.gguf"})


def test_frequencies_of_a_model_without_its_prefix(base: Path) -> None:
    bare = {"rotary_emb.inv_freq": torch.ones(16), "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    weights(base, lambda held: {name.removeprefix("model."): tensor for name, tensor in held.items()} | bare)
    assert_is(base, said(load(base)))


def test_weights_in_double_precision(base: Path) -> None:
    weights(base, lambda held: {name: tensor.double() for name, tensor in held.items()})
    expected = said(load(base))
    assert_is(base, expected)
    export(base, None, {"f16": base.parent / "ours.gguf"})
    convert(base, base.parent / "theirs.gguf")
    assert contents(base.parent / "ours.gguf").tensors == contents(base.parent / "theirs.gguf").tensors


@pytest.mark.parametrize("name", ["UnslothLlamaForCausalLM", "DDPLlamaForCausalLM", "FSDPLlamaModel"])
def test_a_class_with_a_trainers_name_before_it(name: str, base: Path) -> None:
    keys(base, architectures=[name])
    assert_is(base, said(load(base)))


def test_a_class_that_nobody_knows(base: Path) -> None:
    keys(base, architectures=["MyModel"])
    with pytest.raises(ExportError, match="does not know the architecture MyModel") as caught:
        export(base, None, {"f16": base.parent / "no.gguf"})
    assert "if it is a LlamaForCausalLM" in str(caught.value.hint)
    keys(base, architectures=["LlamaForCausalLM"])
    assert_is(base, said(load(base)))


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_a_quantization_config_of_weights_in_16_bits(method: str, base: Path) -> None:
    keys(base, quantization_config={"quant_method": method, "bits": 4, "load_in_8bit": True})
    with pytest.raises(GgufyError, match="the weights are not quantized") as caught:
        ggufy.export(base, out=base.parent / "out", quants=["f16"])
    assert "remove quantization_config" in str(caught.value.hint)
    keys(base, quantization_config=None)
    assert ggufy.export(base, out=base.parent / "out", quants=["f16"])


def test_an_index_without_its_metadata(base: Path) -> None:
    """transformers does not load it, so that there is nothing to compare with; the converter does."""
    expected = said(load(base))
    shards(base, "model-1.safetensors", "model-2.safetensors")
    path = base / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": json.loads(path.read_text("utf-8"))["weight_map"]}))
    made = ggufy.export(base, out=base.parent / "out", quants=["f16"])
    found = logits(made["f16"].path, TOKENS)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
