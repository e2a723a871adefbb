"""The training model with its matrices on the disk is the training model in memory."""

from __future__ import annotations

import gc
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ggufy.verify import disk_tensor, reference

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention"] * 2},
    "phi3": {"sliding_window": None},
    "smollm3": {},
    "granite": {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "attention_bias": True},
    "mixtral": {"num_local_experts": 4},
    # Its expert for all tokens gets them in one row.
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
}
ATTENTION = ["q_proj", "v_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"v_proj": 2}},
    "dora": {"use_dora": True},
    "dora everywhere": {"use_dora": True, "target_modules": [*ATTENTION, "down_proj", "lm_head"]},
    "embeddings": {"target_modules": [*ATTENTION, "embed_tokens", "lm_head"]},
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norms": {"modules_to_save": ["input_layernorm"]},
    "tokens": {"trainable_token_indices": [3, 4, 98]},
    "parameters": {"target_modules": [], "target_parameters": ["q_proj.weight", "down_proj.weight"]},
    "pissa": {"init_lora_weights": "pissa"},
    "bias": {"bias": "lora_only"},
}
RNG = np.random.default_rng(3)
TEXTS = [RNG.integers(0, 99, length).tolist() for length in (20, 7, 13)]


def model(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16, **other: Any) -> Path:
    config = AutoConfig.for_model(family, **{**SIZES, "tie_word_embeddings": False, **FAMILIES[family], **other})
    torch.manual_seed(7)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weights in made.named_parameters():
        # So that no norm and no bias is the one it would have by itself.
        torch.nn.init.normal_(weights, float("norm" in name), 0.2)
    made.to(dtype).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, **settings: Any) -> Path:
    torch.manual_seed(8)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ATTENTION, **settings})
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for weights in made.parameters():
        if weights.requires_grad:
            weights.data += 0.1 * torch.randn_like(weights)
    made.save_pretrained(folder)
    return folder


def in_memory(base: Path, adapter: Path | None) -> tuple[list[Any], list[Any] | None]:
    """What transformers and peft say by themselves, text by text."""
    # As the reference: PyTorch's fused attention leaves out the caps of Gemma 2.
    eager = "gemma2" in (base / "config.json").read_text("utf-8")
    attention = "eager" if eager else None
    found: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=attention)
    found = PeftModel.from_pretrained(found, adapter) if adapter else found
    found.eval()
    with torch.inference_mode():
        logits = [found(torch.tensor([text])).logits[0].numpy() for text in TEXTS]
        if adapter is None:
            return logits, None
        with found.disable_adapter():
            return logits, [found(torch.tensor([text])).logits[0].numpy() for text in TEXTS]


def compare(base: Path, adapter: Path | None) -> None:
    with warnings.catch_warnings():
        # Of peft, about a tied matrix that an adapter changes.
        warnings.simplefilter("ignore", UserWarning)
        ours = reference.run(base, adapter, TEXTS)
        theirs, untrained = in_memory(base, adapter)
    for found, expected in zip(ours.logits, theirs, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    if untrained is None:
        assert ours.untrained is None
        return
    assert ours.untrained is not None
    for found, expected, trained in zip(ours.untrained, untrained, theirs, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        assert np.abs(expected - trained).max() > 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    base = model(tmp_path / "base", family)
    modules = {"phi3": ["qkv_proj", "down_proj"], "qwen2_moe": "all-linear"}.get(family, ["q_proj", "o_proj"])
    compare(base, adapter(base, tmp_path / "adapter", target_modules=modules))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_kinds_of_adapters(kind: str, tied: bool, tmp_path: Path) -> None:
    base = model(tmp_path / "base", "llama", tie_word_embeddings=tied, attention_bias=kind == "bias")
    compare(base, adapter(base, tmp_path / "adapter", **ADAPTERS[kind]))


def test_code_that_a_family_does_not_need(tmp_path: Path) -> None:
    """Phi-3's folders bring some, from before transformers had its own; that of the folder never runs."""
    base = model(tmp_path / "base", "phi3")
    expected, _ = in_memory(base, None)
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoConfig": "own.Phi3Config", "AutoModelForCausalLM": "own.Phi3ForCausalLM"}
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    (base / "own.py").write_text("raise SystemExit('it ran')", "utf-8")
    assert reference.missing(base, None) is None
    np.testing.assert_allclose(reference.run(base, None, TEXTS).logits[0], expected[0], atol=1e-5)
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["OwnForCausalLM"]}), "utf-8")
    assert reference.missing(base, None) == "the model has code of its own"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_checkpoint_in_shards_of_another_type(dtype: torch.dtype, tmp_path: Path) -> None:
    base = model(tmp_path / "base", "llama", dtype)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    compare(tmp_path / "shards", None)


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_matrix_that_is_there_twice(same: bool, tmp_path: Path) -> None:
    """transformers ties the two only where they are equal."""
    base = model(tmp_path / "base", "llama", tie_word_embeddings=True)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["lm_head.weight"][98, 31] += 0 if same else 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    compare(base, None)


@pytest.mark.parametrize("kind", ["embeddings", "whole", "tokens", "dora everywhere"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_more_than_a_slab_is_in_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read of the matrices: how much at a time, and what else lives then."""
    sizes = {"vocab_size": 8_000, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    base = model(tmp_path / "base", "llama", **sizes)
    made = adapter(base, tmp_path / "adapter", **ADAPTERS[kind])
    read, alive = [], []
    stored = disk_tensor.Stored.read

    def watched(self: disk_tensor.Stored, start: int, out: torch.Tensor) -> None:
        stored(self, start, out)
        # One of the matrices, and not what an adapter has for it.
        if self.shape == (sizes["vocab_size"], sizes["hidden_size"]):
            read.append(out.numel())
            if len(out) > 1 and start % 3200 == 0:
                alive.append(in_tensors())

    monkeypatch.setattr(disk_tensor, "SLAB", 4096)
    monkeypatch.setattr(disk_tensor.Stored, "read", watched)
    before = in_tensors()
    found = reference.run(base, made, TEXTS)
    assert max(read) <= 4096
    # With and without the adapter in one pass where it is LoRA alone, else in two.
    once = sizes["vocab_size"] * sizes["hidden_size"]
    assert once <= sum(read) < 2 * once if kind == "embeddings" else sum(read) >= 2 * once
    logits = 2 * 4 * sizes["vocab_size"] * len(TEXTS) * max(map(len, TEXTS))
    assert found.untrained is not None
    held = {id(one.base): one.base.nbytes for one in (*found.logits, *found.untrained)}
    assert sum(held.values()) == logits
    # Either of the large matrices alone is two megabytes.
    assert before < max(alive) < before + logits + 1_000_000


def in_tensors() -> int:
    """Bytes of all tensors that there are, each storage once."""
    # By their type: to ask some other objects for their class warns.
    live = (one for one in gc.get_objects() if issubclass(type(one), torch.Tensor))
    storages = [one.untyped_storage() for one in live if type(one) is not disk_tensor.DiskTensor and not one.is_meta]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
