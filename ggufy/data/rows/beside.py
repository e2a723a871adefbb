"""Columns beside those of a format that mean the same in every one: used, or the row is refused."""

from __future__ import annotations

from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows import tools
from ggufy.data.rows.cells import Cells, Row
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.texts import is_set, text_of
from ggufy.data.rows.turns import in_system, with_system
from ggufy.model.template import Message

SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_PREFERENCES = ("chosen", "rejected")
_OF_TURNS = ("tool_calls", "function_call", "reasoning_content", "thinking")
_WEIGHTS = ("weight", "train")
# trl has the first in its KTO data, LLaMA-Factory the other.
_RATINGS = ("label", "kto_tag")


def refuse_meaning(row: Row, cells: Cells, form: str) -> None:
    """Raises BadRow for a column that says what the row is, and that nothing here can do justice to."""
    used = cells.used
    if lost := next((name for name in _MEDIA if is_set(row.get(name)) and name not in used), None):
        raise BadRow(f"the column {lost!r} is set, and this model reads text only")
    if lost := next((name for name in _OF_TURNS if is_set(row.get(name)) and name not in used), None):
        raise BadRow(f"the column {lost!r} is set; it is read as a key of a turn, in `messages`")
    weights = {name: row[name] for name in _WEIGHTS if row.get(name) not in (None, 1, "") and name not in used}
    if weights:
        name, value = next(iter(weights.items()))
        raise BadRow(f"the column {name!r} is {value!r}; weights are read as keys of turns, in `messages`")
    if all(row.get(name) is not None for name in _PREFERENCES) and used.isdisjoint(_PREFERENCES):
        raise BadRow("the row is a preference (chosen and rejected), which supervised training does not learn from")
    for name in _RATINGS:
        if (value := row.get(name)) is not None and name not in used and _is_bad(value, form):
            raise BadRow(f"the row is a rated completion, and a bad one ({name} is {value!r}); all answers are learnt")


def _is_bad(rating: Any, form: str) -> bool:
    """Whether an answer is one that is not to be learnt, as in trl's KTO data; CSV and pandas write it in other types.

    A number says so only beside a prompt and its completion: elsewhere it is more often the number of a class.
    """
    said = str(rating).lower()
    return said == "false" or (form == "prompt-completion" and said in ("0", "0.0"))


def refuse_around(row: Row, cells: Cells) -> None:
    """Raises BadRow for a system text or tools beside a plain text."""
    for name in map(cells.name, (*SYSTEM, *TOOLS)):
        if name not in cells.used and is_set(row.get(name)):
            raise BadRow(f"the column {name!r} is set, and a plain text has no place for it")


def around(row: Row, cells: Cells, sample: list[Message]) -> Conversation:
    """With the system text and the tools that columns of the row hold. Raises BadRow."""
    found = sample if isinstance(sample, Conversation) else Conversation(sample)
    for name in map(cells.name, SYSTEM):
        if name not in cells.used and (system := row.get(name)) is not None:
            where = f"the column {name!r}"
            text, listed = in_system(text_of(system, where, needed=False), where)
            found = _with_tools(with_system(found, text), listed, name)
    for name in map(cells.name, TOOLS):
        if name not in cells.used and row.get(name) is not None:
            found = _with_tools(found, tools.of_column(row[name], f"the column {name!r}"), name)
    return found


def _with_tools(found: Conversation, listed: list[Any] | None, name: str) -> Conversation:
    if listed and found.tools not in (None, listed):
        raise BadRow(f"the column {name!r} has other tools than the row names elsewhere")
    found.tools = found.tools or listed
    return found
