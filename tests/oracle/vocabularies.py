"""Tokenizers of llama.cpp's vocabulary files (`models/ggml-vocab-*.gguf`), built again as Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ggufy.export.vocabulary import pre_tokenizers as known
from tests.oracle.converter import VENDOR

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# File -> what its rules are called in structures.json.
RULES = {
    "llama-bpe": "llama-bpe",
    "gpt-2": "gpt-2",
    "qwen2": "qwen2",
    "qwen35": "qwen35",
    "deepseek-llm": "deepseek-llm",
    "deepseek-coder": "deepseek-coder",
    "falcon": "falcon",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "mpt": "gpt-2",
    "gpt-neox": "gpt-2",
}
COMPOSED = ("qwen2", "command-r", "mpt", "gpt-neox")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class File:
    """One vocabulary file."""

    def __init__(self, name: str) -> None:
        fields = gguf.GGUFReader(VENDOR / "models" / f"ggml-vocab-{name}.gguf").fields
        self.fields = {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in fields.items()}
        self.tokens: list[str] = self.fields["tokens"]
        self.types: list[int] = list(self.fields.get("token_type") or [NORMAL] * len(self.tokens))

    def id(self, kind: str) -> int | None:
        return self.fields.get(f"{kind}_token_id")


def texts(name: str) -> list[tuple[str, list[int]]]:
    """llama.cpp's own examples: texts, and the ids that the original tokenizer makes of them."""
    place = VENDOR / "models" / f"ggml-vocab-{name}.gguf"
    given = place.with_name(f"{place.name}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    ids = place.with_name(f"{place.name}.out").read_text("utf-8").splitlines()
    return [(text, [int(number) for number in line.split()]) for text, line in zip(given, ids, strict=False)]


def pre_tokenizer(rules: str) -> Any:
    """Of tokenizers, from structures.json."""
    [steps] = [found for name, _, found in known._structures() if name == rules]
    made: list[Any] = []
    for kind, *values in steps:
        if kind == "split":
            made.append(pre_tokenizers.Split(Regex(values[0]), values[1]))
        elif kind == "byte level":
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=values[0]))
        elif kind == "digits":
            made.append(pre_tokenizers.Digits(individual_digits=values[0]))
        else:
            made.append(pre_tokenizers.Punctuation(values[0]))
    return made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)


def write_byte_level(name: str, folder: Path, **config: Any) -> int:
    """tokenizer.json and tokenizer_config.json of a byte-level vocabulary file: how many tokens there are."""
    file, rules = File(name), RULES[name]
    [ignores] = [found for known_as, found, _ in known._structures() if known_as == rules]
    plain = {token: n for n, token in enumerate(file.tokens) if file.types[n] in (NORMAL, UNUSED)}
    pairs: Any = [tuple(merge.split(" ", 1)) for merge in file.fields["merges"]]
    # Added tokens keep their numbers only where they are in the vocabulary, or follow it.
    everything = {token: n for n, token in enumerate(file.tokens)} if max(plain.values()) >= len(plain) else plain
    tokenizer = Tokenizer(models.BPE(vocab=everything, merges=pairs, ignore_merges=ignores))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer(rules), decoders.ByteLevel()
    if name in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens(
        [
            AddedToken(token, special=file.types[n] == CONTROL, normalized=file.types[n] != CONTROL)
            for n, token in enumerate(file.tokens)
            if file.types[n] in (CONTROL, USER_DEFINED)
        ]
    )
    tokenizer.save((folder / "tokenizer.json").as_posix())
    named = {"bos": file.id("bos"), "eos": file.id("eos"), "unk": file.id("unknown"), "pad": file.id("padding")}
    values = {f"{kind}_token": file.tokens[number] for kind, number in named.items() if number is not None}
    values |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values, ensure_ascii=False), "utf-8")
    return len(file.tokens)
