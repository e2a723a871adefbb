"""hub.json: what of a run was sent where, so that a later push knows which files on the Hub are its own."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ggufy.disk import write_json
from ggufy.hub.bundle import File
from ggufy.run import Run


def read(run: Run) -> dict[str, Any]:
    """The receipts by `user/name@branch`: `pushes` that are finished, and what is `pending`."""
    try:
        values = json.loads((run.path / "hub.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = {}
    found = values if isinstance(values, dict) else {}
    return {"pushes": dict(found.get("pushes") or {}), "pending": dict(found.get("pending") or {})}


def own(run: Run, target: str) -> set[str]:
    """The sha256 and git hashes of files that this run has sent there, or was sending when it was killed."""
    values = read(run)
    sent = [values["pushes"].get(target, {}), values["pending"].get(target, {})]
    return {
        facts[key]
        for push in sent
        for facts in push.get("files", {}).values()
        for key in ("sha256", "git")
        if facts.get(key)
    }


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Wait until no other process of ggufy holds the folder, and hold it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems lock no folders; there two processes at once may both write.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def begin(run: Run, target: str, files: Iterable[File]) -> None:
    """Note, before a commit, what it will hold: its answer may be lost."""
    with held(run.path):
        values = read(run)
        before = values["pending"].get(target, {}).get("files", {})
        values["pending"][target] = {"files": before | _plain(files)}
        write_json(run.path / "hub.json", values)


def finish(run: Run, target: str, files: Iterable[File], facts: dict[str, Any], *, alone: bool = False) -> None:
    """Note a finished push; `alone`: of what was there before only this is left."""
    with held(run.path):
        _finish(run, target, files, facts, alone=alone)


def _finish(run: Run, target: str, files: Iterable[File], facts: dict[str, Any], *, alone: bool) -> None:
    values = read(run)
    pending = values["pending"].pop(target, None)
    known = values["pushes"].get(target, {})
    url = facts.pop("file_url")
    held = {path: {**held, "url": f"{url}/{path}"} for path, held in _plain(files).items()}
    entry = {**facts, "files": held if alone else known.get("files", {}) | held}
    if {**entry, "finished": None} == {**known, "finished": None}:
        if pending is None:
            return
        entry = known
    values["pushes"][target] = entry
    write_json(run.path / "hub.json", values if values["pending"] else {"pushes": values["pushes"]})


def _plain(files: Iterable[File]) -> dict[str, dict[str, Any]]:
    return {
        file.path: {"size": file.size, "sha256": file.sha256, **({"git": file.git} if file.git else {})}
        for file in files
    }
