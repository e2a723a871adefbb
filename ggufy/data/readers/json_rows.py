"""Rows of JSON files: one a line, one list of rows, objects one after the other, or one object that holds the rows.

Which of these a file is is told from its beginning, not from its name. Only the first is read row by row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ggufy.data.readers.row import BOM, DECODER, BadRow, Broken, as_row, not_json, refuse_utf16
from ggufy.errors import DataError

LINES, WHOLE, OBJECTS = "lines", "whole", "objects"
"""Layouts: a row a line; one list, or one object that holds the rows; objects that go over several lines each."""

_PLAIN = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
# How far the first object of a file is looked for.
_HEAD = 1 << 20
# What rows are kept under, beside facts about them.
_WRAPPERS = ("data", "rows", "examples", "records", "instances", "items")
_TURNS = frozenset(("conversations", "messages"))
_COLUMNS = _TURNS.union(("instruction", "output", "prompt", "completion", "text"))


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows with their numbers: lines, but in a WHOLE file rows. Raises DataError."""
    how = layout(path)
    return _lines(path) if how == LINES else _objects(path) if how == OBJECTS else _whole(path)


def layout(path: Path) -> str:
    """How a file holds its rows. Raises DataError for UTF-16."""
    otherwise = WHOLE if path.suffix == ".json" else LINES
    with path.open("rb") as file:
        head = file.read(64)
        refuse_utf16(path, head)
        file.seek(len(BOM) if head.startswith(BOM) else 0)
        begins, first = file.tell(), next(_written(file), b"")
        try:
            value = _PLAIN.decode(first.decode("utf-8"))
        except (ValueError, RecursionError):
            if first.startswith(b"["):
                return WHOLE if first.endswith((b"[", b"{", b",")) else otherwise
            file.seek(begins)
            return _over_lines(file.read(_HEAD).decode("utf-8", "ignore"), otherwise)
        alone = not next(_written(file), b"")
    if isinstance(value, dict):
        return WHOLE if alone and rows_within(value) is not None else LINES
    is_row = as_row(value) is not value
    return LINES if is_row else WHOLE if alone and isinstance(value, list) else otherwise


def _written(file: IO[bytes]) -> Iterator[bytes]:
    return (line for raw in file if (line := raw.strip()))


def _over_lines(head: str, otherwise: str) -> str:
    """The layout of what is no JSON in its first line: perhaps an object goes on in the next."""
    begin = _after_space(head, 0)
    try:
        value, end = _PLAIN.raw_decode(head, begin)
    except (ValueError, RecursionError):
        return otherwise
    if not isinstance(value, dict) or "\n" not in head[begin:end]:
        return otherwise
    follows = head[_after_space(head, end) :]
    if follows.startswith("{"):
        return OBJECTS
    if follows:
        return otherwise
    return WHOLE if otherwise == WHOLE or rows_within(value) is not None else OBJECTS


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                refuse_utf16(path, raw)
                raw = raw.removeprefix(BOM)
            if raw.strip():
                yield number, raw


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.as_posix()}: not UTF-8 text: {error.reason}", "save the file as UTF-8") from None


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    text = _text(path)
    at, line, counted = _after_space(text, 0), 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _item(text, at)
        except (ValueError, RecursionError) as error:
            hint = "write one JSON object a line, as json.dumps does"
            raise DataError(f"{path.as_posix()}:{line}: {not_json(text[at : at + 99], error)}", hint) from None
        yield line, value
        at = _after_space(text, at)


def _item(text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends; Broken where it is JSON but no row."""
    try:
        value, end = DECODER.raw_decode(text, at)
        return as_row(value), end
    except BadRow as problem:
        return Broken(str(problem)), _PLAIN.raw_decode(text, at)[1]


def _whole(path: Path) -> Iterator[tuple[int, Any]]:
    place, text = path.as_posix(), _text(path)
    try:
        found = _found(text)
    except BadRow as problem:
        raise DataError(f"{place}: {problem}", "remove one of the two") from None
    except (ValueError, RecursionError) as error:
        hint = "a .json file holds one list of rows; for one row a line name it .jsonl"
        raise DataError(f"{place}: {not_json(text[:99], error)}", hint) from None
    rows = found if isinstance(found, list) else rows_within(found) if isinstance(found, dict) else None
    if rows is None:
        raise DataError(f"{place}: holds {type(found).__name__}, not a list of rows", _within(found))
    rows = [rows] if as_row(rows) is not rows else rows
    yield from ((number, as_row(row)) for number, row in enumerate(rows, 1))


def _found(text: str) -> Any:
    """What a file holds. Raises BadRow, ValueError and RecursionError."""
    try:
        return DECODER.decode(text)
    except BadRow:
        _PLAIN.decode(text)
        begin = _after_space(text, 0)
        if text[begin] != "[":
            raise
        return list(_each(text, begin + 1))


def _each(text: str, at: int) -> Iterator[Any]:
    """The items of a JSON list whose first begins there, those that are no rows as Broken."""
    at = _after_space(text, at)
    while text[at] != "]":
        value, at = _item(text, at)
        yield value
        at = _after_space(text, at)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _within(found: Any) -> str:
    lists = [key for key, value in found.items() if isinstance(value, list)] if isinstance(found, dict) else []
    return f"if its rows are under {lists[0]!r}, make the file that list" if lists else "make it a list of objects"


def rows_within(found: dict[str, Any]) -> list[Any] | None:
    """The rows of an object that can only be meant to hold them: as pandas writes a table, or under a usual key.

    {"prompt": {"0": "a", "1": "b"}, ...}, {"prompt": ["a", "b"], ...}, {"columns": ["prompt"], "data": [["a"], ["b"]]}
    and {"version": 1, "data": [{"prompt": "a"}, ...]}. None where it is a row itself, or something else.
    """
    columns = list(found.values())
    if columns and all(isinstance(column, dict) and column for column in columns):
        index = list(columns[0])
        if all(list(column) == index for column in columns) and all(number.isdecimal() for number in index):
            return [{name: column[number] for name, column in found.items()} for number in index]
    if columns and all(isinstance(column, list) and column for column in columns):
        flat = not any(isinstance(cell, dict | list) for column in columns for cell in column)
        if flat and not _TURNS & found.keys() and len({len(column) for column in columns}) == 1:
            return [dict(zip(found, cells, strict=True)) for cells in zip(*columns, strict=True)]
    names, rows = found.get("columns"), found.get("data")
    if isinstance(names, list) and isinstance(rows, list) and found.keys() <= {"columns", "index", "data"}:
        fit = all(isinstance(cells, list) and len(cells) == len(names) for cells in rows)
        return [dict(zip(map(str, names), cells, strict=True)) for cells in rows] if fit else None
    return _wrapped(found)


def _wrapped(found: dict[str, Any]) -> list[Any] | None:
    lists = [key for key, value in found.items() if isinstance(value, list)]
    if len(lists) != 1 or lists[0] not in _WRAPPERS or _COLUMNS & found.keys():
        return None
    rows: list[Any] = found[lists[0]]
    return rows if rows and all(isinstance(row, dict) for row in rows) and as_row(rows) is rows else None
