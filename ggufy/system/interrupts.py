"""Handle Ctrl-C and SIGTERM: stop between steps, also while C code runs that calls back into Python.

Python raises KeyboardInterrupt at the next line of Python that the main thread runs. Where that line is in a function
called from C, ctypes prints the error and drops it, and the C code goes on as if nothing had happened.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("ggufy")

_waiting: list[int] = []


def waiting() -> bool:
    """Whether somebody pressed Ctrl-C while it was held: the C code may end early."""
    return bool(_waiting)


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C until the block is done; then it comes as it would have."""
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or before in (None, signal.SIG_IGN, _hold):
        yield
        return
    signal.signal(signal.SIGINT, _hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if _waiting:
            _waiting.clear()
            signal.raise_signal(signal.SIGINT)


def _hold(number: int, frame: Any) -> None:
    del frame
    _waiting.append(number)


class StopSignals:
    """The first SIGINT or SIGTERM lets the work end after its current step, a second one ends it at once.

    While it is entered, `asked` is the number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        del frame
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        log.info("stopping after this step; interrupt again to stop at once")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
