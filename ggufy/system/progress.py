"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger("ggufy")

_QUIET_SECONDS = 5.0


def show_progress() -> None:
    """Let what ggufy says about its work reach standard error: the command line does it, a notebook may."""
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False


class Bar(Protocol):
    def update(self, done: float, facts: str = "") -> None:
        """`done` of the total are finished; `facts` is a short text such as `loss 0.31`."""


@contextmanager
def bar(what: str, total: float, start: int = 0) -> Iterator[Bar]:
    """Show the progress of one piece of work on standard error."""
    if not sys.stderr.isatty():
        yield _Lines(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, completed=start, facts="")

        class OnTerminal:
            def update(self, done: float, facts: str = "") -> None:
                progress.update(task, completed=done, facts=facts)

        yield OnTerminal()


class _Lines:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, what: str, total: float) -> None:
        self.what, self.total = what, total
        self.last = time.monotonic()

    def update(self, done: float, facts: str = "") -> None:
        now = time.monotonic()
        if now - self.last >= _QUIET_SECONDS:
            self.last = now
            log.info("%s %3.0f%%  %s", self.what, 100 * done / max(self.total, 1e-9), facts)
