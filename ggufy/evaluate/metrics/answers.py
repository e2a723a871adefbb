"""Questions to a model and its answers: asked once, kept as JSON lines.

An answer is found again by what made it: the model's content, the prompt, the sampling, and the day the model is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggufy.evaluate.metrics import rows
from ggufy.model.template import Message
from ggufy.system import digest, progress


@dataclass(frozen=True)
class Question:
    """One thing to ask: a conversation that ends with the user's turn."""

    id: str
    conversation: list[Message]
    expected: str | None = None
    """The right answer, where there is one."""
    language: str | None = None
    """The language an answer should be in, as "es"; None: that of the question."""
    tools: list[Any] | None = None
    """JSON schemas of the functions that may be called."""


@dataclass(frozen=True)
class Answer:
    """What one model said to one question."""

    id: str
    """The question's."""
    conversation: list[Message]
    text: str
    expected: str | None
    tokens: int
    seconds: float
    ended: bool
    """The model ended its turn itself."""


Ask = Callable[[Question], Answer]


def identity(model: str, sampling: Mapping[str, Any], question: Question) -> str:
    """The key of an answer. `model` says which by content; `sampling` is all else that an answer depends on."""
    offered = [question.tools] if question.tools else []
    return digest.of_values([model, dict(sampling), question.conversation, *offered])


def collect(
    questions: Sequence[Question],
    keys: Sequence[str],
    open_model: Callable[[], Ask],
    place: Path,
    known: Iterable[Mapping[str, rows.Row]] = (),
    what: str = "asking",
) -> list[Answer]:
    """Write the answers to `place`, asking what was not asked before. The model is opened only if it is needed.

    What is in `place` is taken for the work of an attempt that was cut short.
    """
    ask: list[Ask] = []

    def do(index: int) -> dict[str, Any]:
        if not ask:
            ask.append(open_model())
        answer = asdict(ask[0](questions[index]))
        return {name: answer[name] for name in ("id", "conversation", "text", "tokens", "seconds", "ended")}

    with progress.bar(what, len(questions)) as bar:
        found = rows.write(place, keys, do, known, lambda count: bar.update(count, f"{count} answers"))
    return [_answer(row, question) for row, question in zip(found, questions, strict=True)]


def read(path: Path, questions: Sequence[Question], keys: Sequence[str]) -> list[Answer]:
    """The answers in a finished file. Raises KeyError where one is not there."""
    found = rows.read(path)
    return [_answer(found[key], question) for key, question in zip(keys, questions, strict=True)]


def _answer(row: rows.Row, question: Question) -> Answer:
    """Of a row: the question's own name and right answer may have changed since; what was said has not."""
    return Answer(
        question.id,
        question.conversation,
        str(row["text"]),
        question.expected,
        int(row["tokens"]),
        float(row["seconds"]),
        bool(row["ended"]),
    )
