"""How many threads llama.cpp should use: measured once for each machine and size of model.

One token at a time reads every weight once and is bound by memory; a prompt is bound by arithmetic. So there are two
numbers. More threads than the memory can feed, or than the machine has real cores, make both slower.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ggufy.system import interrupts, machine, user_folders

log = logging.getLogger("ggufy")

_FILE = "threads.json"
# How long a measurement holds: on a busy machine, where it may be wrong, not for long.
_QUIET, _BUSY = 7 * 86400, 3600
_SECONDS = 0.25
_PROMPT = 64
# Fewer threads that are this near to the best leave the rest of the machine to others.
_NEAR = 1.03


@dataclass(frozen=True)
class Threads:
    answering: int
    """For one token after the other."""
    reading: int
    """For a prompt."""

    @classmethod
    def of(cls, llama: Any, asked: int | None) -> Threads:
        """The threads that a loaded model uses from now on: those asked for, measured before, or measured now."""
        chosen = cls(asked, asked) if asked else _known(llama) or _measured(llama)
        chosen._set(llama)
        return chosen

    def _set(self, llama: Any) -> None:
        import llama_cpp

        llama_cpp.llama_set_n_threads(llama.ctx, self.answering, self.reading)


def candidates(cores: int) -> list[int]:
    """The counts worth trying, the most first: all, three quarters, half, ... and one."""
    found, at = {1, cores}, cores
    while at > 1:
        found |= {at, max(1, at * 3 // 4)}
        at //= 2
    return sorted(found, reverse=True)


def cores() -> int:
    """Those that this process may use, or as many as OMP_NUM_THREADS says if that is fewer."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(machine.cores(), max(1, int(wanted))) if wanted.isdecimal() else machine.cores()


def _measured(llama: Any) -> Threads:
    """Try the candidates on the model itself, for about a second, and keep what came out."""
    counts = candidates(cores())
    if len(counts) == 1:
        return Threads(1, 1)
    begun = time.perf_counter()
    busy = os.getloadavg()[0] > counts[0] / 2
    with interrupts.held():
        # The first one also reads the file from the disk.
        _seconds(llama, counts[0], 1)
        answering = _times(llama, counts, 1)
        # A prompt of about the time that the others took.
        tokens = int(2 * _SECONDS / min(answering.values()))
        reading = _times(llama, counts, max(8, min(_PROMPT, tokens, len(llama.input_ids) // 2)))
        llama.reset()
    chosen = Threads(best(answering), best(reading))
    if (spent := time.perf_counter() - begun) > 1:
        said = "threads for a model of this size, measured once in %.1f s: %d for answers, %d for prompts"
        log.info(said, spent, chosen.answering, chosen.reading)
    _keep(llama, chosen, busy=busy)
    return chosen


def best(times: dict[int, float]) -> int:
    """The fewest threads that are about as fast as the fastest."""
    return min(count for count, seconds in times.items() if seconds <= _NEAR * min(times.values()))


def _times(llama: Any, counts: list[int], tokens: int) -> dict[int, float]:
    """Count -> seconds for so many tokens at once. From where fewer are clearly slower, no fewer are tried."""
    found: dict[int, float] = {}
    for count in counts:
        begun = time.perf_counter()
        seconds: list[float] = []
        while len(seconds) < 2 or time.perf_counter() - begun < _SECONDS:
            seconds.append(_seconds(llama, count, tokens))
            if time.perf_counter() - begun > 4 * _SECONDS:
                break
        # Not the least: two threads on a busy machine are fast for a moment and slow for long.
        found[count] = statistics.median(seconds)
        if found[count] > 1.3 * min(found.values()):
            break
    return found


def _seconds(llama: Any, count: int, tokens: int) -> float:
    import llama_cpp

    llama_cpp.llama_set_n_threads(llama.ctx, count, count)
    llama.reset()
    begun = time.perf_counter()
    llama.eval([0] * tokens)
    return time.perf_counter() - begun


def _key(llama: Any) -> str:
    """What the numbers depend on: the processor, what of it may be used, llama.cpp, and the model's size and type."""
    model = llama._model
    version = metadata.version("llama-cpp-python")
    return f"{_processor()}, {cores()} cores, llama-cpp-python {version}, {model.desc()}, {model.size():.2g} bytes"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _known(llama: Any) -> Threads | None:
    entry = _all().get(_key(llama))
    try:
        if entry and time.time() < entry["until"]:
            found = Threads(int(entry["answering"]), int(entry["reading"]))
            return found if min(found.answering, found.reading) > 0 else None
    except (KeyError, TypeError, ValueError):
        pass
    return None


def _keep(llama: Any, chosen: Threads, *, busy: bool) -> None:
    until = int(time.time()) + (_BUSY if busy else _QUIET)
    entry = {"answering": chosen.answering, "reading": chosen.reading, "until": until}
    path = user_folders.cache() / _FILE
    # A cache that cannot be written only means measuring again.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(json.dumps({**_all(), _key(llama): entry}, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)


def _all() -> dict[str, Any]:
    try:
        found = json.loads((user_folders.cache() / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
