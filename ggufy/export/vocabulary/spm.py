"""The tokens of a SentencePiece tokenizer (Llama 2, Mistral 7B, TinyLlama, Gemma), their types and scores.

As llama.cpp's converter writes them from `tokenizer.model`. Where a folder has only tokenizer.json, the converter gives
every token the same score, and llama.cpp, which merges by score, then splits words otherwise than the tokenizer; so
there the score is the place of a token among the merges, which is what SentencePiece had.
"""

from __future__ import annotations

import re
from typing import Any

from ggufy.export.vocabulary.tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Tokens,
    check_rows,
    check_unique,
    looks_special,
    marked,
)
from ggufy.model.tokenizer import sentencepiece
from ggufy.model.tokenizer.folder import FolderTokenizer

_LISTED, _PADDING = -1000.0, -10000.0
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "\u2581"


def is_spm(tokenizer: FolderTokenizer) -> bool:
    """Whether a folder's tokenizer is of this kind: BPE on characters, with the bytes of what it does not know."""
    model = tokenizer.spec.get("model") or {}
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def prefix(tokenizer: FolderTokenizer) -> bool | None:
    """What the file says of a space before a text; None: nothing, as llama.cpp then puts one."""
    spaced = _scheme(tokenizer.spec) == "always"
    told = tokenizer.config.get("add_prefix_space")
    return None if told is None and spaced else spaced


def begins_only(tokenizer: FolderTokenizer) -> bool:
    """Whether a space is put before a text, and none after a mark in it, which llama.cpp cannot do.

    Conversations begin with a mark, so the file says that there is none.
    """
    return _scheme(tokenizer.spec) == "first"


def _scheme(spec: dict[str, Any]) -> str:
    """Where the rules in tokenizer.json put a space: before every piece between marks, the first, or never."""
    given = spec.get("normalizer") or {}
    if any(step.get("type") == "Prepend" for step in given.get("normalizers", [given])):
        return "always"
    steps = spec.get("pre_tokenizer") or {}
    for step in steps.get("pretokenizers", [steps]):
        if step.get("type") == "Metaspace":
            return str(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never"))
    return "never"


def tokens(tokenizer: FolderTokenizer, rows: int) -> Tokens:
    """Of an embedding with `rows` rows. Raises ExportError where a token has none."""
    check_rows(tokenizer, rows)
    names = [f"[PAD{number}]" for number in range(rows)]
    scores, types = [_PADDING] * rows, [UNUSED] * rows
    place = tokenizer.folder / "tokenizer.model"
    pieces = sentencepiece.read(place) if place.is_file() else None
    if pieces:
        _from_pieces(tokenizer, pieces[:rows], names, scores, types)
    else:
        _from_merges(tokenizer, names, scores, types)
    check_unique(tokenizer, names)
    return Tokens("llama", "default", names, types, scores)


def _from_pieces(
    tokenizer: FolderTokenizer,
    pieces: list[sentencepiece.Piece],
    names: list[str],
    scores: list[float],
    types: list[int],
) -> None:
    for number, (text, score, kind) in enumerate(pieces):
        names[number], scores[number] = text, score
        # What is user-defined there is an ordinary token, but for those that are added.
        types[number] = NORMAL if kind == sentencepiece.USER_DEFINED else kind
    listed = {int(number) for number in tokenizer.config.get("added_tokens_decoder") or {}}
    for number, token in tokenizer.added.items():
        same = number < len(pieces) and pieces[number].text == token.content
        if same and number not in listed:
            continue
        name = token.content
        if token.special or looks_special(name):
            kind = CONTROL
        else:
            name, kind = name.replace(_SPACE, " "), USER_DEFINED
        names[number], scores[number], types[number] = name, _LISTED, kind


def _from_merges(tokenizer: FolderTokenizer, names: list[str], scores: list[float], types: list[int]) -> None:
    ranks: dict[str, int] = {}
    for merge in tokenizer.spec["model"].get("merges") or []:
        # Of merges written as one text a space is between the parts, as a space inside is written otherwise.
        text = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        ranks.setdefault(text, len(ranks))
    for number, name in tokenizer.names.items():
        names[number] = name
        scores[number] = float(-ranks[name]) if name in ranks else _LISTED
        types[number] = BYTE if _BYTE.fullmatch(name) else NORMAL
    named = set(tokenizer.special.values())
    vocabulary = tokenizer.spec["model"].get("vocab") or {}
    for number, token in tokenizer.added.items():
        name, kind = marked(token)
        if token.content in named:
            name, kind = token.content, CONTROL
        if types[number] == BYTE or (kind == USER_DEFINED and token.content in vocabulary):
            continue
        names[number], scores[number], types[number] = name, _LISTED, kind
