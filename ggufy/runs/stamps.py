"""Stamps: which outputs in a folder are finished, from which inputs, and whether they are unchanged."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.system import digest
from ggufy.system.disk import remove, write_json

log = logging.getLogger("ggufy")

Inputs = Mapping[str, Any]

# In a stamp, of an output that nobody has verified, or that was found not to be valid.
VERIFIED, FAILED = "verified", "failed"


@dataclass(frozen=True)
class Artifact:
    """A finished output of a stage: one file, or a folder of files."""

    path: Path
    sha256: str
    size: int
    reused: bool


class Stamped:
    """A folder with stamps, one of each output: a JSON file with its inputs, and size and hash of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def valid(self, output: str, inputs: Inputs | None = None) -> Artifact | None:
        """The output, if it is valid: made from these inputs, and its files unchanged since they were stamped."""
        stamp = self.stamp(output)
        if stamp is None or (inputs is not None and stamp["inputs"] != plain(inputs)):
            return None
        if stamp.get(VERIFIED) == FAILED:
            return None
        for name, facts in stamp["files"].items():
            path = self.path / name
            try:
                state = path.stat()
            except OSError:
                return None
            if state.st_size != facts["size"]:
                return None
            if state.st_mtime_ns != facts["mtime_ns"] and digest.of_file(path) != facts["sha256"]:
                log.info("%s has been changed since it was made; making it again", path.as_posix())
                return None
        size = sum(facts["size"] for facts in stamp["files"].values())
        return Artifact(self.path / output, stamp["sha256"], size, reused=True)

    def unverified(self, output: str) -> bool:
        """Whether nobody has verified an output yet."""
        return (self.stamp(output) or {}).get(VERIFIED) == "no"

    def note_verified(self, output: str, *, valid: bool) -> None:
        """Write into its stamp what verifying an output has found. One that is not valid is not valid from then on."""
        stamp, path = self.stamp(output), self._stamp_path(output)
        if stamp is None:
            return
        stamp.pop(VERIFIED, None)
        state = path.stat()
        write_json(path, stamp if valid else {**stamp, VERIFIED: FAILED})
        # Which output is the newest goes by this time.
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    def note_closeness(self, output: str, measured: Mapping[str, Any]) -> None:
        """Write into its stamp how near an output came to the training model when it was verified."""
        stamp, path = self.stamp(output), self._stamp_path(output)
        if stamp is None or stamp.get("closeness") == measured:
            return
        state = path.stat()
        write_json(path, {**stamp, "closeness": dict(measured)})
        # Which output is the newest goes by this time.
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    def discard(self, output: str) -> None:
        """Remove an output that is not needed any more, its stamp last: half removed, it is not valid."""
        remove(self.path / output)
        self._stamp_path(output).unlink(missing_ok=True)

    def damage(self, output: str) -> str | None:
        """Re-hash an output: what is wrong with it against its stamp, or None."""
        stamp = self.stamp(output)
        for name, facts in (stamp or {"files": {}})["files"].items():
            path = self.path / name
            if not path.is_file():
                return f"{path.as_posix()} has been removed"
            if path.stat().st_size != facts["size"] or digest.of_file(path) != facts["sha256"]:
                return f"{path.as_posix()} has been changed"
        return None

    def stamp(self, output: str) -> dict[str, Any] | None:
        """The stamp of an output, whether or not its files are unchanged."""
        try:
            stamp = json.loads(self._stamp_path(output).read_text(encoding="utf-8"))
            return (
                stamp if isinstance(stamp, dict) and {"output", "inputs", "files", "sha256"} <= stamp.keys() else None
            )
        except (OSError, ValueError):
            return None

    def stamped(self, prefix: str = "") -> list[str]:
        """The outputs that have a stamp, oldest first."""
        paths = sorted(self.path.glob("stamps/*.json"), key=lambda p: p.stat().st_mtime_ns)
        stamps = [self.stamp(path.stem.replace("--", "/")) for path in paths]
        return [stamp["output"] for stamp in stamps if stamp and stamp["output"].startswith(prefix)]

    def _stamp_path(self, output: str) -> Path:
        return self.path / "stamps" / f"{output.replace('/', '--')}.json"


def plain(inputs: Inputs) -> Any:
    return json.loads(json.dumps(inputs))
