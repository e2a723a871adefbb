"""The tokens of a byte-level tokenizer, their types and merges, as llama.cpp's converter writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ggufy.errors import ExportError
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

    def write(self, writer: Any) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.names)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)


def byte_level(tokenizer: FolderTokenizer, rows: int, pre: str) -> Tokens:
    """Of an embedding with `rows` rows. Raises ExportError where a token has none."""
    check_rows(tokenizer, rows)
    names, types = [], []
    given, added = tokenizer.names, tokenizer.added
    for number in range(rows):
        if number in added:
            name, kind = marked(added[number], tokenizer.backend)
        elif number in given:
            name, kind = given[number], NORMAL
        else:
            name, kind = f"[PAD{number}]", UNUSED
        names.append(name)
        types.append(kind)
    check_unique(tokenizer, names)
    return Tokens("gpt2", pre, names, types, merges=merges(tokenizer))


def marked(token: Added, backend: Any) -> tuple[str, int]:
    """How an added token is written, and its type: control where it is special, or looks so."""
    name = token.content
    if not token.normalized and backend is not None:
        # As llama.cpp will see it in a text.
        name = backend.decode(backend.encode(name, add_special_tokens=False).ids, skip_special_tokens=False)
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
            "the tokenizer and the weights are of different models",
        )


def check_unique(tokenizer: FolderTokenizer, names: list[str]) -> None:
    """Raise ExportError where two tokens are written alike: llama.cpp ends the process."""
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if name in first:
            raise ExportError(
                f"{tokenizer.path.as_posix()}: the tokens {first[name]} and {number} are both written {name!r} in a GGUF, "
                "and llama.cpp needs each once",
                "rename one of them in tokenizer.json and tokenizer_config.json",
            )
        first[name] = number


def merges(tokenizer: FolderTokenizer) -> list[str]:
    """The pairs of tokens that are merged, in order, as "a b"."""
    try:
        given = tokenizer.spec["model"]["merges"]
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
