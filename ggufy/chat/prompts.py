"""Turn a conversation into the prompt tokens of a GGUF.

What a person types is never read as a template's mark: where a message spells a special token, that message is
tokenized without special tokens, and only the template's own text with them.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from ggufy.errors import ModelError
from ggufy.llamacpp import gguf_reader
from ggufy.model import template
from ggufy.model.template import ChatTemplate, Message

DATE_KEY = "general.ggufy.date"
# Of a message, beside its role and its content: what templates write of calls and of what came of them.
_FURTHER = ("tool_calls", "tool_call_id", "name")
_KEYS = (template.KEY, template.TOOLS_KEY, DATE_KEY)


class Prompts:
    """The template and the tokenizer of one loaded GGUF. Raises ModelError where it has no template."""

    def __init__(self, llama: Any, path: Path, day: date | None = None) -> None:
        texts = gguf_reader.read_gguf(path, _KEYS).texts
        self.llama = llama
        self.day = day or _day(texts.get(DATE_KEY)) or date.today()
        special = {"bos_token": self._piece(llama.token_bos()), "eos_token": self._piece(llama.token_eos())}
        self.template = ChatTemplate.from_keys(texts, special, path.as_posix())

    def tokens(
        self,
        conversation: Sequence[Message],
        said: Mapping[str, Sequence[int]] | None = None,
        tools: list[Any] | None = None,
    ) -> list[int]:
        """The prompt for the next answer, which may be a call of one of the `tools` (JSON schemas of functions).

        `said` holds the tokens of answers that the model gave: they are put in as they were, so that what llama.cpp has
        evaluated already need not be evaluated again. (A text can often be spelt in several tokens.)

        Raises ModelError where the template refuses the conversation, or has no place for its tools and calls.
        """
        shown: list[Message] = []
        stand_ins = _StandIns(self)
        for message in conversation:
            # What a terminal could not decode arrives as half surrogates, which no tokenizer takes.
            spoken = message["content"].encode("utf-8", "replace").decode("utf-8")
            tokens = self._spelling(message["role"], spoken, said or {})
            if tokens is not None:
                spoken = stand_ins.put(spoken, tokens)
            further = {key: value for key, value in message.items() if key in _FURTHER}
            shown.append({"role": message["role"], "content": spoken, **stand_ins.within(further)})
        offered = stand_ins.within(tools)
        text = self.template.render(shown, self.day, generate=True, tools=offered)
        self._check_shown(shown, offered, text)
        found = stand_ins.tokens(text)
        bos = self.llama.token_bos()
        if bos >= 0 and self.llama._model.add_bos_token() and found[:1] != [bos]:
            found.insert(0, bos)
        return found

    def _check_shown(self, shown: Sequence[Message], tools: list[Any] | None, text: str) -> None:
        """Raise ModelError for what has to do with tools and that the template leaves out."""
        where = f"{self.template.where}: the model's chat template"
        for tool in tools or ():
            if tool["function"]["name"] not in text:
                raise ModelError(f"{where} has no place for tools")
        for message in shown:
            content = message["content"].strip()
            if any(call["function"]["name"] not in text for call in message.get("tool_calls", ())):
                raise ModelError(f"{where} has no place for calls of tools")
            if "tool_calls" in message and content not in text:
                raise ModelError(f"{where} leaves out what the assistant says beside a call: {content[:60]!r}")
            if message["role"] == "tool" and content not in text and _in_json(content) not in text:
                raise ModelError(f"{where} has no place for what tools answer")

    def _spelling(self, role: str, text: str, said: Mapping[str, Sequence[int]]) -> Sequence[int] | None:
        """The tokens of a message that must not be left to the tokenizer of the whole, or None."""
        # A template may trim what is said; then the spaces around it are not what the model was shown.
        if role == "assistant" and text in said and text == text.strip():
            return said[text]
        if self.spells_marks(text):
            return self.tokenize(text.strip(), special=False)
        return None

    def spells_marks(self, text: str) -> bool:
        """Whether a tokenizer of the whole would read a special token in this text."""
        return self.tokenize(text, special=True) != self.tokenize(text, special=False)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return list(self.llama.tokenize(text.encode(), add_bos=False, special=special))

    def _piece(self, token: int) -> str:
        return str(self.llama._model.token_get_text(token)) if token >= 0 else ""


class _StandIns:
    """Words that nobody can have typed, which stand for texts while a template is rendered."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts
        self._texts: dict[str, tuple[str, Sequence[int] | None]] = {}

    def put(self, text: str, tokens: Sequence[int] | None = None) -> str:
        """A word for a text, which is to become these tokens, or those of its letters alone."""
        word = f"ggufy{secrets.token_hex(16)}"
        self._texts[word] = (text, tokens)
        # In JSON the last sign has a backslash before it. By that it is seen that the text has to be written so, too.
        return f'{word}"'

    def within(self, value: Any) -> Any:
        """Of JSON: with words in place of the texts that spell special tokens."""
        if isinstance(value, str):
            return self.put(value) if self.prompts.spells_marks(value) else value
        if not isinstance(value, dict | list) or not self.prompts.spells_marks(json.dumps(value, ensure_ascii=False)):
            return value
        if isinstance(value, list):
            return [self.within(one) for one in value]
        return {self.within(key): self.within(one) for key, one in value.items()}

    def tokens(self, text: str) -> list[int]:
        """The tokens of what was rendered."""
        found: list[int] = []
        pieces = re.split(f'({"|".join(self._texts)})(\\\\*")', text) if self._texts else [text]
        for at in range(0, len(pieces), 3):
            found += self.prompts.tokenize(pieces[at], special=True)
            if at + 2 < len(pieces):
                found += self._stood_for(pieces[at + 1], pieces[at + 2])
        return found

    def _stood_for(self, word: str, sign: str) -> Sequence[int]:
        text, tokens = self._texts[word]
        if sign == '"' and tokens is not None:
            return tokens
        # One backslash: JSON. Three: JSON in a text in JSON.
        for _ in range(len(sign).bit_length() - 1):
            text = _in_json(text)
        return self.prompts.tokenize(text, special=False)


def _in_json(text: str) -> str:
    """A text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None
