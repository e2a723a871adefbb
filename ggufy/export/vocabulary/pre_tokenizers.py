"""What llama.cpp calls the way in which a byte-level tokenizer splits text: `tokenizer.ggml.pre`.

llama.cpp's converter knows a tokenizer by the ids that it makes of one text; `pre_tokenizers.json` is its table
(`vendor/pre_tokenizers.py` makes it again). Ids change with the vocabulary, so fine-tunes with added tokens and small
vocabularies are not in it: they are known by the rules in tokenizer.json (`structures.json`). A name alone says little.
What counts is that llama.cpp then reads text as the tokenizer does, which `proof.py` finds out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ggufy.model.tokenizer.folder import FolderTokenizer
from ggufy.system import digest

Step = tuple[Any, ...]


def known(tokenizer: FolderTokenizer) -> list[str]:
    """The name by the converter's table, and the one by the rules where that is another; none where neither has it."""
    found = (by_hash(tokenizer), by_rules(tokenizer.spec))
    return list(dict.fromkeys(name for name in found if name))


def by_hash(tokenizer: FolderTokenizer) -> str | None:
    table = _table()
    text = table["text"]
    known = f"hash of the ids of {digest.of_values(text)}"
    found = table["names"].get(tokenizer.findings.get(known, lambda: _hash(tokenizer.backend.encode(text).ids)))
    return str(found) if found else None


def by_ids(encode: Callable[[str], Sequence[int]]) -> str | None:
    """As `by_hash`, of a tokenizer that was opened in another way."""
    found = _table()["names"].get(_hash(encode(_table()["text"])))
    return str(found) if found else None


def _hash(ids: Sequence[int]) -> str:
    return hashlib.sha256(str(list(ids)).encode()).hexdigest()


def by_rules(spec: dict[str, Any]) -> str | None:
    """By what tokenizer.json says of splitting and merging."""
    model = spec.get("model") or {}
    if set(normalizers(spec)) - {"NFC"}:
        return None
    rules = (bool(model.get("ignore_merges")), steps(spec))
    return next((name for name, *others in _structures() if tuple(others) == rules), None)


def names() -> list[str]:
    """The names of all rules that are known, each once."""
    return [name for name, *_ in _structures()]


def steps(spec: dict[str, Any]) -> tuple[Step, ...]:
    """The steps of the pre-tokenizer, in the words of structures.json; empty where there is none."""
    given = spec.get("pre_tokenizer") or {}
    try:
        return tuple(_step(step) for step in given.get("pretokenizers", [given] if given else []))
    except (TypeError, AttributeError, KeyError):
        return (("unreadable",),)


def normalizers(spec: dict[str, Any]) -> list[str]:
    """The kinds of normalizers, in order."""
    given = spec.get("normalizer") or {}
    return [str(step.get("type")) for step in given.get("normalizers", [given] if given else [])]


def _step(step: dict[str, Any]) -> Step:
    kind = step.get("type")
    if kind == "Split" and not step.get("invert"):
        pattern = step["pattern"].get("Regex")
        # The same two signs, written in one way.
        pattern = pattern and pattern.replace("\r", "\\r").replace("\n", "\\n")
        return "split", pattern, str(step.get("behavior")).lower()
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "byte level", bool(step.get("use_regex", True))
    if kind == "Digits":
        return "digits", bool(step.get("individual_digits"))
    if kind == "Punctuation":
        return "punctuation", str(step.get("behavior")).lower()
    return "other", json.dumps(step, sort_keys=True)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_data("pre_tokenizers.json"))
    return found


@lru_cache(maxsize=1)
def _structures() -> list[tuple[str, bool, tuple[Step, ...]]]:
    return [
        (row["name"], row["ignore_merges"], tuple(tuple(step) for step in row["steps"]))
        for row in json.loads(_data("structures.json"))
    ]


def _data(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
