"""Row formats. Each is one function from a row to a conversation, and one line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ggufy.errors import DataError
from ggufy.template import Message

Row = Mapping[str, Any]

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


class BadRow(ValueError):
    """What is wrong with a row, without its place, which the caller knows."""


@dataclass(frozen=True)
class Format:
    column: str
    convert: Callable[[Row], list[Message]]
    looks_like: str


def _sharegpt(row: Row) -> list[Message]:
    return _turns(row["conversations"], "from", "value")


def _messages(row: Row) -> list[Message]:
    return _turns(row["messages"], "role", "content")


FORMATS: dict[str, Format] = {
    "sharegpt": Format("conversations", _sharegpt, '{"conversations": [{"from": "human", "value": "..."}, ...]}'),
    "messages": Format("messages", _messages, '{"messages": [{"role": "user", "content": "..."}, ...]}'),
}


def detect(columns: Iterable[str], named: str, where: str) -> Format:
    """The format of rows with these columns: the named one, or the first whose column is there."""
    columns = list(columns)
    wanted = FORMATS.values() if named == "auto" else [FORMATS[named]]
    for form in wanted:
        if form.column in columns:
            return form
    known = "; ".join(f"{name}: {form.looks_like}" for name, form in FORMATS.items())
    asked = "" if named == "auto" else f" for the format {named}"
    raise DataError(
        f"{where}: no known format{asked}: the columns are {', '.join(sorted(columns)) or 'none'}",
        f"known formats are {known}",
    )


def _turns(turns: Any, role_key: str, text_key: str) -> list[Message]:
    if not isinstance(turns, list | tuple) or not turns:
        raise BadRow("no turns" if turns in ([], (), None) else f"turns are a list, not {type(turns).__name__}")
    conversation: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
            raise BadRow(f"turn {number} has no {role_key!r} and {text_key!r}")
        role, text = _ROLES.get(str(turn[role_key]).lower()), turn[text_key]
        if role is None:
            raise BadRow(f"turn {number}: unknown role {turn[role_key]!r}; known are {', '.join(_ROLES)}")
        if not isinstance(text, str):
            raise BadRow(f"turn {number}: the text is {type(text).__name__}, not a string")
        if not text.strip():
            raise BadRow(f"turn {number} is empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRow(f"turn {number} holds half a surrogate pair, which is no character") from None
        conversation.append({"role": role, "content": text})
    _check_order(conversation)
    return conversation


def _check_order(conversation: list[Message]) -> None:
    roles = [message["role"] for message in conversation]
    if "system" in roles[1:]:
        raise BadRow(f"turn {roles.index('system', 1) + 1}: a system turn can only come first")
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or "assistant" not in spoken:
        raise BadRow("the assistant says nothing, so there is nothing to learn")
    if spoken[0] == "assistant":
        raise BadRow("the assistant speaks first; a conversation starts with the user")
    for number, (before, after) in enumerate(pairwise(spoken), 2 + len(roles) - len(spoken)):
        if before == after:
            raise BadRow(f"turn {number}: two {after} turns in a row")
