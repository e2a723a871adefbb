"""The texts that models are measured on: token ids, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ggufy.errors import EvalError
from ggufy.system import digest

IGNORED = -100


@dataclass(frozen=True)
class Text:
    """A conversation as a model reads it. Labels are the ids that count, and -100 elsewhere, as in training."""

    ids: Sequence[int]
    labels: Sequence[int]

    @cached_property
    def key(self) -> str:
        """What this is, by content."""
        return digest.of_values([list(self.ids), list(self.labels)])

    @cached_property
    def wanted(self) -> list[bool]:
        """After which tokens the next one counts. The first token follows nothing, and never does."""
        last = max((at for at, label in enumerate(self.labels) if label != IGNORED), default=0)
        return [label != IGNORED for label in self.labels[1 : last + 1]]

    @cached_property
    def targets(self) -> list[int]:
        """The tokens that count, in order."""
        return [label for label in self.labels[1:] if label != IGNORED]

    @property
    def read(self) -> Sequence[int]:
        """The tokens that a model has to read for these: all before the last that counts."""
        return self.ids[: len(self.wanted)]


@dataclass(frozen=True)
class HeldOut:
    """Conversations that were not trained on."""

    name: str
    """Whose, for people."""
    texts: Sequence[Text]
    total: int
    """How many there are of which these are the first."""
    where: Sequence[str] = field(default=())
    """The place of each, for people."""

    @property
    def tokens(self) -> int:
        return sum(len(text.targets) for text in self.texts)

    @property
    def longest(self) -> int:
        return max(len(text.read) for text in self.texts)

    @property
    def keys(self) -> list[str]:
        return [text.key for text in self.texts]

    def place(self, index: int) -> str:
        return self.where[index] if self.where else f"conversation {index + 1} of {self.name}"

    def check_context(self, context: int, whose: str) -> None:
        """Raise EvalError where one of them does not fit into a context."""
        for index, text in enumerate(self.texts):
            if len(text.read) > context:
                raise EvalError(
                    f"{self.place(index)} is {len(text.read):,} tokens long, and {whose} holds {context:,}",
                    "give a larger --context where the model has it, or other conversations with --data FILE",
                )
