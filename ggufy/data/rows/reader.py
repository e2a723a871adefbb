"""Rows of one source as samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows import beside
from ggufy.data.rows.cells import Cells, Row
from ggufy.data.rows.conversation import Plain, Sample
from ggufy.data.rows.detect import matching
from ggufy.data.rows.formats import FORMATS
from ggufy.recipe.schema import Part


class Reader:
    """Rows of one source as samples: each in its format, with what columns beside that one's mean.

    `chat` is false for a base without a chat template.
    """

    def __init__(self, form: str, part: Part | None = None, *, chat: bool = True) -> None:
        self.part, self.cells = part, Cells(part, chat=chat)
        self.unread: set[str] = set()
        """Columns, and keys of turns, that were set in a row and are not read."""
        self._seen: set[tuple[str, ...]] = set()
        self._source_form = form
        self._known: dict[tuple[str, ...], tuple[str, dict[str, str]] | None] = {}
        self._take(form, self.cells.own)

    def _take(self, form: str, names: Mapping[str, str]) -> None:
        self.name_of_form, self.form, self.cells.names = form, FORMATS[form], dict(names)

    def read(self, row: Any) -> Sample:
        """Raises BadRow."""
        if not isinstance(row, Mapping):
            raise BadRow(f"a row is an object with columns, not {type(row).__name__}")
        self._fit(row)
        beside.refuse_meaning(row, self.cells)
        sample = self.form.convert(row, self.cells)
        if isinstance(sample, Plain):
            beside.refuse_around(row, self.cells)
        else:
            sample = beside.around(row, self.cells, sample)
        self._note_unread(row)
        return sample

    def _fit(self, row: Row) -> None:
        """Read this row in its own format, where tables were joined and each row has the columns of one of them.

        That of the source comes first, whatever the rows before were, so that nothing depends on their order.
        """
        self._take(self._source_form, self.cells.own)
        if all(row.get(self.cells.name(ours)) is not None for ours in self.form.columns):
            return
        if self.part is not None:
            there = tuple(column for column, value in row.items() if value is not None)
            if there not in self._known:
                self._known[there] = matching(there, self.cells.own, self.part.format)
            if found := self._known[there]:
                self._take(*found)
                return
        for ours in self.form.columns:
            if self.cells.name(ours) not in row:
                raise BadRow(f"no column {self.cells.name(ours)!r}, unlike the first row")

    def _note_unread(self, row: Row) -> None:
        columns = tuple(row)
        if columns not in self._seen:
            used = {
                *self.cells.names.values(),
                *self.form.columns,
                *self.form.may,
                *self.cells.fields,
                *beside.SYSTEM,
                *beside.TOOLS,
                "id",
            }
            used = {self.cells.name(name) for name in used} | used
            fresh = {name for name in columns if name not in used and row[name] is not None}
            self.unread |= fresh
            # Columns that were null so far may be set in a later row.
            if not any(row[name] is None for name in columns if name not in used):
                self._seen.add(columns)
        if self.name_of_form in self.cells.turns:
            [column] = self.form.columns
            extra = self.cells.turns[self.name_of_form].unread(row.get(self.cells.name(column)))
            self.unread |= {f"{self.cells.name(column)}[].{key}" for key in extra}
