"""What one value of a row says: a text, a text in parts, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ggufy.data.files import BadRow

# What tables write where there is nothing.
_NONE = frozenset(("", "[]", "{}", "null", "none", "nan"))
_LONGEST_NONE = 9


def is_set(value: Any) -> bool:
    """Whether a cell holds something: not null, empty, or a struct that a joined table left without values."""
    if isinstance(value, Mapping):
        return any(map(is_set, value.values()))
    if isinstance(value, str):
        return len(value) > _LONGEST_NONE or value.strip().lower() not in _NONE
    # A number that is none is not equal to itself.
    return value is not None and value == value and value != []


def names_of(columns: Iterable[Any]) -> str:
    """Names of columns for people: those that are hard to see, as the one that pandas gives to no name, in quotes."""
    return ", ".join(str(name) if name and str(name).strip() == name else repr(name) for name in columns)


def weight_of(value: Any) -> bool | None:
    """What a weight says of being learnt, also as a text, which CSV has for everything; None where neither is said."""
    said = str(value).strip().lower()
    return True if said in ("1", "1.0", "true") else False if said in ("0", "0.0", "false") else None


def is_parts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) and "type" in part for part in value)


def text_of(value: Any, what: str, *, needed: bool = True) -> str:
    """A text, or one in parts as OpenAI's interface has them. Raises BadRow."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = "".join(_part(part, what) for part in value)
    if not isinstance(value, str):
        raise BadRow(f"{what} is {'null' if value is None else type(value).__name__}, not a string")
    if needed and not value.strip():
        raise BadRow(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{what} holds half a surrogate pair, which is not a character") from None
    return value


def _part(part: Mapping[str, Any], what: str) -> str:
    kind = part.get("type", "text")
    text = part.get("text")
    if kind not in ("text", "input_text", "output_text"):
        raise BadRow(f"{what} has a part of the type {kind!r}, and this model reads text only")
    if not isinstance(text, str):
        raise BadRow(f"{what} has a part without a text")
    return text
