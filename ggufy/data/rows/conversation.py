"""What a row says: a conversation with the tools it may call, or a text without turns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

from ggufy.model.template import Message

UNTRAINED = "untrained"
"""A key of a message, never shown to a template: its turn is not trained on."""


class Conversation(list[Message]):
    """Messages as chat templates take them, and the tools that the assistant may call.

    A part of one, as `conversation[:2]`, keeps the tools: they are written before the first turn.
    """

    def __init__(self, messages: Iterable[Message] = (), tools: list[Any] | None = None) -> None:
        super().__init__(messages)
        self.tools = tools

    @overload
    def __getitem__(self, at: SupportsIndex) -> Message: ...
    @overload
    def __getitem__(self, at: slice) -> Conversation: ...
    def __getitem__(self, at: SupportsIndex | slice) -> Message | Conversation:
        if isinstance(at, slice):
            return Conversation(super().__getitem__(at), self.tools)
        return super().__getitem__(at)

    def shown(self) -> list[Message]:
        """The messages as a template is given them."""
        if not any(UNTRAINED in message for message in self):
            return self
        return [{key: value for key, value in message.items() if key != UNTRAINED} for message in self]


@dataclass(frozen=True)
class Plain:
    """A text without turns: what is given, and what has to follow it."""

    prompt: str
    completion: str


Sample = list[Message] | Plain
