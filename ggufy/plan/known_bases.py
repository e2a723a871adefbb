"""config.json of bases that are planned by their name on the Hub, without a download.

Of each what a plan and an export need, as published; what it does not say is the default of its type.
"""

from __future__ import annotations

from typing import Any

from ggufy.model import random_llama
from ggufy.model.llama3 import Shape

_LLAMA_8B = Shape(32, 4096, 32, 8, 128, 14336, tied=False)
_LLAMA = ("meta-llama", "unsloth")
_CHAT = ("", "-Instruct")


def config(name: str) -> dict[str, Any] | None:
    """The config.json of a base by its name on the Hub; None where it is not known here."""
    return _known().get(name)


def note(name: str) -> str:
    """What a plan has to say of a known base beside its numbers."""
    if "gemma-3-4b" not in name or config(name) is None:
        return ""
    return "of the text model; the part that reads images, 0.42 billion parameters more, is not counted"


def vocabulary_bytes(vocab: int) -> int | None:
    """What a tokenizer takes of a GGUF's header, by its number of tokens; None where it is not known."""
    return _VOCABULARIES.get(vocab)


# Of files made with the whole vocabulary, and up to 4 kB for the template that the model brings: Llama 3, SmolLM2,
# Qwen 2 to 3, Gemma 3 (with and without the tokens for images).
_VOCABULARIES = {128256: 7_832_000, 49152: 1_770_000, 151936: 5_932_000, 262144: 6_512_000, 262208: 6_513_500}


def _known() -> dict[str, dict[str, Any]]:
    sizes = {"1B": random_llama.SHAPES["1b"], "3B": random_llama.SHAPES["3b"]}
    found = {
        f"{owner}/Llama-3.2-{size}{kind}": random_llama.config(shape)
        for owner in _LLAMA
        for size, shape in sizes.items()
        for kind in _CHAT
    }
    found |= {
        f"{owner}/{meta}Llama-3.1-8B{kind}": _llama31() for owner in _LLAMA for meta in ("", "Meta-") for kind in _CHAT
    }
    for size, made in {"135M": _smollm2(30, 576, 9, 3, 1536), "360M": _smollm2(32, 960, 15, 5, 2560)}.items():
        found |= {f"{owner}/SmolLM2-{size}{kind}": made for owner in ("HuggingFaceTB", "unsloth") for kind in _CHAT}
    for owner in ("Qwen", "unsloth"):
        found[f"{owner}/Qwen3-4B"] = _qwen3(40960, 1_000_000)
        found |= {f"{owner}/Qwen3-4B-{kind}-2507": _qwen3(262144, 5_000_000) for kind in ("Instruct", "Thinking")}
    found |= {f"{owner}/gemma-3-4b-{kind}": _gemma3() for owner in ("google", "unsloth") for kind in ("it", "pt")}
    return found


def _llama31() -> dict[str, Any]:
    made = random_llama.config(_LLAMA_8B)
    return made | {"rope_scaling": made["rope_scaling"] | {"factor": 8.0}}


def _smollm2(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    }


def _qwen3(context: int, theta: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "max_position_embeddings": context,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_theta": theta,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    }


def _gemma3() -> dict[str, Any]:
    """Of the text model alone: what its config.json has under text_config."""
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "max_position_embeddings": 131072,
        "model_type": "gemma3_text",
        "num_attention_heads": 8,
        "num_hidden_layers": 34,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000.0,
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "vocab_size": 262208,
    }
