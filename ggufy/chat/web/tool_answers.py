"""Answers that call functions, as OpenAI's interface gives them: in `tool_calls`, also streamed."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ggufy.model.tool_calls import Call, Syntax

_SIGNS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Offer:
    """Which calls an answer may hold, and how its model writes them."""

    syntax: Syntax
    names: frozenset[str]
    several: bool
    """More than one at once."""

    def read(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """What is said, and the calls."""
        said, calls = self.syntax.read(text, self.names)
        return said, [_made(call) for call in (calls if self.several else calls[:1])]

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer in one piece, with its calls taken out of its text."""
        [choice] = answer["choices"]
        said, calls = self.read(choice["message"]["content"] or "")
        if not calls:
            return answer
        message = {**choice["message"], "content": said or None, "tool_calls": calls}
        return {**answer, "choices": [{**choice, "message": message, "finish_reason": _reason(choice)}]}

    def stream(self, chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """An answer in pieces. Text that may be a call is held back until that is decided; a call is one piece."""
        held, alone = "", True
        for chunk in chunks:
            [choice] = chunk["choices"]
            held += choice["delta"].get("content") or ""
            if choice["finish_reason"] is not None:
                said, calls = self.read(held)
                if said:
                    yield _piece(chunk, {"content": said})
                if calls:
                    numbered = [{"index": index, **call} for index, call in enumerate(calls)]
                    yield _piece(chunk, {"tool_calls": numbered})
                    chunk = {**chunk, "choices": [{**choice, "finish_reason": _reason(choice)}]}
                yield chunk
            elif "content" not in choice["delta"]:
                yield chunk
            else:
                free = self.syntax.begins(held, alone=alone)
                text, held = held[:free], held[free:]
                if text:
                    alone = False
                    yield _piece(chunk, {"content": text})


def _reason(choice: dict[str, Any]) -> str:
    """An answer that was cut short may have been about to call another function."""
    return "tool_calls" if choice["finish_reason"] == "stop" else str(choice["finish_reason"])


def _piece(chunk: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    return {**chunk, "choices": [{**chunk["choices"][0], "delta": delta, "finish_reason": None}]}


def _made(call: Call) -> dict[str, Any]:
    """With an id of nine letters and digits: Mistral's template takes no other ones back."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    number = "".join(secrets.choice(_SIGNS) for _ in range(9))
    return {"id": number, "type": "function", "function": {"name": call.name, "arguments": arguments}}
