"""One row: what its JSON says, or what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import DataError

BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# The keys of a turn, and the column that holds a list of such.
_TURNS = (("role", "content", "messages"), ("from", "value", "conversations"))


class BadRow(ValueError):
    """What is wrong with a row, without its place, which the caller knows."""


@dataclass(frozen=True)
class Broken:
    """A row that could not be read."""

    problem: str


class Joined(dict[str, Any]):
    """A row of a table in which structs have the keys that any row has, null where this one has none."""


def parse(item: Any) -> Any:
    """What a row holds. Raises BadRow."""
    if isinstance(item, Broken):
        raise BadRow(item.problem)
    if not isinstance(item, bytes):
        return item
    try:
        text = item.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 text: {error.reason}") from None
    try:
        value = DECODER.decode(text)
    except BadRow:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRow(not_json(text, error)) from None
    return as_row(value) if type(value) is list else value


def not_json(text: str, error: Exception) -> str:
    """What is wrong with a text that is no JSON."""
    if text.lstrip().removeprefix("[").lstrip().startswith("{'"):
        return "not JSON but Python: names and texts are in single quotes, and JSON has double ones"
    return f"not JSON: {error}"


def as_row(value: Any) -> Any:
    """A list of turns is a row with that conversation; everything else is what it is."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for role, content, column in _TURNS:
            if all(isinstance(turn, dict) and role in turn and content in turn for turn in value):
                return {column: value}
    return value


def refuse_utf16(path: Path, head: bytes) -> None:
    """Raise DataError for a file that begins like UTF-16 text."""
    if head.startswith(_UTF16) or b"\0" in head[:4]:
        raise DataError(f"{path.as_posix()}: is UTF-16 text, not UTF-8", "save the file as UTF-8")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs) and (twice := [key for key, value in pairs if found[key] != value]):
        raise BadRow(f"the key {twice[0]!r} is there twice, with different values")
    return found


def _constant(name: str) -> float | None:
    # pandas writes NaN for what is not there.
    return None if name == "NaN" else float(name)


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
"""As json.loads, but NaN is null, and a key that is there twice with different values raises BadRow."""
