"""Columns beside those of a format that mean the same in every one: used, or the row is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows import tools
from ggufy.data.rows.cells import Cells, Row
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.turns import text_of, with_system
from ggufy.model.template import Message

SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_PREFERENCES = ("chosen", "rejected")
_OF_TURNS = ("tool_calls", "function_call", "reasoning_content", "thinking")
_WEIGHTS = ("weight", "train")


def refuse_meaning(row: Row, cells: Cells) -> None:
    """Raises BadRow for a column that says what the row is, and that nothing here can do justice to."""
    own = {*cells.fields, *cells.names.values()}
    if lost := next((name for name in _MEDIA if _is_set(row.get(name)) and name not in own), None):
        raise BadRow(f"the column {lost!r} is set, and this model reads text only")
    if lost := next((name for name in _OF_TURNS if _is_set(row.get(name)) and name not in own), None):
        raise BadRow(f"the column {lost!r} is set; it is read as a key of a turn, in `messages`")
    weights = {name: row[name] for name in _WEIGHTS if row.get(name) not in (None, 1, "") and name not in own}
    if weights:
        name, value = next(iter(weights.items()))
        raise BadRow(f"the column {name!r} is {value!r}; weights are read as keys of turns, in `messages`")
    if all(row.get(name) is not None for name in _PREFERENCES) and not own & set(_PREFERENCES):
        raise BadRow("the row is a preference (chosen and rejected), which supervised training does not learn from")
    if isinstance(row.get("label"), bool) and "label" not in cells.fields:
        raise BadRow("the row is a rated completion (label is true or false); only good ones are to be learnt")


def refuse_around(row: Row, cells: Cells) -> None:
    for name in (*SYSTEM, *TOOLS):
        if _is_set(row.get(name)) and name not in cells.fields and name not in cells.names.values():
            raise BadRow(f"the column {name!r} is set, and a plain text has no place for it")


def around(row: Row, cells: Cells, sample: list[Message]) -> Conversation:
    """With the system text and the tools that columns of the row hold."""
    found = sample if isinstance(sample, Conversation) else Conversation(sample)
    for name in SYSTEM:
        if name not in cells.fields and (system := row.get(name)) is not None:
            found = with_system(found, text_of(system, f"the column {name!r}", needed=False))
    for name in TOOLS:
        listed = tools.of_column(row.get(name), f"the column {name!r}") if row.get(name) is not None else None
        if listed and found.tools not in (None, listed):
            raise BadRow(f"the column {name!r} has other tools than the row names elsewhere")
        found.tools = found.tools or listed
    return found


def _is_set(value: Any) -> bool:
    """Whether a column holds something: not null, empty, or a struct that a joined table left without values."""
    return (
        any(map(_is_set, value.values())) if isinstance(value, Mapping) else value is not None and value not in ("", [])
    )
