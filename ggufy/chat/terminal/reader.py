"""Read the user's input: on a terminal with several lines, history and completion; elsewhere line by line."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ggufy.system import user_folders

log = logging.getLogger("ggufy")

_LONGEST_HISTORY = 1_000_000


class Reader(Protocol):
    def read(self) -> str | None:
        """What was typed, or None at the end. Raises KeyboardInterrupt where Ctrl-C was pressed on an empty line."""


def reader(commands: Callable[[str], Iterable[str]]) -> Reader:
    """The best reader for where this runs. `commands` completes the beginning of a line."""
    if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return _Editor(commands)
    return _Lines()


class _Lines:
    def __init__(self) -> None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        with contextlib.suppress(ModuleNotFoundError):
            import readline  # noqa: F401 - importing it gives input() line editing

    def read(self) -> str | None:
        try:
            if not sys.stdout.isatty():
                # The answers alone go where standard output goes.
                print("> ", end="", file=sys.stderr, flush=True)
            return input("> " if sys.stdout.isatty() else "").strip()
        except EOFError:
            print(file=sys.stderr)
            return None


class _Editor:
    """A line editor: Enter sends, Alt-Enter begins a new line, and so does Enter after a backslash."""

    def __init__(self, commands: Callable[[str], Iterable[str]]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import Completer, Completion

        class Commands(Completer):
            def get_completions(self, document: Any, complete_event: Any) -> Iterator[Any]:
                del complete_event
                typed = document.text_before_cursor
                if typed.startswith("/") and not typed.count("\n"):
                    for found in commands(typed):
                        yield Completion(found, start_position=-len(typed))

        self.session: Any = PromptSession(
            multiline=True,
            key_bindings=_keys(),
            history=_history(),
            completer=Commands(),
            complete_while_typing=False,
            enable_suspend=True,
            prompt_continuation="  ",
        )

    def read(self) -> str | None:
        try:
            typed: str = self.session.prompt("> ")
        except EOFError:
            return None
        return typed.strip()


def _keys() -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")  # type: ignore[untyped-decorator]
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")  # type: ignore[untyped-decorator]
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> Any:
    """What was typed in earlier sessions, in a file that only its owner reads; where none can be, of this session."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = user_folders.state() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        path.chmod(0o600)
        _shorten(path)
    except OSError as error:
        log.warning("the history of what you type is not kept: %s: %s", path.as_posix(), error.strerror)
        return InMemoryHistory()
    return FileHistory(path.as_posix())


def _shorten(path: Path) -> None:
    """Keep the newer half of a history that has grown too long. An entry begins after an empty line."""
    if path.stat().st_size > _LONGEST_HISTORY:
        kept = path.read_bytes()[-_LONGEST_HISTORY // 2 :]
        path.write_bytes(kept[kept.find(b"\n\n") + 1 :])
