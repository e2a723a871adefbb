"""The tokenizer of a Llama 3 model folder as GGUF keys, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ggufy.errors import ExportError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
# What llama.cpp's `llama-bpe` does: this split, then bytes, and whole pre-tokens looked up before any merge.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def add_vocab(writer: Any, base: Path, vocab_size: int) -> None:
    """Add every tokenizer key of the folder `base` to a GGUFWriter. Raises ExportError for other tokenizers."""
    import gguf
    from tokenizers import Tokenizer

    path = base / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    _check_llama3(spec, path)
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    if (prefix := config.get("add_prefix_space")) is not None:
        writer.add_add_space_prefix(prefix)
    tokens, types = _tokens(spec, Tokenizer.from_file(path.as_posix()), vocab_size, path)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # It also warns of a quirk that every Llama 3 tokenizer has.
    logging.getLogger("gguf").setLevel(logging.ERROR)
    gguf.SpecialVocab(base, load_merges=True).add_to_gguf(writer, quiet=True)


def _check_llama3(spec: dict[str, Any], path: Path) -> None:
    """By structure, not by a hash of sample ids: fine-tunes with added tokens and tiny vocabularies are known too."""
    model = spec.get("model") or {}
    steps = spec.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    split = next((s["pattern"].get("Regex") for s in steps if s.get("type") == "Split" and "pattern" in s), None)
    if model.get("type") != "BPE" or split != _LLAMA3_SPLIT or not model.get("ignore_merges") or spec.get("normalizer"):
        raise ExportError(
            f"{path.as_posix()}: not a Llama 3 tokenizer, so llama.cpp would split text differently from training",
            "use a Llama 3 family base with its own tokenizer.json",
        )


def _tokens(spec: dict[str, Any], tokenizer: Any, vocab_size: int, path: Path) -> tuple[list[str], list[int]]:
    names = {number: token for token, number in spec["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in spec.get("added_tokens", [])}
    names |= {number: entry["content"] for number, entry in added.items()}
    if (highest := max(names)) >= vocab_size:
        raise ExportError(
            f"{path.as_posix()}: token {highest} ({names[highest]!r}) has no row in the embedding of {vocab_size:,}",
            "the tokenizer and the weights are of different models",
        )
    tokens, types = [], []
    for number in range(vocab_size):
        entry = added.get(number)
        token = names.get(number, f"[PAD{number}]")
        if number not in names:
            kind = _UNUSED
        elif entry is None:
            kind = _NORMAL
        else:
            if not entry.get("normalized"):
                ids = tokenizer.encode(token, add_special_tokens=False).ids
                token = tokenizer.decode(ids, skip_special_tokens=False)
            marked = token.startswith("<|") and token.endswith("|>")
            kind = _CONTROL if entry.get("special") or marked else _USER_DEFINED
            if kind == _USER_DEFINED:
                token = token.replace("\u2581", " ")
        tokens.append(token)
        types.append(kind)
    return tokens, types
