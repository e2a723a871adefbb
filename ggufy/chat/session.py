"""A chat session with one model, or with two side by side: questions, answers and history."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ggufy.chat.conversation import Conversation
from ggufy.chat.model import ChatModel, Sampling, describe
from ggufy.errors import ChatError
from ggufy.system import interrupts


class Screen(Protocol):
    """Where the pieces of an answer go. `side` counts the models."""

    def begin(self, side: int) -> None: ...

    def add(self, side: int, text: str) -> None: ...

    def end(self, side: int, note: str) -> None:
        """The answer is over; `note` is what it cost."""

    def close(self) -> None:
        """All answers that come are there."""


@dataclass
class Side:
    """A model and what was said with it."""

    name: str
    model: ChatModel
    conversation: Conversation = field(default_factory=Conversation)

    def size(self, question: str | None = None) -> int:
        """Tokens of what the model sees."""
        return len(self.model.tokens(self.conversation.messages(question)))


class Session:
    """`sides` is one model, or two that are compared."""

    def __init__(self, models: Sequence[ChatModel], system: str | None, sampling: Sampling) -> None:
        names = [model.path.stem for model in models]
        if len(set(names)) < len(names):
            names = [model.path.as_posix() for model in models]
        self.sides = [Side(name, model, Conversation(system)) for name, model in zip(names, models, strict=True)]
        self.sampling = sampling
        self.saved: set[Path] = set()
        """Files of this session, which may be written again."""

    @property
    def comparing(self) -> bool:
        return len(self.sides) > 1

    def make_room(self, question: str) -> list[str]:
        """Drop the oldest exchanges from the models' sight where the context is full. Returns what there is to say."""
        notes = []
        for side in self.sides:
            if dropped := self._make_room(side, question):
                which = f"{side.name}: " if self.comparing else ""
                what = "oldest exchange is" if dropped == 1 else f"{dropped} oldest exchanges are"
                notes.append(f"({which}the context is full: the {what} no longer seen)")
        return notes

    def _make_room(self, side: Side, question: str) -> int:
        context = side.model.context
        room = context - min(self.sampling.max_tokens, context // 4)
        if side.size(question) <= room:
            return 0
        # A little more than is needed: after each drop everything behind it has to be evaluated again. Where that
        # cannot be, what is needed, and last what leaves a word's room for the answer.
        for wanted in (room - context // 8, room, context - 1):
            if dropped := side.conversation.make_room(
                question, lambda messages: len(side.model.tokens(messages)), wanted
            ):
                return dropped
        return 0

    def ask(self, question: str, screen: Screen) -> bool:
        """Ask every side and show its answer; returns whether Ctrl-C stopped it.

        The exchange is remembered if every side said something. Raises ChatError where it does not fit.
        """
        for side in self.sides:
            _check(side, question)
        answers: list[str] = []
        stopped = False
        try:
            for number in range(len(self.sides)):
                text, stopped = self._answer(number, question, screen)
                if text:
                    answers.append(text)
                if stopped:
                    break
        finally:
            screen.close()
        if len(answers) == len(self.sides):
            for side, answer in zip(self.sides, answers, strict=True):
                side.conversation.add(question, answer)
        return stopped

    def _answer(self, number: int, question: str, screen: Screen) -> tuple[str, bool]:
        side, stopped = self.sides[number], False
        said: list[str] = []
        screen.begin(number)
        try:
            with closing(side.model.answer(side.conversation.messages(question), self.sampling)) as pieces:
                for piece in pieces:
                    said.append(piece)
                    screen.add(number, piece)
        except KeyboardInterrupt:
            stopped = True
        try:
            # What there is of an answer is shown whole, however often Ctrl-C is pressed.
            with interrupts.held():
                screen.end(number, self.cost(side))
        except KeyboardInterrupt:
            stopped = True
        return "".join(said), stopped

    def cost(self, side: Side) -> str:
        """What the last answer cost, and how full the context is."""
        figures = side.model.figures
        used = figures.prompt_tokens + figures.tokens
        return f"[{describe(figures)}; context {used:,} of {side.model.context:,}]"


def _check(side: Side, question: str) -> None:
    """Raise ChatError where a question does not even fit alone."""
    alone = len(side.model.tokens(Conversation(side.conversation.system).messages(question)))
    if alone >= side.model.context:
        raise ChatError(
            f"the conversation is {alone:,} tokens long even without what was said before, "
            f"and the context holds {side.model.context:,}",
            side.model.room_hint(),
        )
