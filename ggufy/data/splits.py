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
        start, stop = _at(self.start or "0", total), _at(self.stop, total) if self.stop else total
        if stop < start:
            raise self.reversed(f": of {total:,} rows it is {start:,} to {stop:,}")
        return start, stop

    def reversed(self, why: str = "") -> DataError:
        """The error for one whose end comes before its start."""
        hint = f"write the lower bound first, as in {self.name}[{self.stop}:{self.start}]"
        return DataError(f"data.split: '{self.name}[{self.start}:{self.stop}]' ends before it begins{why}", hint)


def parse(expression: str) -> list[Slice]:
    """Raises DataError where it is none."""
    slices = []
    for text in expression.split("+"):
        found = _PART.fullmatch(text.strip())
        if not found:
            raise DataError(
                f"data.split: {expression!r} is not a split",
                "write a name such as train, or a part: train[:10000], train[10%:20%], train[-500:]",
            )
        part = Slice(found[1], found[2] or "", found[3] or "")
        if part.start and part.stop and _kind(part.start) == _kind(part.stop):
            start, stop = (int(bound.rstrip("%")) for bound in (part.start, part.stop))
            if stop < start:
                raise part.reversed()
        slices.append(part)
    return slices


def _kind(bound: str) -> tuple[bool, bool]:
    """Two bounds of one kind can be compared without knowing how many rows there are."""
    return bound.startswith("-"), bound.endswith("%")


def _at(bound: str, total: int) -> int:
    number = round(int(bound[:-1]) * total / 100) if bound.endswith("%") else int(bound)
    return min(total, max(0, number + total if number < 0 else number))
