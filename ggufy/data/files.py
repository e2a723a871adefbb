"""Reading rows from files, one at a time: JSON lines, JSON, Parquet, CSV and Arrow.

A row comes with its number (the line in JSON lines, else the row), as the bytes of a JSON line, as what it holds, or
as `Broken`: what is wrong with it. JSON lines are parsed later, by whoever uses the row, on any core.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggufy.data.readers import columnar, csv_rows, json_rows
from ggufy.data.readers.row import BadRow, Broken, Joined, parse

__all__ = ["SUFFIXES", "BadRow", "Broken", "Joined", "by_line", "count", "is_known", "parse", "read"]

_READERS = {
    ".jsonl": json_rows.read,
    ".json": json_rows.read,
    ".parquet": columnar.parquet,
    ".csv": csv_rows.read,
    ".arrow": columnar.arrow,
}
_COUNTS = {".parquet": columnar.count_parquet, ".arrow": columnar.count_arrow}
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
"""Of the files that are looked for in a folder or a data set of the Hub."""


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file with their numbers. Raises DataError where it cannot be read at all."""
    return _READERS[path.suffix](path)


def is_known(path: Path) -> bool:
    return path.suffix in _READERS


def by_line(path: Path) -> bool:
    """Whether the numbers of its rows are lines."""
    return path.suffix in (".jsonl", ".json") and json_rows.layout(path) != json_rows.WHOLE


def count(path: Path) -> int:
    """How many rows a file has, without looking into them."""
    counted = _COUNTS.get(path.suffix)
    return counted(path) if counted else sum(1 for _ in read(path))
