"""A program in a real terminal: keys go in, and what a person would see comes out."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

SECONDS = 60
ENTER, CTRL_C, CTRL_D, ALT_ENTER, UP, TAB = "\r", "\x03", "\x04", "\x1b\r", "\x1b[A", "\t"


def prompted(text: str) -> bool:
    """Whether ggufy waits for a line."""
    return text.rpartition("\n")[2] in (">", "^C>")


class Terminal:
    """Lines that scrolled off the top are still part of `text`."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self.here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        # What the terminal answers when it is asked where its cursor is.
        self.screen.write_process_input = lambda text: self.type(text)
        self.stream = pyte.ByteStream(self.screen)
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=there,
            stdout=there,
            stderr=there,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(there)

    @property
    def text(self) -> str:
        gone = ["".join(line[at].data for at in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*gone, *self.screen.display]).rstrip()

    def type(self, keys: str) -> None:
        os.write(self.here, keys.encode())

    def wait(self, shown: str | Callable[[str], bool]) -> str:
        """Read until a text is there, or something else holds of the whole; the whole."""
        begun = time.monotonic()
        while not (shown in self.text if isinstance(shown, str) else shown(self.text)):
            assert time.monotonic() - begun < SECONDS, f"{shown!r} never came:\n{self.text}"
            self._read(0.2)
        return self.text

    def ask(self, line: str, shown: str | Callable[[str], bool]) -> str:
        """Type a line once the prompt is there, and wait for what comes of it; what came after the line."""
        self.wait(prompted)
        before = self.text.count("\n")
        self.type(line + ENTER)

        def since(text: str) -> str:
            return "\n".join(text.splitlines()[before:])

        self.wait(lambda text: (shown in since(text)) if isinstance(shown, str) else shown(since(text)))
        return since(self.text)

    def end(self) -> int:
        """Wait for the program's end; its exit code."""
        begun = time.monotonic()
        while self.process.poll() is None and time.monotonic() - begun < SECONDS:
            self._read(0.1)
        self._read(0)
        os.close(self.here)
        return self.process.wait(1)

    def _read(self, seconds: float) -> None:
        if select.select([self.here], [], [], seconds)[0]:
            try:
                self.stream.feed(os.read(self.here, 65536))
            except OSError:  # the program has gone
                time.sleep(0.05)
