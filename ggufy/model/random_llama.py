"""Random checkpoints with the real shapes of Llama 3.2 1B and 3B and the real Llama 3 vocabulary.

For benchmarks and GPU tests on machines that cannot download the models. The vocabulary comes from llama.cpp's own
vocabulary file (`models/ggml-vocab-llama-bpe.gguf`, unpacked by `make vendor`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ggufy.model import llama3, safetensors
from ggufy.model.llama3 import Shape
from ggufy.model.tiny import CHAT_TEMPLATE

SHAPES = {
    "1b": Shape(16, 2048, 32, 8, 64, 8192),
    "3b": Shape(28, 3072, 24, 8, 128, 8192),
}
# Llama 3.2's names for ids the vocabulary file, which is Llama 3.0's, still calls reserved.
_RENAMED = {128004: "<|finetune_right_pad_id|>", 128008: "<|eom_id|>", 128010: "<|python_tag|>"}
_CONTROL = 3


def write(folder: Path, shape: Shape, vocabulary: Path, seed: int = 0) -> None:
    """Write config, tokenizer and bf16 weights, normal with a deviation of 0.02, to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, vocabulary)
    write_model(folder, shape, seed)


def write_model(folder: Path, shape: Shape, seed: int = 0) -> None:
    """The config and the weights alone."""
    _dump(folder / "config.json", config(shape))
    _write_weights(folder / "model.safetensors", shape.tensors(), seed)


def config(shape: Shape) -> dict[str, Any]:
    """config.json of Llama 3.2 in that shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": 128004,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab,
    }


def _write_weights(path: Path, planned: dict[str, tuple[int, ...]], seed: int) -> None:
    import numpy as np

    rng = np.random.Generator(np.random.SFC64(seed))
    head, _ = safetensors.header({name: ("BF16", size) for name, size in planned.items()})
    with path.open("wb") as file:
        file.write(head)
        for size in planned.values():
            rows = size[0]
            step = rows if len(size) == 1 else max(1, (1 << 24) // size[1])
            for start in range(0, rows, step):
                part = (min(step, rows - start), *size[1:])
                values = np.ones(part, np.float32)
                if len(size) > 1:
                    rng.standard_normal(out=values, dtype=np.float32)
                    values *= np.float32(0.02)
                file.write(safetensors.to_bf16(values).tobytes())


def write_tokenizer(folder: Path, vocabulary: Path) -> None:
    """Llama 3's tokenizer.json and tokenizer_config.json from a vocabulary GGUF."""
    import gguf
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    fields = gguf.GGUFReader(vocabulary).fields
    tokens = [str(token) for token in fields["tokenizer.ggml.tokens"].contents()]
    kinds = list(fields["tokenizer.ggml.token_type"].contents())
    merges: Any = [tuple(str(merge).split(" ", 1)) for merge in fields["tokenizer.ggml.merges"].contents()]
    vocab = {token: number for number, token in enumerate(tokens) if kinds[number] != _CONTROL}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(llama3.SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [_RENAMED.get(n, token) for n, token in enumerate(tokens) if kinds[n] == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    bos = tokens[128000]
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, 128000)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    tokenizer.save((folder / "tokenizer.json").as_posix())
    _dump(
        folder / "tokenizer_config.json",
        {
            "bos_token": bos,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|eot_id|>",
            "model_max_length": 131072,
            "pad_token": "<|finetune_right_pad_id|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _dump(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
