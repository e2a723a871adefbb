"""Draw growing text on a terminal without flicker: only the part that may still change is drawn again."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# The share of the time that may go into drawing: the rest is the model's.
_SHARE = 0.02
_SHORTEST = 0.05
# What a terminal would obey instead of showing it: a model may have learnt it from somebody.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """The text without the characters that steer a terminal."""
    return _CONTROL.sub("", text.replace("\r\n", "\n"))


class Window:
    """The changing end of what is shown. Only lines that differ from those there are written."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lines: list[str] = []
        self._next = 0.0

    def due(self) -> bool:
        """Whether it is time to draw again."""
        return time.monotonic() >= self._next

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """What drawing costs is measured, and the next time is put off for so long that the whole stays small."""
        begun = time.monotonic()
        yield
        self._next = begun + max(_SHORTEST, (time.monotonic() - begun) / _SHARE)

    def show(self, what: Any) -> None:
        """Draw something in the place of what is there; of what is too long, its end."""
        self._write(self._rendered(what)[-max(1, self.console.height - 1) :])

    def leave(self, what: Any) -> None:
        """Draw something whole, and leave it there for good."""
        # Away with what was typed meanwhile, such as ^C.
        self._write(self._rendered(what), "\r\x1b[J")
        self.lines = []

    def _rendered(self, what: Any) -> list[str]:
        with self.console.capture() as capture:
            self.console.print(what)
        return capture.get().removesuffix("\n").split("\n")

    def _write(self, lines: list[str], first: str = "") -> None:
        same = 0
        for old, new in zip(self.lines, lines, strict=False):
            if old != new:
                break
            same += 1
        up = len(self.lines) - same
        # Up to the first line that differs, and away with what is below; then the new ones. In one piece.
        back = f"\x1b[{up}A\r\x1b[J" if up else ""
        text = first + back + "".join(f"{line}\n" for line in lines[same:])
        if text:
            self.console.file.write(text)
            self.console.file.flush()
        self.lines = lines


class MarkdownScreen:
    """Markdown that comes in pieces. A block that is complete is drawn for good; the last one may still change."""

    def __init__(self, console: Console) -> None:
        from markdown_it import MarkdownIt

        self.window = Window(console)
        self._parser = MarkdownIt().enable("table")
        self._pending = ""
        self._begun = False

    def add(self, text: str) -> None:
        self._pending += harmless(text)
        if not self.window.due():
            return
        with self.window.drawing():
            if end := self._complete():
                self._leave(self._pending[:end])
                self._pending = self._pending[end:]
            if self._pending.strip():
                self.window.show(self._drawn(self._pending))

    def end(self) -> None:
        if self._pending.strip():
            self._leave(self._pending)
        self._pending = ""

    def _complete(self) -> int:
        """How many characters of what is pending are blocks that nothing can change any more: all but the last."""
        tops = [token for token in self._parser.parse(self._pending) if token.level == 0 and token.map]
        starts = sorted({token.map[0] for token in tops if token.map})
        if len(starts) < 2:
            return 0
        return sum(len(line) + 1 for line in self._pending.split("\n")[: starts[-1]])

    def _leave(self, text: str) -> None:
        self.window.leave(self._drawn(text))
        self._begun = True

    def _drawn(self, text: str) -> Any:
        from rich.console import Group
        from rich.markdown import Markdown

        # Between blocks Markdown has an empty line; here each block is drawn by itself.
        drawn = Markdown(text, hyperlinks=False)
        return Group("", drawn) if self._begun else drawn
