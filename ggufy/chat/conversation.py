"""The conversation so far: a system turn and exchanges, and which of them the model still sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ggufy.model.template import Message


@dataclass
class Conversation:
    """Exchanges, each a question and its answer, under a system turn that is never dropped."""

    system: str | None = None
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    unseen: int = 0
    """How many of the oldest exchanges the model does not see any more."""

    def messages(self, question: str | None = None) -> list[Message]:
        """What the model sees, with a question to be answered."""
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in self.exchanges[self.unseen :]:
            found += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return found if question is None else [*found, {"role": "user", "content": question}]

    def make_room(self, question: str, size: Callable[[Sequence[Message]], int], room: int) -> int:
        """Let the model see fewer of the oldest exchanges, whole ones, until `size` fits into `room` tokens.

        Returns how many are newly out of its sight. Where not even the question alone fits, none is.
        """
        before = self.unseen
        while size(self.messages(question)) > room:
            if self.unseen == len(self.exchanges):
                self.unseen = before
                return 0
            self.unseen += 1
        return self.unseen - before

    def add(self, question: str, answer: str) -> None:
        self.exchanges.append((question, answer))

    def undo(self) -> tuple[str, str] | None:
        """Take the last exchange back. What was dropped for its sake may be seen again."""
        last = self.exchanges.pop() if self.exchanges else None
        self.unseen = 0
        return last

    def reset(self) -> None:
        self.exchanges.clear()
        self.unseen = 0

    def everything(self) -> list[Message]:
        """All that was said, whether the model still sees it or not."""
        return Conversation(self.system, self.exchanges).messages()

    def copy(self) -> Conversation:
        """One that goes on by itself."""
        return Conversation(self.system, list(self.exchanges))
