"""The report as lines of text for a terminal: its tables of figures, and the sentences about them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from ggufy.evaluate.report.report import Marked, Report, Table

_WIDTH = 110


def lines(report: Report) -> Iterator[str]:
    """For a terminal. Texts side by side, and what explains the figures, are left to the page."""
    for section in report.sections:
        yield section.title
        for part in section.parts:
            if isinstance(part, Table) and not part.wide:
                yield from _table(part)
            elif isinstance(part, str):
                yield from textwrap.wrap(part, _WIDTH, initial_indent="  ", subsequent_indent="  ")
        yield ""


def _table(table: Table) -> Iterator[str]:
    grid = [list(table.columns)] + [
        [table.text(row, column) for column in range(len(table.columns))] for row in range(len(table.rows))
    ]
    widths = [max(len(row[column]) for row in grid) for column in range(len(table.columns))]
    right = [
        any(isinstance(row[column], int | float) and not isinstance(row[column], Marked) for row in table.rows)
        for column in range(len(table.columns))
    ]
    for number, row in enumerate(grid):
        cells = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        )
        mark = "*" if number and number - 1 == table.best else " "
        yield f" {mark}{'  '.join(cells)}".rstrip()
