"""Rows that are held out and trained on too: those that are so by what the recipe says, and those found by content."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ggufy.data import files
from ggufy.data.source import Source
from ggufy.errors import DataError
from ggufy.recipe.schema import Data


class Seen:
    """Hashes of the rows that are trained on, 8 bytes each."""

    def __init__(self) -> None:
        self._hashes: array[int] = array("Q")
        self._sorted: Any = None

    def add(self, said: Iterable[int]) -> None:
        self._hashes.extend(said)

    def close(self) -> int:
        """How many of them were there before; after this none is added."""
        import numpy as np

        # In the place where they are.
        self._sorted = np.frombuffer(self._hashes, dtype=np.uint64) if self._hashes else np.zeros(0, np.uint64)
        self._sorted.sort()
        return int(np.count_nonzero(self._sorted[1:] == self._sorted[:-1]))

    def count(self, said: Iterable[int]) -> int:
        """How many of these are among them."""
        import numpy as np

        asked = np.fromiter(said, dtype=np.uint64)
        if not len(asked) or not len(self._sorted):
            return 0
        places = np.minimum(np.searchsorted(self._sorted, asked), len(self._sorted) - 1)
        return int(np.count_nonzero(self._sorted[places] == asked))


class Stretch(NamedTuple):
    """Rows of one file, from the first to before the last, counted from 0."""

    path: Path
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def refuse(source: Source, data: Data, train_size: int | None, eval_size: int | None) -> None:
    """Raise DataError where rows are held out and trained on by what the recipe says, whatever they hold.

    `train_size` and `eval_size` are in rows; None is all. Rows are counted only where both are of the same file.
    """
    held_out = source.held_out
    if held_out is None:
        return
    trained = [source, *source.more]
    if not set(_files(held_out)).intersection(path for one in trained for path in _files(one)):
        return
    counted = cache(files.count)
    apart = list(_first(_stretches(held_out, counted), eval_size))
    there = [stretch for one in trained for stretch in _stretches(one, counted)]
    total = sum(stretch.rows for stretch in there)
    weighted = len(trained) > 1 and any(part.weight for part in (data, *data.more))
    in_order = data.shuffle_seed is None and not weighted
    if in_order:
        shared = _shared(_first(there, train_size), apart)
    else:
        # Any rows may be the first of them; so many have to be of those that are held out.
        taken = total if train_size is None else min(train_size, total)
        taken = 0 if weighted and train_size is None else taken
        shared = max(0, taken - total + _shared(there, apart))
    if not shared and not (weighted and _shared(there, apart) == total):
        return
    held = sum(stretch.rows for stretch in apart)
    least = "" if in_order else "at least "
    what = f"{source.name}: {least}{shared or 1:,} of the {held:,} held-out rows are trained on"
    if data.eval_split:
        raise DataError(
            f"{what}: data.split is {data.split!r} and data.eval_split {data.eval_split!r}",
            "choose parts that share no row, such as train[:90%] and train[90%:], or set data.eval_size=10% instead",
        )
    raise DataError(
        f"{what}: data.eval_source {data.eval_source!r} is read for both",
        "name another file, or leave out data.eval_source and set data.eval_size=10%",
    )


def _files(source: Source) -> Iterator[Path]:
    return (path.resolve() for _, paths in source.parts() for path in paths)


def _stretches(source: Source, counted: Any) -> Iterator[Stretch]:
    """The rows of a source by their files, in the order in which they are read."""
    for part, paths in source.parts():
        sizes = [counted(path.resolve()) for path in paths]
        total = sum(sizes)
        start, stop = part.bounds(lambda total=total: total)  # type: ignore[misc]
        stop, before = total if stop is None else min(stop, total), 0
        for path, size in zip(paths, sizes, strict=True):
            first, last = max(start - before, 0), min(stop - before, size)
            if first < last:
                yield Stretch(path.resolve(), first, last)
            before += size


def _first(stretches: Iterable[Stretch], rows: int | None) -> Iterator[Stretch]:
    for one in stretches:
        if rows is None:
            yield one
        elif rows > 0:
            yield one._replace(stop=min(one.stop, one.start + rows))
            rows -= one.rows


def _shared(some: Iterable[Stretch], others: list[Stretch]) -> int:
    """How many rows of the others are among some."""
    mine: dict[Path, list[Stretch]] = {}
    for one in some:
        mine.setdefault(one.path, []).append(one)
    rows = 0
    for other in others:
        # Where a split is named twice, a row counts once.
        at = other.start
        for one in sorted(mine.get(other.path, ())):
            first, last = max(one.start, at), min(one.stop, other.stop)
            rows += max(0, last - first)
            at = max(at, last)
    return rows
