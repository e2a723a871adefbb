"""Answers that call functions against the calls that a data set has: the right function, and the right arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.evaluate.metrics import intervals
from ggufy.evaluate.metrics.intervals import Interval
from ggufy.model.tool_calls import Call, Syntax


@dataclass(frozen=True)
class Row:
    """One answer, and what the data has in its place."""

    number: int
    """Of the held-out row, from 1."""
    wanted: list[Call]
    said: list[Call]
    text: str
    """What the model said, word for word."""

    @property
    def function(self) -> bool:
        """As many calls, of the same functions in the same order."""
        return [call.name for call in self.wanted] == [call.name for call in self.said]

    @property
    def arguments(self) -> bool:
        """The right function with the right arguments: as JSON has it, so 1 is 1.0 and no order counts but a list's."""
        return self.function and all(_same(*pair) for pair in zip(self.wanted, self.said, strict=True))


@dataclass(frozen=True)
class Calls:
    """Of one model."""

    rows: list[Row]
    """Those where the data has a call."""
    texts: int
    """Rows where the data has a text."""
    needless: int
    """Of these, those where the model calls a function."""

    @property
    def functions(self) -> int:
        return sum(row.function for row in self.rows)

    @property
    def arguments(self) -> int:
        return sum(row.arguments for row in self.rows)

    def values(self) -> dict[str, Any]:
        """For the report's JSON."""
        return {
            "rows": len(self.rows),
            "right_function": self.functions,
            "right_arguments": self.arguments,
            "rows_without_a_call": self.texts,
            "needless_calls": self.needless,
            "by_row": [
                {
                    "row": row.number,
                    "wanted": [vars(call) for call in row.wanted],
                    "called": [vars(call) for call in row.said],
                    "right_function": row.function,
                    "right_arguments": row.arguments,
                }
                for row in self.rows
            ],
        }


def score(answers: Sequence[str], references: Sequence[str], syntax: Syntax) -> Calls:
    """Each answer against its one reference, both as the chat template writes calls."""
    rows: list[Row] = []
    needless = 0
    for number, (answer, reference) in enumerate(zip(answers, references, strict=True), 1):
        wanted, said = syntax.read(reference)[1], syntax.read(answer)[1]
        if wanted:
            rows.append(Row(number, wanted, said, answer))
        else:
            needless += bool(said)
    return Calls(rows, len(answers) - len(rows), needless)


def difference(tuned: Calls, base: Calls, seed: int = 0) -> Interval:
    """By how many points the share of right arguments grew from base to tuned, row by row."""
    changes = [100.0 * (new.arguments - old.arguments) for new, old in zip(tuned.rows, base.rows, strict=True)]
    return intervals.bootstrap(changes, seed=seed)


def _same(one: Call, other: Call) -> bool:
    return _equal(one.arguments, other.arguments)


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON; true is not 1, as it is in Python."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
