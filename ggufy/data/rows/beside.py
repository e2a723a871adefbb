"""Columns beside those of a format that mean the same in every one: used, or the row is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ggufy.data.files import BadRow, Joined
from ggufy.data.rows import tools
from ggufy.data.rows.cells import Cells, Row
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.texts import is_set, text_of, weight_of
from ggufy.data.rows.turns import in_system, with_system
from ggufy.model.template import Message

SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_PREFERENCES = ("chosen", "rejected")
_OF_TURNS = ("tool_calls", "function_call", "reasoning_content", "thinking", "reasoning")
# Of a column of thoughts: whether there are any, which is a fact about the row.
_SWITCHES = ("on", "off", "yes", "no", "true", "false", "0", "1")
_WEIGHTS = ("weight", "train", "loss_weight", "sample_weight", "loss_mask")
# These may hold something else than weights, such as the loss that was measured.
_PERHAPS_WEIGHTS = ("loss", "training", "trainable")
_MASKS = ("mask", "masked")
# trl has the first in its KTO data, LLaMA-Factory the other.
_RATINGS = ("label", "kto_tag")
_HISTORY = "history"
_MEANT = frozenset((*_MEDIA, *_PREFERENCES, *_OF_TURNS, *_WEIGHTS, *_PERHAPS_WEIGHTS, *_MASKS, *_RATINGS, _HISTORY))


def meaning(columns: Iterable[str]) -> dict[str, str]:
    """Those of these columns that say what a row is, by their usual names."""
    return {name.lower(): name for name in columns if isinstance(name, str) and name.lower() in _MEANT}


def refuse_meaning(row: Row, meant: Mapping[str, str], cells: Cells, form: str) -> None:
    """Raises BadRow for a column that says what the row is, and that nothing here can do justice to.

    `meant` are these columns, as `meaning` has them.
    """
    _refuse_history(row, meant, cells)
    held = {ours: row[name] for ours, name in meant.items() if name not in cells.used and is_set(row.get(name))}
    if not held:
        return
    if lost := next((name for name in _MEDIA if name in held), None):
        raise BadRow(f"the column {meant[lost]!r} is set, and this model reads text only")
    if lost := next((name for name in _OF_TURNS if name in held and not _is_switch(held[name])), None):
        raise BadRow(f"the column {meant[lost]!r} is set; it is read as a key of a turn, in `messages`")
    if lost := next((name for name in held if _is_weight(name, held[name])), None):
        raise BadRow(
            f"the column {meant[lost]!r} is {held[lost]!r}; weights are read as keys of turns, in `messages`, "
            "as weight: 0 or 1"
        )
    if all(name in held for name in _PREFERENCES) and cells.used.isdisjoint(_PREFERENCES):
        raise BadRow("the row is a preference (chosen and rejected), which supervised training does not learn from")
    for name in _RATINGS:
        if name in held and _is_bad(held[name], form):
            said = f"{meant[name]} is {held[name]!r}"
            raise BadRow(f"the row is a rated completion, and a bad one ({said}); all answers are learnt")


def _refuse_history(row: Row, meant: Mapping[str, str], cells: Cells) -> None:
    """Raises BadRow for earlier turns beside a format that holds all of them itself, or none."""
    name = cells.names.get(_HISTORY) or meant.get(_HISTORY)
    if name is not None and name not in cells.used and is_set(row.get(name)):
        raise BadRow(f"the column {name!r} is set; it is read beside a prompt or an instruction, not in this format")


def _is_switch(value: Any) -> bool:
    return str(value).strip().lower() in _SWITCHES


def _is_weight(name: str, value: Any) -> bool:
    """Whether a column says that a row is not learnt, or not as others are."""
    said = weight_of(value)
    if name in _MASKS:
        # What is masked may as well be a word of the row.
        return isinstance(value, list) or (said is not None and not (name == "masked" and said is False))
    return said is not True if name in _WEIGHTS else said is False and name in _PERHAPS_WEIGHTS


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
    # The columns that the system text is of; none where it is a turn.
    told: list[str] = [name for name in map(cells.name, SYSTEM) if name in cells.used and is_set(row.get(name))]
    for name in map(cells.name, SYSTEM):
        if name not in cells.used and (system := row.get(name)) is not None:
            where = f"the column {name!r}"
            text, listed = in_system(text_of(system, where, needed=False), where)
            has_turn = found[0]["role"] == "system"
            found = _with_tools(with_system(found, text, [*told, name]), listed, name)
            told += [] if has_turn or not text.strip() else [name]
    joined = isinstance(row, Joined)
    for name in map(cells.name, TOOLS):
        if name not in cells.used and row.get(name) is not None:
            found = _with_tools(found, tools.of_column(row[name], f"the column {name!r}", joined=joined), name)
    if any("tool_calls" in message for message in found):
        tools.settle_nulls(found, found.tools, joined=joined)
    return found


def _with_tools(found: Conversation, listed: list[Any] | None, name: str) -> Conversation:
    if listed and found.tools not in (None, listed):
        raise BadRow(f"the column {name!r} has other tools than the row names elsewhere")
    found.tools = found.tools or listed
    return found
