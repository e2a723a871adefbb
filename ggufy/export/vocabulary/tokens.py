"""The tokens of a byte-level tokenizer, their types and merges, as llama.cpp's converter writes them."""

from __future__ import annotations

import hashlib
import struct
from array import array
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ggufy.errors import ExportError
from ggufy.export.vocabulary.long_texts import LongTexts
from ggufy.model.tokenizer.folder import Added, FolderTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
"""What SentencePiece writes for a space."""
# Tokens that some models list as plain text and that are none, by the converter's rule.
_MARKS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_BRACKETS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))


@dataclass(frozen=True)
class Tokens:
    """One entry a row of the embedding."""

    model: str
    """`gpt2` for byte-level tokenizers, `llama` for those of SentencePiece."""
    pre: str
    names: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None

    @cached_property
    def digest(self) -> str:
        """A hash of all that is written."""
        found = hashlib.sha256(f"{self.model} {self.pre}".encode())
        for part in (*(long.packed for long in self._long), bytes(self.types), array("f", self.scores or ()).tobytes()):
            found.update(struct.pack("<Q", len(part)))
            found.update(part)
        return found.hexdigest()

    @cached_property
    def _long(self) -> tuple[LongTexts, LongTexts]:
        """Names and merges, to be packed once."""
        return LongTexts(self.names), LongTexts(self.merges or ())

    def write(self, writer: Any) -> None:
        names, merges = self._long
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(names)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if merges:
            writer.add_token_merges(merges)


def byte_level(tokenizer: FolderTokenizer, rows: int, pre: str) -> Tokens:
    """Of an embedding with `rows` rows. Raises ExportError where a token has none."""
    check_rows(tokenizer, rows)
    names, types = [], []
    given, added = tokenizer.names, tokenizer.added
    written = tokenizer.findings.get("added tokens, encoded and decoded", lambda: _seen(tokenizer))
    for number in range(rows):
        if number in added:
            name, kind = marked(added[number], written.get(str(number)))
        elif number in given:
            name, kind = given[number], NORMAL
        else:
            name, kind = f"[PAD{number}]", UNUSED
        names.append(name)
        types.append(kind)
    check_unique(tokenizer, names)
    return Tokens("gpt2", pre, names, types, merges=merges(tokenizer))


def _seen(tokenizer: FolderTokenizer) -> dict[str, str]:
    """The added tokens that are not normalized, by their numbers, as llama.cpp will see each in a text."""
    backend = tokenizer.backend
    return {
        str(number): backend.decode(
            backend.encode(token.content, add_special_tokens=False).ids, skip_special_tokens=False
        )
        for number, token in tokenizer.added.items()
        if not token.normalized
    }


def marked(token: Added, seen: str | None = None) -> tuple[str, int]:
    """How an added token is written, and its type: control where it is special, or looks so.

    `seen` is what llama.cpp will see in a text, where that may be something else.
    """
    name = token.content if seen is None else seen
    if token.special or looks_special(name):
        return name, CONTROL
    return name.replace(_SPACE, " "), USER_DEFINED


def looks_special(name: str) -> bool:
    return name in _MARKS or any(name.startswith(start) and name.endswith(end) for start, end in _BRACKETS)


def check_rows(tokenizer: FolderTokenizer, rows: int) -> None:
    """Raise ExportError where a token has no row in the embedding."""
    if (highest := max(tokenizer.names, default=0)) >= rows:
        raise ExportError(
            f"{tokenizer.path.as_posix()}: token {highest} ({tokenizer.names[highest]!r}) has no row in the embedding "
            f"of {rows:,}",
            "the tokenizer and the weights are of different models; or, if the token was never trained, remove it from "
            "the tokenizer's files",
        )


def check_unique(tokenizer: FolderTokenizer, names: list[str]) -> None:
    """Raise ExportError where two tokens are written alike: llama.cpp ends the process."""
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if name in first:
            raise ExportError(
                f"{tokenizer.path.as_posix()}: the tokens {first[name]} and {number} are both written {name!r} there, "
                "and llama.cpp needs each once",
                "rename one of them in tokenizer.json and tokenizer_config.json",
            )
        first[name] = number


def merges(tokenizer: FolderTokenizer) -> list[str]:
    """The pairs of tokens that are merged, in order, as "a b"."""
    try:
        given = tokenizer.spec["model"]["merges"]
        if set(map(type, given)) == {list}:
            # One by one they take a tenth of a second more.
            written = list(map(" ".join, given))
            if "".join(written).count(" ") == len(given):
                return written
        return [merge if isinstance(merge, str) else _pair(merge) for merge in given]
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{tokenizer.path.as_posix()}: its merges cannot be read: {error!r}", "copy the folder again"
        ) from None


def _pair(parts: list[str]) -> str:
    written = " ".join(parts)
    if written.count(" ") == 1:
        return written
    # A pair is written as "a b", so a space inside a part is written as the byte-level alphabet's own space.
    space = chr(ord(" ") + 256)
    return " ".join(part.replace(" ", space) for part in parts)
