"""hub.json: what of a run was sent where, so that a later push knows which files on the Hub are its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
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


def begin(run: Run, target: str, files: Iterable[File]) -> None:
    """Note, before a commit, what it will hold: its answer may be lost."""
    values = read(run)
    before = values["pending"].get(target, {}).get("files", {})
    values["pending"][target] = {"files": before | _plain(files)}
    write_json(run.path / "hub.json", values)


def finish(run: Run, target: str, files: Iterable[File], facts: dict[str, Any], *, alone: bool = False) -> None:
    """Note a finished push; `alone`: of what was there before only this is left."""
    values = read(run)
    pending = values["pending"].pop(target, None)
    known = values["pushes"].get(target, {})
    url = facts.pop("file_url")
    held = {path: {**held, "url": f"{url}/{path}"} for path, held in _plain(files).items()}
    entry = {**facts, "files": held if alone else known.get("files", {}) | held}
    if pending is None and {**entry, "finished": None} == {**known, "finished": None}:
        return
    values["pushes"][target] = entry
    write_json(run.path / "hub.json", values if values["pending"] else {"pushes": values["pushes"]})


def _plain(files: Iterable[File]) -> dict[str, dict[str, Any]]:
    return {
        file.path: {"size": file.size, "sha256": file.sha256, **({"git": file.git} if file.git else {})}
        for file in files
    }
