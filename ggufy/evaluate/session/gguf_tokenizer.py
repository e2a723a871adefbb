"""Tokenize conversations with nothing but a GGUF: its tokenizer and template give ids and labels as in training.

For a file whose base is not known. llama.cpp splits the text; which characters a token stands for follows from the
bytes of each.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from ggufy.data.rows.alpaca import ALPACA
from ggufy.data.tokenize import Tokenizer
from ggufy.errors import EvalError
from ggufy.llamacpp import gguf_reader
from ggufy.llamacpp.evaluate_gguf import Forward
from ggufy.model.template import TOOLS_KEY, ChatTemplate
from ggufy.system import digest

_TEMPLATE, _DATE = "tokenizer.chat_template", "general.ggufy.date"
# The date that Llama 3.2's own template has.
_DAY = date(2024, 7, 26)


class Encoding(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]
    """The characters of each, from and to."""

    def token_to_chars(self, index: int) -> tuple[int, int]:
        return self.offsets[index]

    def char_to_token(self, char: int) -> int | None:
        """The first token that this character is of; None for the text's end."""
        return next((at for at, (start, stop) in enumerate(self.offsets) if start <= char < stop), None)


class GgufTokenizer(Tokenizer):
    """Of a GGUF that `model` has loaded, and which has to stay so."""

    def __init__(self, model: Forward, day: date | None, train_on: str) -> None:
        texts = gguf_reader.read_gguf(model.path, (_TEMPLATE, TOOLS_KEY, _DATE)).texts
        self.model, self.train_on = model, train_on
        self.day = day or _day(texts.get(_DATE))
        self.special = model.specials()
        ends = {token: text for text, token in self.special.items()}
        self._end = ends.get(model.eos, "")
        self._end_id = model.eos if self._end else None
        named = {"bos_token": ends.get(model.bos, "") if model.bos is not None else "", "eos_token": self._end}
        self.chat = bool(texts.get(_TEMPLATE))
        where = model.path.as_posix()
        self.template = ChatTemplate.from_keys(texts if self.chat else {_TEMPLATE: ALPACA}, named, where)
        # Where the runtime puts a BOS before a text, it is there.
        self.bos = model.bos if model.adds_bos else None
        self.rust: Any = _Splits(model)
        self.stopping = tuple(token for token in self.special.values() if model.ends_turn(token))

    def plain(self, text: str) -> list[int]:
        return self.model.tokenize(text, special=False)


class _Splits:
    """What `tokenizers.Tokenizer.encode` gives, by llama.cpp."""

    def __init__(self, model: Forward) -> None:
        self.model = model

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        assert not add_special_tokens
        ids = self.model.tokenize(text, special=True)
        pieces = [self.model.piece(token) for token in ids]
        if b"".join(pieces) != text.encode():
            raise EvalError(
                f"{self.model.path.as_posix()}: its tokens do not add up to the text they were made from, so what the "
                "assistant says cannot be found among them",
                "give plain text: --data FILE.txt",
            )
        decoder = codecs.getincrementaldecoder("utf-8")()
        offsets, at = [], 0
        for piece in pieces:
            start = at
            at += len(decoder.decode(piece))
            offsets.append((start, at))
        return Encoding(ids, offsets)


def day_of(path: Path) -> date:
    """The date that a file's model was trained with; without one that of Llama 3.2's own template."""
    return _day(gguf_reader.read_gguf(path, (_DATE,)).texts.get(_DATE))


def template_of(path: Path) -> ChatTemplate | None:
    """The template of a file, without the tokens that it may name."""
    text = gguf_reader.read_gguf(path, (_TEMPLATE,)).texts.get(_TEMPLATE)
    return ChatTemplate(text, {"bos_token": "", "eos_token": ""}, path.as_posix()) if text else None


def _day(text: str | None) -> date:
    try:
        return date.fromisoformat(text) if text else _DAY
    except ValueError:
        return _DAY


def vocabulary(path: Path) -> str:
    """Which tokenizer a GGUF has, by content: its tokens, merges, and the name of its rules."""
    lists = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
    texts = ("tokenizer.ggml.model", "tokenizer.ggml.pre")
    header = gguf_reader.read_gguf(path, texts, lists)
    return digest.of_values([dict(header.texts), dict(header.lists)])


def same_tokenizer(files: Iterable[Path]) -> None:
    """Raise EvalError where two files have different tokenizers."""
    first: tuple[Path, str] | None = None
    for path in files:
        found = vocabulary(path)
        if first is None:
            first = (path, found)
        elif first[1] != found:
            raise EvalError(
                f"{first[0].as_posix()} and {path.as_posix()} have different tokenizers, "
                "so KL cannot be measured between them",
                "compare their answers: --only prompts",
            )
