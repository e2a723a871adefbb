"""Write the tokenizer of a Llama 3 model folder as GGUF keys, as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ggufy.errors import ExportError
from ggufy.model import config_files, llama3
from ggufy.model.template import text_of

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def add_vocab(writer: Any, base: Path, vocab_size: int) -> None:
    """Add every tokenizer key of the folder `base` to a GGUFWriter. Raises ExportError for other tokenizers."""
    path = base / "tokenizer.json"
    spec = config_files.read(path)
    _check_llama3(spec, path)
    config = config_files.read(base / "tokenizer_config.json")
    if (prefix := config.get("add_prefix_space")) is not None:
        writer.add_add_space_prefix(prefix)
    tokens, types = _tokens(spec, vocab_size, path)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(spec))
    model_config = config_files.read(base / "config.json")
    for kind, number in _special_ids(spec, config, model_config).items():
        getattr(writer, f"add_{kind}_token_id")(number)
    for kind, flag in _added_by_tokenizer(spec, config, path).items():
        getattr(writer, f"add_add_{kind}_token")(flag)
    # The one that training rendered with, wherever the folder keeps it.
    if template := text_of(base):
        writer.add_chat_template(template)


def check(base: Path, vocab_size: int) -> None:
    """Raise ExportError where the tokenizer of a folder cannot be written, or has more tokens than the embedding."""
    path = base / "tokenizer.json"
    spec = config_files.read(path)
    _check_llama3(spec, path)
    _names(spec, vocab_size, path)


def _check_llama3(spec: dict[str, Any], path: Path) -> None:
    """By structure, not by a hash of sample ids: fine-tunes with added tokens and tiny vocabularies are known too."""
    try:
        model, steps = dict(spec.get("model") or {}), dict(spec.get("pre_tokenizer") or {})
        steps = steps.get("pretokenizers", [steps])
        split = next((s["pattern"].get("Regex") for s in steps if s.get("type") == "Split" and "pattern" in s), None)
    except (TypeError, ValueError, AttributeError):
        model, split = {}, None
    if model.get("type") != "BPE" or split != llama3.SPLIT or not model.get("ignore_merges") or spec.get("normalizer"):
        raise ExportError(
            f"{path.as_posix()}: not a Llama 3 tokenizer, so llama.cpp would split text differently from training",
            "use a Llama 3 family base with its own tokenizer.json",
        )


def _tokens(spec: dict[str, Any], vocab_size: int, path: Path) -> tuple[list[str], list[int]]:
    names = _names(spec, vocab_size, path)
    added = {entry["id"]: entry for entry in spec.get("added_tokens", [])}
    tokens, types = [], []
    for number in range(vocab_size):
        entry = added.get(number)
        token = names.get(number, f"[PAD{number}]")
        if number not in names:
            kind = _UNUSED
        elif entry is None:
            kind = _NORMAL
        else:
            marked = token.startswith("<|") and token.endswith("|>")
            kind = _CONTROL if entry.get("special") or marked else _USER_DEFINED
            if kind == _USER_DEFINED:
                token = token.replace("\u2581", " ")
        tokens.append(token)
        types.append(kind)
    return tokens, types


def _names(spec: dict[str, Any], vocab_size: int, path: Path) -> dict[int, str]:
    """Every token by its number."""
    try:
        names = {int(number): str(token) for token, number in spec["model"]["vocab"].items()}
        names |= {int(entry["id"]): str(entry["content"]) for entry in spec.get("added_tokens", [])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"{path.as_posix()}: its tokens cannot be read: {error!r}", "copy the folder again") from None
    if (highest := max(names, default=0)) >= vocab_size:
        raise ExportError(
            f"{path.as_posix()}: token {highest} ({names[highest]!r}) has no row in the embedding of {vocab_size:,}",
            "the tokenizer and the weights are of different models",
        )
    return names


def _merges(spec: dict[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else _pair(merge) for merge in spec["model"]["merges"]]


def _pair(parts: list[str]) -> str:
    written = " ".join(parts)
    if written.count(" ") == 1:
        return written
    # A pair is written as "a b", so a space inside a part is written as the byte-level alphabet's own space.
    space = chr(ord(" ") + 256)
    return " ".join(part.replace(" ", space) for part in parts)


_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def _special_ids(spec: dict[str, Any], config: dict[str, Any], model: dict[str, Any]) -> dict[str, int]:
    """By the names in tokenizer_config.json, else by the numbers in config.json."""
    added: dict[str, int] = {}
    for entry in spec.get("added_tokens", []):
        added.setdefault(entry["content"], entry["id"])
    named = {kind: _content(config.get(f"{kind}_token")) for kind in _KINDS}
    ids = {kind: added[name] for kind, name in named.items() if name in added}
    for kind in _KINDS:
        number = model.get(f"{kind}_token_id")
        if kind not in ids and isinstance(number, int):
            ids[kind] = number
    return ids


def _added_by_tokenizer(spec: dict[str, Any], config: dict[str, Any], path: Path) -> dict[str, bool]:
    """Which special tokens the tokenizer puts around a text by itself, read from its post-processor."""
    flags: dict[str, bool] = {}
    post = spec.get("post_processor") or {}
    bos, eos = _content(config.get("bos_token")), _content(config.get("eos_token"))
    for step in post.get("processors", [post] if post else []):
        if step.get("type") == "ByteLevel":
            flags = {"bos": False, "eos": False, **flags}
        elif step.get("type") == "TemplateProcessing":
            single = [_special(piece) for piece in step.get("single", [])]
            first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
            if first not in (None, bos) or last not in (None, eos):
                raise ExportError(
                    f"{path.as_posix()}: it puts {first or last} around texts, which is neither BOS nor EOS",
                    "use a Llama 3 family base with its own tokenizer.json",
                )
            if first:
                flags["bos"] = True
            if last:
                flags["eos"] = True
            pair = [_special(piece) for piece in step.get("pair", [])]
            between = pair[pair.index(None) + 1 : len(pair) - 1 - pair[::-1].index(None)] if None in pair else []
            if between:
                flags["sep"] = between[0] in (_content(config.get("sep_token")), eos) and not last
    for kind in _KINDS:
        flag = config.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            flags.setdefault(kind, flag)
    return flags


def _special(piece: dict[str, Any]) -> str | None:
    """The special token of a template's piece; None where the text goes."""
    token = piece.get("SpecialToken")
    return str(token["id"]) if token else None


def _content(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None
