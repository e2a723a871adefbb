"""What a row holds, under the names that its source has for the columns of a format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.texts import names_of, text_of
from ggufy.data.rows.turns import Turns
from ggufy.recipe.schema import Part
from ggufy.recipe.section import template_fields

Row = Mapping[str, Any]


class Cells:
    """The cells of the rows of one source: by its names for columns and for roles, and by its prompt.

    `chat` is false for a base without a chat template: a prompt with its completion is then plain text.
    """

    def __init__(self, part: Part | None, *, chat: bool) -> None:
        self.chat = chat
        self.prompt = part.prompt if part else None
        self.fields = template_fields(self.prompt) if self.prompt else []
        self.own = {str(ours): theirs for ours, theirs in part.columns.items()} if part else {}
        """The names that the recipe gives."""
        self.names = self.own
        """Those of the row that is read: beside the recipe's the ones that were found in it."""
        self.used: frozenset[str] = frozenset()
        """The columns that the format of the row reads, and those that the prompt is made of."""
        self.unread: set[str] = set()
        """Keys of turns that were set in a row and are not read."""
        roles = dict(part.roles) if part else {}
        self.turns = {
            "sharegpt": Turns(("from", "value"), self.own, roles),
            "messages": Turns(("role", "content"), self.own, roles),
            "glaive": Turns(("role", "content"), {}, {}),
        }

    def used_of(self, columns: Iterable[str], names: Mapping[str, str]) -> frozenset[str]:
        """What `used` is, of a format with these columns under these names."""
        # These two are what the user says, whatever columns are called so (see `asked`).
        made_of = set(self.fields) - {"prompt", "instruction"}
        return frozenset(names.get(ours, ours) for ours in (*columns, *made_of))

    def conversation(self, form: str, columns: Row, system: Any = None) -> Conversation:
        """The turns that these columns hold, one after the other; keys of them that are not read are noted.

        `system` is what a column beside them says. Raises BadRow.
        """
        turns = self.turns[form]
        listed = {column: turns.listed(value, column) for column, value in columns.items()}
        found = turns.read([turn for value in listed.values() for turn in value], system)
        for column, value in listed.items():
            self.unread.update(f"{column}[].{key}" for key in turns.unread(value))
        return found

    def name(self, ours: str) -> str:
        """What this source calls a column."""
        return self.names.get(ours, ours)

    def text(self, row: Row, ours: str, *, needed: bool = True) -> str:
        """A text of a row. Raises BadRow."""
        name = self.name(ours)
        value = row.get(name)
        if value is None and not needed:
            return ""
        return text_of(value, f"the column {name!r}", needed=needed)

    def asked(self, row: Row, usual: str, *, alone: str | None = None, given: str = "") -> str:
        """What the user says: the template filled in, or what it is without one. Raises BadRow.

        Of an Alpaca row `alone` is the instruction without its input, and `given` that input: they are told apart only
        where the template has a place for both.
        """
        if self.prompt is None:
            return usual
        # A column that happens to have one of these names holds something else: a whole prompt, or a system text.
        own = {"prompt": usual, "instruction": usual}
        if alone is not None:
            own["input"] = given
            if "input" in self.fields:
                own["instruction"] = alone
        named = {ours: row[theirs] for ours, theirs in self.names.items() if theirs in row}
        known = {**row, **named, **own}
        values = {}
        for field in self.fields:
            if field not in known:
                raise BadRow(f"data.prompt names {{{field}}}; the columns are {names_of(sorted(row))}")
            value = known[field]
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                kind = "null" if value is None else type(value).__name__
                raise BadRow(f"data.prompt names {{{field}}}, which is {kind}, not a text")
            values[field] = value if isinstance(value, str) else str(value)
        return text_of(self.prompt.format_map(values), "the prompt")
