"""hub.json, the receipt of a run's pushes: a later push sees from it which files on the Hub are its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ggufy.hub.contents.bundle import File, facts_of
from ggufy.hub.contents.manifest import hashes, identities
from ggufy.runs.run import Run
from ggufy.system.disk import held, write_json


def read(run: Run) -> dict[str, Any]:
    """The receipts by `user/name@branch`: `pushes` that are finished, and what is `pending`.

    What somebody has damaged is as if it were not there: the files on the Hub are then somebody else's.
    """
    try:
        values = json.loads((run.path / "hub.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = {}
    found = values if isinstance(values, dict) else {}
    return {"pushes": _whole(found.get("pushes"), ("repo", "commit")), "pending": _whole(found.get("pending"), ())}


def _whole(entries: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """Those of the entries that are as `finish` and `begin` write them."""
    return {
        target: entry
        for target, entry in (entries.items() if isinstance(entries, dict) else ())
        if isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in keys)
        and isinstance(entry.get("finished"), str | None)
        and isinstance(entry.get("files"), dict)
        and all(isinstance(facts, dict) and _is_whole(facts) for facts in entry["files"].values())
    }


def _is_whole(facts: dict[str, Any]) -> bool:
    return all(isinstance(facts.get(key), kind) for key, kind in (("size", int), ("sha256", str), ("git", str | None)))


def own(run: Run, target: str) -> set[str]:
    """The sha256 and git hashes of files that this run has sent there, or was sending when it was killed."""
    values = read(run)
    sent = [values["pushes"].get(target, {}), values["pending"].get(target, {})]
    return {found for push in sent for facts in push.get("files", {}).values() for found in hashes(facts)}


def name(run: Run, target: str) -> str:
    """The run's name there: that of the one who pushed it first, also where it was pulled under another."""
    return str(read(run)["pushes"].get(target, {}).get("run") or run.name)


def sent(run: Run, target: str, there: Mapping[str, Any] | None) -> set[str]:
    """The sha256 of what this run has sent there, and, where the branch was looked at, of what is there still."""
    files = read(run)["pushes"].get(target, {}).get("files", {})
    return {
        facts["sha256"]
        for path, facts in files.items()
        if there is None or (path in there and identities(there[path]) & hashes(facts))
    }


def begin(run: Run, target: str, files: Iterable[File]) -> None:
    """Note, before a commit, what it will hold: its answer may be lost."""
    with held(run.path):
        values = read(run)
        before = values["pending"].get(target, {}).get("files", {})
        values["pending"][target] = {"files": before | _plain(files)}
        write_json(run.path / "hub.json", values)


def finish(
    run: Run, target: str, files: Iterable[File], facts: dict[str, Any], there: Mapping[str, Any] | None = None
) -> None:
    """Note a finished push. Of what was noted before, that stays which is `there` still; without it nothing."""
    with held(run.path):
        _finish(run, target, files, facts, there or {})


def _finish(run: Run, target: str, files: Iterable[File], facts: dict[str, Any], there: Mapping[str, Any]) -> None:
    values = read(run)
    pending = values["pending"].pop(target, None)
    known = values["pushes"].get(target, {})
    url = facts.pop("file_url")
    held = {path: {**held, "url": f"{url}/{path}"} for path, held in _plain(files).items()}
    before = known.get("files", {}).items()
    left = {path: noted for path, noted in before if path in there and identities(there[path]) & hashes(noted)}
    entry = {**facts, "files": left | held}
    if {**entry, "finished": None} == {**known, "finished": None}:
        if pending is None:
            return
        entry = known
    values["pushes"][target] = entry
    write_json(run.path / "hub.json", values if values["pending"] else {"pushes": values["pushes"]})


def _plain(files: Iterable[File]) -> dict[str, dict[str, Any]]:
    return {file.path: facts_of(file) for file in files}
