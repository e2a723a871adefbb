"""Rows of CSV files, with commas, or with what the header can only have been written with instead."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggufy.data.readers.row import BOM, Broken, refuse_utf16
from ggufy.errors import DataError

# A turn of a megabyte is a field; csv's own bound is an eighth of that.
_LONGEST_FIELD = 1 << 30
_OTHERS = (";", "\t", "|")
_TOLD = re.compile(r'"?sep=([^"\w\s]|\t)"?', re.IGNORECASE)


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows with their numbers, the header not counted. Raises DataError."""
    skipped, delimiter, spaced = _dialect(path)
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for _ in range(skipped):
                file.readline()
            lines = csv.reader(file, strict=True, delimiter=delimiter, skipinitialspace=spaced)
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
        place = f"{path.as_posix()}{_line_of_other_text(path)}"
        raise DataError(f"{place}: not UTF-8 text: {error.reason}", "save the file as UTF-8") from None
    except csv.Error as error:
        hint = 'fields with commas, quotes or line breaks are quoted with ", and a quote in them is doubled'
        raise DataError(f"{path.as_posix()}:{skipped + lines.line_num}: not CSV: {error}", hint) from None


def _dialect(path: Path) -> tuple[int, str, bool]:
    """How many lines are before the header, what stands between fields, and whether a space follows it.

    Excel's first line may say what stands there, as sep=; and empty lines may come before. Else it is told from the
    header: one that has a comma in it is one with commas; one that has none, but another delimiter, is of that. Raises
    DataError.
    """
    with path.open("rb") as file:
        refuse_utf16(path, file.read(4))
        file.seek(0)
        lines = (line.removeprefix(BOM).decode("utf-8", "replace").strip("\r\n") for line in file)
        skipped, header = next(((at, line) for at, line in enumerate(lines) if line.strip()), (0, ""))
    if told := _TOLD.fullmatch(header):
        return skipped + 1, told[1], False
    found = {mark: names for mark in (",", *_OTHERS) if len(names := _fields(header, mark)) > 1}
    if not found:
        return skipped, ",", False
    if "," not in found and len(found) > 1:
        marks = " and ".join(repr(mark) for mark in found)
        place = f"{path.as_posix()}:{skipped + 1}"
        raise DataError(f"{place}: the header may be divided at {marks}", "write the file with commas")
    mark, names = next(iter(found.items()))
    return skipped, mark, all(name.startswith(" ") for name in names[1:])


def _fields(header: str, mark: str) -> list[str]:
    try:
        return next(csv.reader([header], strict=True, delimiter=mark), [])
    except csv.Error:
        return []


def _line_of_other_text(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f":{number}"
    return ""
