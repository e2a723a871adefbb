"""The built-in tiny model: Llama 3.2's architecture and tokenizer at a thousandth of its size, made from code.

Grouped-query attention, llama3 rope scaling, tied embeddings, and widths that every K-quant accepts (256 columns a
block). The tokenizer is a byte-level BPE with Llama 3's pre-tokenizer, special tokens and chat template structure. It
knows nothing: its weights are random. But it can learn, and it goes through the same code as the large ones.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ggufy.model import llama3, safetensors
from ggufy.model.llama3 import Shape
from ggufy.system import digest, user_folders
from ggufy.system.disk import sync, write_json

log = logging.getLogger("ggufy")

# Change this when anything below changes what is made; an older one in the cache is then left alone.
EDITION = 1
SEED = 20261120
MERGES = 480
SHAPE = Shape(layers=4, hidden=256, heads=8, kv_heads=2, head_dim=32, ffn=768)

SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)

# Written for ggufy; it renders as Llama 3.2's does: one BOS, a system turn with the date, headers, end-of-turn tokens.
CHAT_TEMPLATE = """\
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(system="", turns=messages) %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set ns.turns = messages[1:] %}
{%- endif %}
{{- bos_token }}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string }}
{%- if ns.system %}
    {{- "\\n\\n" + ns.system }}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in ns.turns %}
    {{- "<|start_header_id|>" + message['role'] + "<|end_header_id|>\\n\\n" }}
    {{- message['content'] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""


def ensure(texts: Iterable[str]) -> Path:
    """The folder of the built-in model, made in a second or two if it is not in the cache yet.

    `texts` is what the tokenizer's merges are learnt from. The model is a function of it and of EDITION alone.
    """
    corpus = list(texts)
    key = digest.of_values([EDITION, SEED, asdict(SHAPE), MERGES, CHAT_TEMPLATE, corpus])[:16]
    folder = user_folders.cache() / f"tiny-{key}"
    stamp = folder / "stamp.json"
    if _holds(folder, stamp):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _holds(folder, stamp):
            _make(folder, stamp, corpus)
    return folder


def _make(folder: Path, stamp: Path, corpus: list[str]) -> None:
    log.info("making the built-in tiny model in %s", folder.as_posix())
    partial = folder.with_name(f"{folder.name}.partial")
    for left in (partial, folder):
        if left.exists():
            shutil.rmtree(left)
    partial.mkdir()
    vocab_size = _write_tokenizer(partial, corpus)
    _write_config(partial, vocab_size)
    _write_weights(partial, vocab_size)
    for file in partial.iterdir():
        sync(file)
    write_json(partial / stamp.name, {file.name: digest.of_file(file) for file in sorted(partial.iterdir())})
    partial.rename(folder)


def _holds(folder: Path, stamp: Path) -> bool:
    try:
        files = json.loads(stamp.read_text(encoding="utf-8"))
        return all(digest.of_file(folder / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write_tokenizer(folder: Path, corpus: list[str]) -> int:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(llama3.SPLIT), "isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    # Up to a round number of reserved tokens, as Llama 3 has them.
    used = tokenizer.get_vocab_size() + len(SPECIALS)
    reserved = [f"<|reserved_special_token_{n}|>" for n in range(3, 3 + -used % 64)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (*SPECIALS, *reserved)])
    bos = SPECIALS[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
            ),
        ]
    )
    tokenizer.save((folder / "tokenizer.json").as_posix())
    _write(
        folder / "tokenizer_config.json",
        {
            "bos_token": bos,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|eot_id|>",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 2048,
            "pad_token": "<|finetune_right_pad_id|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    return int(tokenizer.get_vocab_size())


def _write_config(folder: Path, vocab_size: int) -> None:
    bos = first = 256 + MERGES
    eos = [first + SPECIALS.index(name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    pad = first + SPECIALS.index("<|finetune_right_pad_id|>")
    _write(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "head_dim": SHAPE.head_dim,
            "hidden_act": "silu",
            "hidden_size": SHAPE.hidden,
            "initializer_range": 0.02,
            "intermediate_size": SHAPE.ffn,
            "max_position_embeddings": 2048,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": SHAPE.heads,
            "num_hidden_layers": SHAPE.layers,
            "num_key_value_heads": SHAPE.kv_heads,
            "pad_token_id": pad,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 512,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": vocab_size,
        },
    )
    generation = {"bos_token_id": bos, "do_sample": False, "eos_token_id": eos, "pad_token_id": pad}
    _write(folder / "generation_config.json", generation)


def _write_weights(folder: Path, vocab_size: int) -> None:
    import numpy as np

    rng = np.random.Generator(np.random.PCG64(SEED))
    planned = replace(SHAPE, vocab=vocab_size).tensors()
    head, _ = safetensors.header({name: ("BF16", shape) for name, shape in planned.items()})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        for shape in planned.values():
            if len(shape) == 1:
                values = np.ones(shape, np.float32)
            else:
                # Larger than the usual 0.02: a model this narrow learns faster from it.
                values = rng.standard_normal(shape, dtype=np.float32) * np.float32(shape[1] ** -0.5)
            file.write(safetensors.to_bf16(values).tobytes())


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
