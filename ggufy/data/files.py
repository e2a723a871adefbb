"""Reading rows from files, one at a time: JSON lines, JSON, Parquet and CSV.

A row comes with its number (the line in JSON lines, else the row), as the bytes of a JSON line, as what it holds, or
as `Broken`: what is wrong with it. JSON lines are parsed later, by whoever uses the row, on any core.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import DataError, MissingExtra

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# A turn of a megabyte is a field; csv's own bound is an eighth of that.
_LONGEST_FIELD = 1 << 30


class BadRow(ValueError):
    """What is wrong with a row, without its place, which the caller knows."""


@dataclass(frozen=True)
class Broken:
    """A row that could not be read."""

    problem: str


def parse(item: Any) -> Any:
    """What a row holds. Raises BadRow."""
    if isinstance(item, Broken):
        raise BadRow(item.problem)
    if not isinstance(item, bytes):
        return item
    try:
        return json.loads(item.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 text: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON: {error}") from None


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file with their numbers. Raises DataError where it cannot be read at all."""
    return _READERS[path.suffix](path)


def is_known(path: Path) -> bool:
    return path.suffix in _READERS


def by_line(path: Path) -> bool:
    """Whether the numbers of its rows are lines."""
    return path.suffix == ".jsonl" or (path.suffix == ".json" and not _is_list(path))


def count(path: Path) -> int:
    """How many rows a file has, without looking into them."""
    if path.suffix == ".parquet":
        return int(_parquet(path).metadata.num_rows)
    return sum(1 for _ in read(path))


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                _refuse_utf16(path, raw)
                raw = raw.removeprefix(_BOM)
            if raw.strip():
                yield number, raw


def _refuse_utf16(path: Path, head: bytes) -> None:
    if head.startswith(_UTF16) or b"\0" in head[:4]:
        raise DataError(f"{path.as_posix()}: is UTF-16 text, not UTF-8", "save the file as UTF-8")


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """One list of rows; but what begins like a row and is one on its first line is JSON lines."""
    if not _is_list(path):
        yield from _lines(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path.as_posix()}: not UTF-8 text: {error.reason}", "save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        hint = "a .json file holds one list of rows; for one row per line, rename it to .jsonl"
        raise DataError(f"{path.as_posix()}: not JSON: {error}", hint) from None
    if not isinstance(rows, list):
        raise DataError(
            f"{path.as_posix()}: holds {type(rows).__name__}, not a list of rows", "make it a list of objects"
        )
    yield from enumerate(rows, 1)


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
        _refuse_utf16(path, head)
        if head.removeprefix(_BOM).lstrip().startswith(b"["):
            return True
        first = head + file.readline()
    try:
        return not isinstance(json.loads(first.removeprefix(_BOM).split(b"\n")[0]), dict)
    except (ValueError, RecursionError):
        return True


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as raw:
        _refuse_utf16(path, raw.read(4))
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            names = next(lines, [])
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError(f"{path.as_posix()}: two columns are named {twice!r}", "rename one of them")
            for number, values in enumerate((line for line in lines if line), 1):
                if len(values) == len(names):
                    yield number, dict(zip(names, values, strict=True))
                else:
                    yield number, Broken(f"{len(values)} fields, but {len(names)} columns")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.as_posix()}: not UTF-8 text: {error.reason}", "save the file as UTF-8") from None
    except csv.Error as error:
        hint = 'fields with commas, quotes or line breaks are quoted with ", and a quote in them is doubled'
        raise DataError(f"{path.as_posix()}:{lines.line_num}: not CSV: {error}", hint) from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _parquet(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _bad_parquet(path, error, f" after row {number}" if number else "") from None


def _parquet(path: Path) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtra("reading Parquet", "train", "pyarrow") from None
    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _bad_parquet(path, error) from None


def _bad_parquet(path: Path, error: Exception, where: str = "") -> DataError:
    if isinstance(error, FileNotFoundError | PermissionError):
        raise error
    reason = " ".join(str(error).split())[:160]
    return DataError(
        f"{path.as_posix()}: cannot be read as Parquet{where}: {reason}",
        "it may have been cut short: copy or download it again",
    )


_READERS = {".jsonl": _lines, ".json": _json, ".parquet": _parquet_rows, ".csv": _csv}
SUFFIXES = tuple(_READERS)
