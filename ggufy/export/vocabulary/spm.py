"""The tokens of a SentencePiece tokenizer (Llama 2, Mistral 7B, TinyLlama, Gemma), their types and scores.

As llama.cpp's converter writes them from `tokenizer.model`. Where a folder has only tokenizer.json, the converter gives
every token the same score, and llama.cpp, which merges by score, then splits words otherwise than the tokenizer; so
there the score is the place of a token among the merges, which is what SentencePiece had.
"""

from __future__ import annotations

import re
from typing import Any

from ggufy.errors import ExportError
from ggufy.export.vocabulary import pre_tokenizers
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


NAMED = "phi-3"
"""What a model's name has for it to be read as Phi-3's is."""
_NEEDED = ("<unk>", "<s>", "</s>", "<|endoftext|>")
"""What llama.cpp then looks up, and ends where it is not there."""


def is_spm(tokenizer: FolderTokenizer) -> bool:
    """Whether a folder's tokenizer is of this kind: BPE on characters, with the bytes of what it does not know.

    One on bytes may say that, too; there it says nothing, as all bytes are tokens.
    """
    model = tokenizer.spec.get("model") or {}
    on_bytes = any(step[0] == "byte level" for step in pre_tokenizers.steps(tokenizer.spec))
    return model.get("type") == "BPE" and bool(model.get("byte_fallback")) and not on_bytes


def strips(tokenizer: FolderTokenizer) -> bool:
    """Whether white space after a mark belongs to the mark, as in Phi-3's tokenizer.

    A GGUF has no word for it: llama.cpp knows it by the model's name.
    """
    held = {token.content for token in tokenizer.added.values()}
    return any(token.rstrip for token in tokenizer.added.values()) and held.issuperset(_NEEDED)


def prefix(tokenizer: FolderTokenizer, *, told: bool) -> bool | None:
    """What the file says of a space before a text; None: nothing, as llama.cpp then puts one.

    `told` is whether the converter writes what tokenizer_config.json says of it.
    """
    spaced = _scheme(tokenizer.spec) == "always"
    said = told and tokenizer.config.get("add_prefix_space") is not None
    return None if spaced and not said else spaced


def begins_only(tokenizer: FolderTokenizer) -> bool:
    """Whether a space is put before a text, and none after a mark in it, which llama.cpp cannot do.

    Conversations begin with a mark, so the file says that there is none.
    """
    return _scheme(tokenizer.spec) == "first"


def spaces_once(tokenizer: FolderTokenizer) -> bool:
    """Whether a space is put before a text, but not before one that begins with a space, which llama.cpp cannot do.

    So it is where the pre-tokenizer puts it; a normalizer, as older files have it, puts one before every text.
    """
    return _scheme(tokenizer.spec) == "always" and not _prepends(tokenizer.spec)


def misses_marks(tokenizer: FolderTokenizer) -> bool:
    """Whether marks are looked for in what the normalizer made of a text, which puts a space before each of them."""
    return _prepends(tokenizer.spec) and any(token.special and token.normalized for token in tokenizer.added.values())


def begins_with_space(tokenizer: FolderTokenizer, text: str) -> bool:
    """Whether a text begins with a space, or what follows a mark in it does."""
    return any(part.startswith((" ", _SPACE)) for part in _split(tokenizer, text)[::2])


def bare(tokenizer: FolderTokenizer, text: str) -> str:
    """A text made of tokens, without the spaces that the tokenizer itself put before it and after its marks."""
    if not spaces_once(tokenizer):
        return text
    parts = _split(tokenizer, text)
    parts[::2] = [part.removeprefix(" ") for part in parts[::2]]
    return "".join(parts)


def _split(tokenizer: FolderTokenizer, text: str) -> list[str]:
    """What stands between the marks in a text, and between each two of these the mark."""
    marks = sorted((token.content for token in tokenizer.added.values()), key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]


_CODELLAMA, _PRE, _EOT = 32016, (32007, "\u2581<PRE>"), 32010


def codellama_eot(tokenizer: FolderTokenizer, rows: int) -> int | None:
    """What ends an infill of CodeLlama, which the converter knows by its number.

    It knows CodeLlama by the size of its vocabulary alone; here it is known by its names, too, or the tokens that
    somebody added to Llama 2 would end its answers.
    """
    number, name = _PRE
    return _EOT if rows == _CODELLAMA and tokenizer.names.get(number) == name else None


def _prepends(spec: dict[str, Any]) -> bool:
    given = spec.get("normalizer") or {}
    return any(step.get("type") == "Prepend" for step in given.get("normalizers", [given]))


def _scheme(spec: dict[str, Any]) -> str:
    """Where the rules in tokenizer.json put a space: before every piece between marks, the first, or never."""
    if _prepends(spec):
        return "always"
    steps = spec.get("pre_tokenizer") or {}
    for step in steps.get("pretokenizers", [steps]):
        if step.get("type") == "Metaspace":
            return str(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never"))
    return "never"


def tokens(tokenizer: FolderTokenizer, rows: int, *, all_added: bool = False) -> Tokens:
    """Of an embedding with `rows` rows. Raises ExportError where a token has none.

    `all_added` is the converter's rule for Phi-3: what tokenizer.json lists as added counts, as what
    tokenizer_config.json does.
    """
    check_rows(tokenizer, rows)
    names = [f"[PAD{number}]" for number in range(rows)]
    scores, types = [_PADDING] * rows, [UNUSED] * rows
    place = tokenizer.folder / "tokenizer.model"
    pieces = sentencepiece.read(place) if place.is_file() else None
    if pieces:
        listed = {int(number) for number in tokenizer.config.get("added_tokens_decoder") or {}}
        if all_added and not tokenizer.made:
            listed |= tokenizer.added.keys()
        _from_pieces(tokenizer, pieces[:rows], listed, names, scores, types)
    else:
        _from_merges(tokenizer, names, scores, types)
    check_unique(tokenizer, names)
    _check_bytes(tokenizer, names)
    return Tokens("llama", "default", names, types, scores)


def _check_bytes(tokenizer: FolderTokenizer, names: list[str]) -> None:
    """Raise ExportError where a byte has no token: llama.cpp ends the process at the first text that needs it."""
    held = set(names)
    lacking = [byte for byte in range(256) if f"<0x{byte:02X}>" not in held and (byte > 127 or chr(byte) not in held)]
    if lacking:
        raise ExportError(
            f"{tokenizer.path.as_posix()}: it says byte_fallback, and {len(lacking)} of the 256 tokens for bytes are "
            f"not there, first <0x{lacking[0]:02X}>",
            "use a base with the tokenizer.json of its original repository",
        )


def _from_pieces(
    tokenizer: FolderTokenizer,
    pieces: list[sentencepiece.Piece],
    listed: set[int],
    names: list[str],
    scores: list[float],
    types: list[int],
) -> None:
    for number, (text, score, kind) in enumerate(pieces):
        names[number], scores[number] = text, score
        # What is user-defined there is an ordinary token, but for those that are added.
        types[number] = NORMAL if kind == sentencepiece.USER_DEFINED else kind
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
