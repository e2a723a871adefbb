"""Stopping when asked: the first SIGINT or SIGTERM ends training after the current step, a second one at once."""

from __future__ import annotations

import logging
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("ggufy")


class StopSignals:
    """While it is entered, `asked` is the number of the signal that came, or None."""

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
        log.info("stopping after this step; once more to stop at once")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
