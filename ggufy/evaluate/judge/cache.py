"""Cache of the judges' replies, so that nothing is paid for twice: an append-only file of JSON lines.

A reply is on the disk before the next question is asked. A kill can cut the last line only, and that line is then left
out and asked again.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggufy.system import user_folders

_KEY, _SCORED = "key", "scored"


def place() -> Path:
    """The file that all runs share: what was asked, not for which run, decides what is the same."""
    return user_folders.cache() / "judge.jsonl"


class Cache:
    """Replies by their key. Several threads and several ggufys may add to the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unreadable = 0
        self._lock = threading.Lock()
        self._replies: dict[str, dict[str, Any]] = {}
        self._load()

    def __len__(self) -> int:
        return len(self._replies)

    def reply(self, key: str) -> str | None:
        """The reply with grades that was given to this."""
        found = self._replies.get(key)
        return found["reply"] if found else None

    def prepare(self) -> None:
        """Raise OSError where nothing could be kept, before anything is asked."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        _sync(self.path.parent)

    def add(self, key: str, reply: str, *, scored: bool, facts: Mapping[str, Any]) -> None:
        """Keep a reply, also one without grades, for the record: only those with grades are found again."""
        row = {_KEY: key, _SCORED: scored, "reply": reply, **facts}
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                # A line that a kill has cut is ended, so that this one is not lost with it.
                if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b"\n":
                    line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if scored:
                self._replies[key] = row

    def _load(self) -> None:
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for line in filter(None, lines):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not (isinstance(row, dict) and all(isinstance(row.get(name), str) for name in (_KEY, "reply"))):
                self.unreadable += 1
            elif row.get(_SCORED) is True:
                self._replies[row[_KEY]] = row


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
