"""Split expressions: `train`, `train[:10000]`, `train[10%:20%]`, `train[-500:]`, joined by +."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ggufy.errors import DataError

_BOUND = r"(?:-?\d+%?)?"
_PART = re.compile(rf"([\w.-]+)(?:\[\s*({_BOUND})\s*:\s*({_BOUND})\s*\])?")


@dataclass(frozen=True)
class Slice:
    """Some rows of a split."""

    name: str
    start: str = ""
    stop: str = ""

    def bounds(self, count: Callable[[], int]) -> tuple[int, int | None]:
        """First row and the one after the last, None being the end. `count` is asked only where they need it."""
        if not any(mark in self.start + self.stop for mark in "%-"):
            return int(self.start or 0), int(self.stop) if self.stop else None
        total = count()
        return _at(self.start or "0", total), _at(self.stop, total) if self.stop else total


def parse(expression: str) -> list[Slice]:
    """Raises DataError where it is none."""
    slices = []
    for text in expression.split("+"):
        found = _PART.fullmatch(text.strip())
        if not found:
            raise DataError(
                f"data.split: {expression!r} is no split",
                "write a name such as train, or a part: train[:10000], train[10%:20%], train[-500:]",
            )
        slices.append(Slice(found[1], found[2] or "", found[3] or ""))
    return slices


def _at(bound: str, total: int) -> int:
    number = round(int(bound[:-1]) * total / 100) if bound.endswith("%") else int(bound)
    return min(total, max(0, number + total if number < 0 else number))
