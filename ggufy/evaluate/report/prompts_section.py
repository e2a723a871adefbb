"""The report's section on prompts: the models' answers side by side, with flags for what is plainly wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.evaluate.metrics.answers import Answer, Question
from ggufy.evaluate.metrics.flags import MEANINGS, Flag
from ggufy.evaluate.report.report import Marked, Note, Section, Table


@dataclass(frozen=True)
class Model:
    """What one model answered: an answer and its flags for each question."""

    name: str
    answers: Sequence[Answer]
    flags: Sequence[Sequence[Flag]]

    def count(self, flag: str) -> int:
        return sum(any(one.name == flag for one in found) for found in self.flags)

    @property
    def flagged(self) -> int:
        return sum(map(bool, self.flags))


def section(questions: Sequence[Question], models: Sequence[Model], source: str) -> Section:
    raised = [flag for flag in MEANINGS if any(model.count(flag) for model in models)]
    counts = Table(
        ("model", "answers", "flagged", *raised),
        tuple(
            (model.name, len(model.answers), model.flagged, *(model.count(flag) for flag in raised)) for model in models
        ),
    )
    meanings = "; ".join(f"{flag}: {MEANINGS[flag]}" for flag in raised)
    side_by_side = Table(
        ("question", *(model.name for model in models)),
        tuple(
            (_asked(question), *(_said(model.answers[n], model.flags[n]) for model in models))
            for n, question in enumerate(questions)
        ),
        wide=True,
    )
    told = f"{len(questions)} questions ({source}), each asked once, always the likeliest token."
    flags = f"Flags are rules, not judgements. {meanings}." if meanings else "No answer was flagged."
    values = {
        "source": source,
        "models": [_counts(model) for model in models],
        "questions": [
            {
                "id": question.id,
                "conversation": question.conversation,
                "expected": question.expected,
                "answers": {model.name: _values(model.answers[n], model.flags[n]) for model in models},
            }
            for n, question in enumerate(questions)
        ],
    }
    return Section("prompts", "Answers side by side", (Note(told), counts, Note(flags), side_by_side), values)


def _asked(question: Question) -> Marked:
    turns = question.conversation
    if len(turns) == 1:
        text = turns[0]["content"]
    else:
        text = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    note = f"expected: {question.expected}" if question.expected else ""
    return Marked(f"{question.id}\n{text}", note=note)


def _said(answer: Answer, flags: Sequence[Flag]) -> Marked:
    tags = tuple(f"{flag.name}: {flag.detail}" for flag in flags)
    return Marked(answer.text, tags=tags, note=f"{answer.tokens} tokens, {answer.seconds:.1f} s")


def _counts(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "answers": len(model.answers),
        "flagged": model.flagged,
        "flags": {flag: model.count(flag) for flag in MEANINGS},
    }


def _values(answer: Answer, flags: Sequence[Flag]) -> dict[str, Any]:
    return {
        "text": answer.text,
        "tokens": answer.tokens,
        "seconds": answer.seconds,
        "ended": answer.ended,
        "flags": {flag.name: flag.detail for flag in flags},
    }
