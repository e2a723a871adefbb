"""The report: sections of prose, tables and plots, as one page that needs nothing else, and as JSON for scripts.

Every part of `ggufy eval` supplies a Section; nothing here knows what they are about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files as resources
from typing import Any, Literal

SCHEMA = 1
"""Of report.json: raised when a key changes its meaning or goes."""

Kind = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Marked:
    """A text with a colour, or with tags beside it such as the flags of an answer."""

    text: str
    kind: Kind = ""
    tags: tuple[str, ...] = ()
    """Warnings, each a word or two."""
    note: str = ""
    """Set small below the text."""


Cell = str | int | float | Marked | None
"""Numbers are set to the right, in the form that `Table.formats` gives; None is empty."""


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Of a column's numbers, as ".4f"."""
    best: int | None = None
    """The row that is set off."""
    wide: bool = False
    """Its cells are texts of several lines, side by side."""

    def text(self, row: int, column: int) -> str:
        """A cell as people read it."""
        value = self.rows[row][column]
        if isinstance(value, Marked):
            return value.text
        if value is None:
            return ""
        return str(value) if isinstance(value, str) else format(value, self.formats.get(self.columns[column], ","))


@dataclass(frozen=True)
class Plot:
    """A picture that is part of the page."""

    svg: str
    """An SVG element that ggufy made itself (`evaluate/report/plots.py`); every text in it is escaped."""
    caption: str = ""


@dataclass(frozen=True)
class Note:
    """A paragraph that explains what is shown. It is left out where the figures alone are printed."""

    text: str


Part = str | Note | Table | Plot
"""A text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """One part of the report."""

    key: str
    """Its name in report.json."""
    title: str
    parts: Sequence[Part]
    values: Mapping[str, Any]
    """What report.json says of it."""


@dataclass(frozen=True)
class Report:
    title: str
    facts: Mapping[str, str]
    """What was evaluated, with what, when: shown at the top."""
    sections: Sequence[Section]

    def values(self) -> dict[str, Any]:
        """The content of report.json."""
        sections = {section.key: dict(section.values) for section in self.sections}
        return {"schema": SCHEMA, "title": self.title, "facts": dict(self.facts), "sections": sections}

    def json(self) -> str:
        """report.json."""
        return json.dumps(self.values(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def html(self) -> str:
        style = (resources("ggufy") / "evaluate" / "report" / "report.css").read_text(encoding="utf-8")
        facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in self.facts.items())
        links = "".join(f'<a href="#{escape(s.key)}">{escape(s.title)}</a>' for s in self.sections)
        body = "".join(_section(section) for section in self.sections)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            # The page asks nobody for anything, whatever a model may have written into it.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
            'img-src data:">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f"<header><h1>{escape(self.title)}</h1><dl>{facts}</dl><nav>{links}</nav></header>\n<main>\n"
            f"{body}</main>\n</body>\n</html>\n"
        )


def _section(section: Section) -> str:
    parts = "".join(_part(part) for part in section.parts)
    return f'<section id="{escape(section.key)}">\n<h2>{escape(section.title)}</h2>\n{parts}</section>\n'


def _part(part: Part) -> str:
    if isinstance(part, Note):
        return f'<p class="quiet">{escape(part.text)}</p>\n'
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>\n"
    if isinstance(part, Plot):
        caption = f"<figcaption>{escape(part.caption)}</figcaption>" if part.caption else ""
        return f"<figure>{part.svg}{caption}</figure>\n"
    return _table(part)


def _table(table: Table) -> str:
    right = [_is_number(table, column) for column in range(len(table.columns))]
    head = "".join(
        f"<th{' class=number' if number else ''}>{escape(name)}</th>"
        for name, number in zip(table.columns, right, strict=True)
    )
    lines = []
    for row, cells in enumerate(table.rows):
        shown = "".join(_cell(table, row, column) for column in range(len(cells)))
        lines.append(f"<tr{' class=best' if row == table.best else ''}>{shown}</tr>\n")
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    kind = "wide" if table.wide else "figures"
    return (
        f'<div class="scroll"><table class="{kind}">{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody></table></div>\n"
    )


def _is_number(table: Table, column: int) -> bool:
    return any(isinstance(row[column], int | float) for row in table.rows)


def _cell(table: Table, row: int, column: int) -> str:
    value = table.rows[row][column]
    text = escape(table.text(row, column))
    if isinstance(value, Marked):
        tags = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in value.tags)
        note = f'<div class="note">{escape(value.note)}</div>' if value.note else ""
        said = f'<span class="{value.kind}">{text}</span>' if value.kind else text
        return f"<td>{said}{f'<div>{tags}</div>' if tags else ''}{note}</td>"
    return f"<td class=number>{text}</td>" if isinstance(value, int | float) else f"<td>{text}</td>"
