"""Rows of one source as samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ggufy.data.files import BadRow
from ggufy.data.rows import beside
from ggufy.data.rows.cells import Cells, Row
from ggufy.data.rows.conversation import Plain, Sample
from ggufy.data.rows.detect import matching, named
from ggufy.data.rows.formats import FORMATS
from ggufy.data.rows.texts import is_set
from ggufy.recipe.schema import Part


class _View(NamedTuple):
    """How some rows of a source are read: in which format, under which names, from which columns."""

    form: str
    names: dict[str, str]
    used: frozenset[str]
    meant: Mapping[str, str]
    """Columns that are there and say what a row is (see `beside.meaning`)."""


class Reader:
    """Rows of one source as samples: each in its format, with what columns beside that one's mean.

    `chat` is false for a base without a chat template.
    """

    def __init__(self, form: str, part: Part | None = None, *, chat: bool = True) -> None:
        self.part, self.cells = part, Cells(part, chat=chat)
        self.unread: set[str] = set()
        """Columns, and keys of turns, that were set in a row and are not read."""
        self._seen: set[tuple[str, ...]] = set()
        self._usual = form
        self._views: dict[tuple[str, ...], _View] = {}
        self._columns: tuple[str, ...] = ()
        self._known: dict[tuple[str, ...], _View | None] = {}
        self._take(self._view(form, self.cells.own))

    def _view(self, form: str, names: dict[str, str], there: tuple[str, ...] = ()) -> _View:
        columns = (*FORMATS[form].columns, *FORMATS[form].may)
        return _View(form, names, self.cells.used_of(columns, names), beside.meaning(there))

    def _take(self, view: _View) -> None:
        self.name_of_form, self.form, self.meant = view.form, FORMATS[view.form], view.meant
        self.cells.names, self.cells.used = view.names, view.used

    def read(self, row: Any) -> Sample:
        """Raises BadRow."""
        if not isinstance(row, Mapping):
            raise BadRow(f"a row is an object with columns, not {type(row).__name__}")
        self._fit(row)
        beside.refuse_meaning(row, self.meant, self.cells, self.name_of_form)
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
        columns = self._columns = tuple(row)
        view = self._views.get(columns)
        if view is None:
            view = self._view(self._usual, named(self._usual, columns, self.cells.own), columns)
            self._views[columns] = view
        self._take(view)
        if all(row.get(self.cells.name(ours)) is not None for ours in self.form.columns):
            return
        if self.part is not None:
            there = tuple(column for column, value in row.items() if value is not None)
            if there not in self._known:
                found = matching(there, self.cells.own, self.part.format)
                self._known[there] = self._view(*found, there) if found else None
            if view := self._known[there]:
                self._take(view)
                return
        for ours in self.form.columns:
            if self.cells.name(ours) not in row:
                raise BadRow(f"no column {self.cells.name(ours)!r}, unlike the first row")

    def _note_unread(self, row: Row) -> None:
        self.unread |= self.cells.unread
        columns = self._columns
        if columns in self._seen:
            return
        used = {*self.cells.used, *map(self.cells.name, (*beside.SYSTEM, *beside.TOOLS)), "id"}
        others = [name for name in columns if name not in used]
        fresh = {name for name in others if is_set(row[name])}
        self.unread |= fresh
        # Columns that are empty in this row may be set in a later one.
        if len(fresh) == len(others):
            self._seen.add(columns)
