"""Turn a conversation into the prompt tokens of a GGUF.

What a person types is never read as a template's mark: where a message spells a special token, that message is
tokenized without special tokens, and only the template's own text with them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from ggufy.llamacpp import gguf_reader
from ggufy.model.template import ChatTemplate, Message

DATE_KEY = "general.ggufy.date"
_KEYS = ("tokenizer.chat_template", DATE_KEY)


class Prompts:
    """The template and the tokenizer of one loaded GGUF. Raises ModelError where it has no template."""

    def __init__(self, llama: Any, path: Path, day: date | None = None) -> None:
        texts = gguf_reader.read_gguf(path, _KEYS).texts
        self.llama = llama
        self.day = day or _day(texts.get(DATE_KEY)) or date.today()
        special = {"bos_token": self._piece(llama.token_bos()), "eos_token": self._piece(llama.token_eos())}
        self.template = ChatTemplate(texts.get("tokenizer.chat_template", ""), special, path.as_posix())

    def tokens(self, conversation: Sequence[Message], said: Mapping[str, Sequence[int]] | None = None) -> list[int]:
        """The prompt for the next answer.

        `said` holds the tokens of answers that the model gave: they are put in as they were, so that what llama.cpp has
        evaluated already need not be evaluated again. (A text can often be spelt in several tokens.)
        """
        shown: list[Message] = []
        spelt: dict[str, Sequence[int]] = {}
        for message in conversation:
            # What a terminal could not decode arrives as half surrogates, which no tokenizer takes.
            spoken = message["content"].encode("utf-8", "replace").decode("utf-8")
            tokens = self._spelling(message["role"], spoken, said or {})
            if tokens is not None:
                # A word nobody can have typed stands for it while the template is rendered.
                spoken = f"ggufy{secrets.token_hex(16)}"
                spelt[spoken] = tokens
            shown.append({"role": message["role"], "content": spoken})
        text = self.template.render(shown, self.day, generate=True)
        tokens = []
        for piece in re.split(f"({'|'.join(spelt)})", text) if spelt else [text]:
            tokens += spelt[piece] if piece in spelt else self.tokenize(piece, special=True)
        bos = self.llama.token_bos()
        if bos >= 0 and self.llama._model.add_bos_token() and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def _spelling(self, role: str, text: str, said: Mapping[str, Sequence[int]]) -> Sequence[int] | None:
        """The tokens of a message that must not be left to the tokenizer of the whole, or None."""
        # A template may trim what is said; then the spaces around it are not what the model was shown.
        if role == "assistant" and text in said and text == text.strip():
            return said[text]
        if self.tokenize(text, special=True) != self.tokenize(text, special=False):
            return self.tokenize(text.strip(), special=False)
        return None

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return list(self.llama.tokenize(text.encode(), add_bos=False, special=special))

    def _piece(self, token: int) -> str:
        return str(self.llama._model.token_get_text(token)) if token >= 0 else ""


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None
