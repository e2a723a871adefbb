"""The verdict from a judge's grades: averages, the difference to base with its interval, the effect of the order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.evaluate.judge.judge import Replies
from ggufy.evaluate.judge.plan import BASE, TUNED, Call, Item, Plan
from ggufy.evaluate.judge.prompt import CRITERIA, Grades
from ggufy.evaluate.metrics import intervals
from ggufy.evaluate.metrics.intervals import Interval

MEAN = "mean"


@dataclass(frozen=True)
class Failed:
    """A question of an item that got no grades."""

    id: str
    shown_first: str
    kind: str
    detail: str


@dataclass(frozen=True)
class Graded:
    """One item with all its grades: for each order in which the answers were shown, those of each."""

    item: Item
    orders: tuple[tuple[tuple[str, ...], tuple[Grades, ...]], ...]

    def of(self, who: str, criterion: str = MEAN) -> float:
        """The grade of one answer: the mean over the orders, so that a liking for the first answer cancels out."""
        found = [getattr(grades[order.index(who)], criterion) for order, grades in self.orders]
        return math.fsum(found) / len(found)

    def change(self, criterion: str = MEAN) -> float:
        return self.of(TUNED, criterion) - self.of(BASE, criterion)

    @property
    def leads(self) -> list[float]:
        """In each order: by how much the tuned answer was graded above base's."""
        return [grades[order.index(TUNED)].mean - grades[order.index(BASE)].mean for order, grades in self.orders]

    @property
    def first_advantage(self) -> float:
        """By how much an answer gains from being shown first."""
        before, after = self.leads
        return (after - before) / 2

    @property
    def turned(self) -> bool:
        """Whether the judge took the other side once the answers had changed places."""
        before, after = self.leads
        return before * after < 0

    def values(self) -> dict[str, Any]:
        """For the report's JSON."""
        whose = [TUNED] if self.item.base is None else [BASE, TUNED]
        return {
            "id": self.item.id,
            **{who: {name: self.of(who, name) for name in (MEAN, *CRITERIA)} for who in whose},
            "replies": [
                {
                    "shown_first": order[0],
                    **{who: given.model_dump() for who, given in zip(order, grades, strict=True)},
                }
                for order, grades in self.orders
            ],
        }


@dataclass(frozen=True)
class Verdict:
    """Of one model."""

    model: str
    rows: list[Graded]
    failed: list[Failed]
    seed: int = 0

    @property
    def items(self) -> int:
        """Answers that were to be judged."""
        return len(self.rows) + len({failed.id for failed in self.failed})

    @property
    def paired(self) -> bool:
        return bool(self.rows) and self.rows[0].item.base is not None

    def average(self, who: str = TUNED, criterion: str = MEAN) -> float | None:
        return math.fsum(row.of(who, criterion) for row in self.rows) / len(self.rows) if self.rows else None

    def interval(self, criterion: str = MEAN) -> Interval | None:
        """Of the difference to base; None without a base, or without grades."""
        return (
            intervals.bootstrap([row.change(criterion) for row in self.rows], seed=self.seed) if self.paired else None
        )

    @property
    def says(self) -> str:
        """The verdict in words."""
        interval = self.interval()
        return interval.verdict() if interval else ""

    def better_same_worse(self) -> tuple[int, int, int]:
        changes = [row.change() for row in self.rows] if self.paired else []
        return (
            sum(change > 1e-9 for change in changes),
            sum(abs(change) <= 1e-9 for change in changes),
            sum(change < -1e-9 for change in changes),
        )

    @property
    def first_advantage(self) -> float | None:
        return math.fsum(row.first_advantage for row in self.rows) / len(self.rows) if self.paired else None

    @property
    def turned(self) -> int:
        return sum(row.turned for row in self.rows) if self.paired else 0

    def kinds(self) -> str:
        """How many questions failed, in which ways: "2 timeout, 1 refusal"."""
        return ", ".join(f"{count} {kind}" for kind, count in Counter(f.kind for f in self.failed).most_common())

    def values(self) -> dict[str, Any]:
        """For the report's JSON."""
        better, same, worse = self.better_same_worse()
        names = (MEAN, *CRITERIA)
        found = {name: self.interval(name) for name in names}
        return {
            "model": self.model,
            "answers": self.items,
            "judged": len(self.rows),
            **({BASE: {name: self.average(BASE, name) for name in names}} if self.paired else {}),
            TUNED: {name: self.average(TUNED, name) for name in names},
            "difference": {name: interval.values() if interval else None for name, interval in found.items()},
            "says": self.says,
            "better": better,
            "same": same,
            "worse": worse,
            "advantage_of_being_first": self.first_advantage,
            "turned_with_the_order": self.turned,
            "failed": [vars(failed) for failed in self.failed],
            "rows": [row.values() for row in self.rows],
        }


def verdicts(plan: Plan, replies: Replies, seed: int = 0) -> list[Verdict]:
    """One verdict for each model of the plan's items. An item without all its grades counts in none of the figures."""
    by_item: dict[int, list[Call]] = {}
    for call in plan.calls:
        by_item.setdefault(call.item, []).append(call)
    found: dict[str, tuple[list[Graded], list[Failed]]] = {}
    for index, calls in by_item.items():
        item = plan.items[index]
        rows, failed = found.setdefault(item.model, ([], []))
        if all(call.key in replies.grades for call in calls):
            rows.append(Graded(item, tuple((call.order, tuple(replies.grades[call.key])) for call in calls)))
        else:
            failed += _failed(item, calls, replies)
    return [Verdict(model, rows, failed, seed) for model, (rows, failed) in found.items()]


def _failed(item: Item, calls: Sequence[Call], replies: Replies) -> list[Failed]:
    gone = [(call, replies.failures[call.key]) for call in calls if call.key not in replies.grades]
    return [Failed(item.id, call.order[0], failure.kind, failure.detail) for call, failure in gone]
