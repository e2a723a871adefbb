"""Ctrl-C while C code runs that calls back into Python.

Python raises KeyboardInterrupt at the next line of Python that the main thread runs. Where that line is in a function
called from C, ctypes prints the error and drops it, and the C code goes on as if nothing had happened.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
