"""Show answers: as Markdown on a terminal, as plain text elsewhere; two models side by side if there is room."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ggufy.chat.terminal.screen import MarkdownScreen, Window, harmless

if TYPE_CHECKING:
    from rich.console import Console

    from ggufy.chat.session import Screen

_WIDE = 100
"""Columns from which two answers stand beside each other."""


def note(text: str) -> None:
    """Say something that is not the model's: to standard error, so that the answers alone can be piped."""
    if text and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        text = f"\x1b[2m{harmless(text)}\x1b[0m"
    if text:
        print(text, file=sys.stderr, flush=True)


def screen(names: Sequence[str], *, raw: bool = False) -> Screen:
    """The screen for these models. `raw` shows the text as the model wrote it, also on a terminal."""
    drawn = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not raw
    if not drawn:
        return _Text(names)
    # Now, not when the first word is there.
    import_module("rich.markdown")
    from rich.console import Console

    console = Console(highlight=False)
    return markdown(console, names)


def markdown(console: Console, names: Sequence[str]) -> Screen:
    """The screen of a terminal that can draw: in columns, where there are several names and room."""
    return _Columns(console, names) if len(names) > 1 and console.width >= _WIDE else _Markdown(console, names)


class _Text:
    """The pieces as they come."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._steers = sys.stdout.isatty()

    def begin(self, side: int) -> None:
        if len(self.names) > 1:
            print(f"== {self.names[side]} ==", flush=True)

    def add(self, side: int, text: str) -> None:
        del side
        sys.stdout.write(harmless(text) if self._steers else text)
        sys.stdout.flush()

    def end(self, side: int, said: str) -> None:
        del side
        print(flush=True)
        note(said)

    def close(self) -> None:
        pass


class _Markdown:
    """Each answer drawn below the one before."""

    def __init__(self, console: Any, names: Sequence[str]) -> None:
        self.console, self.names = console, names
        self._drawn: Any = None

    def begin(self, side: int) -> None:
        if len(self.names) > 1:
            self.console.rule(self.names[side], align="left", style="dim")
        self._drawn = MarkdownScreen(self.console)

    def add(self, side: int, text: str) -> None:
        del side
        self._drawn.add(text)

    def end(self, side: int, said: str) -> None:
        del side
        self._drawn.end()
        note(said)

    def close(self) -> None:
        pass


class _Columns:
    """Two answers side by side. The second comes when the first is done: each has all cores while it is made."""

    def __init__(self, console: Any, names: Sequence[str]) -> None:
        self.console, self.names = console, names
        self._begin()

    def _begin(self) -> None:
        self.texts = ["" for _ in self.names]
        self.notes = ["" for _ in self.names]
        self.window = Window(self.console)

    def begin(self, side: int) -> None:
        if side == 0:
            self._begin()

    def add(self, side: int, text: str) -> None:
        self.texts[side] += harmless(text)
        if self.window.due():
            with self.window.drawing():
                self.window.show(self._table())

    def end(self, side: int, said: str) -> None:
        self.notes[side] = said
        self.window.show(self._table())

    def close(self) -> None:
        self.window.leave(self._table())

    def _table(self) -> Any:
        from rich.console import Group
        from rich.markdown import Markdown
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2), expand=True)
        for _ in self.names:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(f"── {name}", "dim") for name in self.names))
        drawn = [
            Group(Markdown(text, hyperlinks=False), Text(said, "dim"))
            for text, said in zip(self.texts, self.notes, strict=True)
        ]
        table.add_row(*drawn)
        return table
