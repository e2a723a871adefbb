"""Make the outputs of a run, or reuse those that are already made.

A stage gets paths below `partial/`; when it returns, its files are synced, moved to their final names, and a stamp is
written last. So a final name is a complete file, and a valid stamp says from which inputs. Work that was killed leaves
only `partial/`, which the next attempt with the same inputs finds again and any other attempt removes.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from ggufy.errors import GgufyError, RunError, Unverified
from ggufy.runs.stamps import VERIFIED, Artifact, Inputs, Stamped, plain
from ggufy.system import digest
from ggufy.system.disk import remove, settle, sync, write_json
from ggufy.system.version import __version__

SOURCE = "source.json"
_WAITING = "stamp.json"
# What a loader of a model folder finds by itself.
_LOADED = (".safetensors", ".gguf", ".bin", ".index.json", "adapter_config.json")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Everything ggufy puts into a run's folder, but the lock.
CONTENTS = (
    "run.json",
    "stamps",
    "partial",
    "checkpoints",
    "compiled",
    "tracking",
    "data",
    "adapter",
    "export",
    "chat",
    "eval",
    "metrics.jsonl",
    "summary.json",
    "loss.png",
    "hub.json",
)


class Maker(Stamped):
    """A folder whose outputs stages make."""

    _source: dict[str, str] | None = None
    """What `source.json` gets with the next output that is made."""

    def make(
        self,
        wanted: Mapping[str, Inputs],
        build: Callable[[dict[str, Path]], None],
        *,
        force: bool = False,
        unverified: Container[str] = (),
    ) -> dict[str, Artifact]:
        """Return the outputs named in `wanted` (path in the run -> inputs), building those that are not there.

        `build` gets, for each output that has to be made, the path below `partial/` to write it to. What it finds
        there is the unfinished work of an earlier attempt with the same inputs. A file of that name which ggufy did not
        make is only written over with `force`; else RunError. Of those that `build` does not verify, though that could
        be done, the stamp says so.
        """
        self._finish_moves()
        done = {output: self.valid(output, inputs) for output, inputs in wanted.items()}
        missing = [output for output in wanted if done[output] is None]
        if missing and not force:
            self._refuse_to_replace(missing)
        # What an attempt with other inputs, or at other outputs, left.
        keep = {self._partial(output, wanted[output]) for output in missing}
        partial = self.path / "partial"
        self._forget_partial([path for path in partial.iterdir() if path not in keep] if partial.is_dir() else ())
        if missing:
            places = self._partials({output: wanted[output] for output in missing})
            try:
                build(places)
                facts = settle([file for place in places.values() for file in _files(place)])
                for output, place in places.items():
                    done[output] = self._finish(output, wanted[output], place, facts, verified=output not in unverified)
            except Unverified:
                # Finished, but wrong: it stays under partial/ to be looked at, and never gets its final name.
                raise
            except (GgufyError, OSError) as error:
                # Refused, not cut short: there is nothing to go on with. A full disk needs the room.
                if isinstance(error, GgufyError) or error.errno in _FULL:
                    self._give_up(places)
                raise
        return {output: artifact for output, artifact in done.items() if artifact is not None}

    def missing(self, wanted: Mapping[str, Inputs], *, force: bool = False) -> list[str]:
        """Which outputs `make` would build. Raises RunError where it would, for the files in its way."""
        missing = [output for output, inputs in wanted.items() if self.valid(output, inputs) is None]
        if not force:
            self._refuse_to_replace(missing)
        return missing

    def _partial(self, output: str, inputs: Inputs) -> Path:
        return self.path / "partial" / f"{output.replace('/', '--')}.{digest.of_values(plain(inputs))[:16]}"

    def _partials(self, wanted: Mapping[str, Inputs]) -> dict[str, Path]:
        """Where to write each output."""
        folders = {output: self._partial(output, inputs) for output, inputs in wanted.items()}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        return {output: folder / Path(output).name for output, folder in folders.items()}

    def _refuse_to_replace(self, outputs: list[str]) -> None:
        for output in outputs:
            if os.path.lexists(self.path / output) and self.stamp(output) is None:
                raise RunError(
                    f"{(self.path / output).as_posix()} already exists, and ggufy did not make it",
                    "move it away, or give --force to overwrite it",
                )
            if changed := self._replaced(output):
                raise RunError(
                    f"{changed.as_posix()} is not the file that ggufy made",
                    "move it away, or give --force to overwrite it",
                )
            if others := self._others(output):
                raise RunError(
                    f"{others[0].as_posix()} is in the way, and ggufy did not make it",
                    "move it away, or give --force to write beside it",
                )

    def _replaced(self, output: str) -> Path | None:
        """A file of an output that somebody has put in the place of the stamped one.

        One of the same size, or with the same time, is taken for the stamped one, damaged: it is made again.
        """
        for name, facts in (self.stamp(output) or {"files": {}})["files"].items():
            path = self.path / str(name)
            if path.exists():
                state = path.stat()
                if state.st_size != facts["size"] and state.st_mtime_ns != facts["mtime_ns"]:
                    return path
        return None

    def _others(self, output: str) -> list[Path]:
        """The files in the folder of an output that ggufy did not make: its stamp does not list them.

        Below ggufy's own names, as `data` in a run, a folder without a stamp is ggufy's own that has lost it.
        """
        folder, stamp = self.path / output, self.stamp(output)
        if folder.is_symlink() or not folder.is_dir() or (stamp is None and output in CONTENTS):
            return []
        own = {self.path / name for name in stamp["files"]} if stamp else set()
        return sorted(p for p in folder.rglob("*") if p not in own and (p.is_symlink() or not p.is_dir()))

    def _give_up(self, places: Mapping[str, Path]) -> None:
        """Remove the unfinished outputs. Of one that already has its final name only the stamp is missing."""
        self._forget_partial(
            place.parent for place in places.values() if place.exists() or not (place.parent / _WAITING).exists()
        )

    def _forget_partial(self, folders: Iterable[Path] = ()) -> None:
        """Remove these folders below partial/, and that itself where nothing is left in it."""
        for folder in folders:
            remove(folder)
        partial = self.path / "partial"
        if partial.is_dir() and not any(partial.iterdir()):
            partial.rmdir()

    def _finish(
        self, output: str, inputs: Inputs, place: Path, facts: Mapping[Path, dict[str, Any]], *, verified: bool
    ) -> Artifact:
        """Move to the final name, and last the stamp, which until then waits beside the partial output.

        `facts` are those of the output's files, which are on the disk.
        """
        final = self.path / output
        files = _files(place)
        others = self._others(output)
        _refuse_to_mix(final, place, others)
        stamped: dict[str, dict[str, Any]] = {}
        for file in files:
            moved = final / file.relative_to(place) if place.is_dir() else final
            stamped[moved.relative_to(self.path).as_posix()] = facts[file]
        sha256 = digest.of_values({name: facts["sha256"] for name, facts in stamped.items()})
        if not place.is_dir():
            sha256 = stamped[output]["sha256"]
        stamp = {
            "output": output,
            "inputs": plain(inputs),
            "files": stamped,
            "sha256": sha256,
            **({} if verified else {VERIFIED: "no"}),
            "ggufy": __version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if self._source is not None:
            write_json(place.parent / SOURCE, self._source)
            (place.parent / SOURCE).replace(self.path / SOURCE)
        write_json(place.parent / _WAITING, stamp)
        final.parent.mkdir(parents=True, exist_ok=True)
        if others:
            self._move_beside(output, place, files)
        else:
            if final.is_dir() or place.is_dir():
                remove(final)
            place.replace(final)
        sync(final.parent)
        self._finish_move(output, inputs)
        return Artifact(final, sha256, sum(facts["size"] for facts in stamped.values()), reused=False)

    def _move_beside(self, output: str, place: Path, files: list[Path]) -> None:
        """Replace what the stamp of a folder lists by these files, and leave what else is there."""
        stamp = self.stamp(output)
        for name in stamp["files"] if stamp else ():
            remove(self.path / name)
        for file in files:
            moved = self.path / output / file.relative_to(place)
            moved.parent.mkdir(parents=True, exist_ok=True)
            file.replace(moved)
            sync(moved.parent)
        remove(place)

    def _finish_moves(self) -> None:
        """Stamp whatever an earlier attempt has moved, of these outputs or of others."""
        for waiting in sorted(self.path.glob(f"partial/*/{_WAITING}")):
            try:
                stamp = json.loads(waiting.read_text(encoding="utf-8"))
                output, inputs = stamp["output"], stamp["inputs"]
            except (OSError, ValueError, LookupError, TypeError):
                continue
            self._finish_move(output, inputs)

    def _finish_move(self, output: str, inputs: Inputs) -> None:
        """Put the stamp of an output that has been moved into its place; also after a crash between the two."""
        folder = self._partial(output, inputs)
        waiting = folder / _WAITING
        if waiting.is_file() and not (folder / Path(output).name).exists() and (self.path / output).exists():
            self._stamp_path(output).parent.mkdir(exist_ok=True)
            waiting.replace(self._stamp_path(output))
            sync(self._stamp_path(output).parent)
            self._forget_partial([folder])


def _refuse_to_mix(final: Path, place: Path, others: list[Path]) -> None:
    """Raise RunError for files of others that would be lost, or be taken for a part of the output they are beside."""
    hint = "move it away: --force replaces the files that are written, and no others"
    if others and not place.is_dir():
        raise RunError(f"{final.as_posix()} is a folder, and {others[0].as_posix()} in it is not ggufy's", hint)
    written = {final / file.relative_to(place) for file in _files(place)}
    for path in others:
        if path not in written and path.parent == final and path.name.endswith(_LOADED):
            raise RunError(f"{path.as_posix()} would be taken for a part of what is written there", hint)


def _files(place: Path) -> list[Path]:
    """The files of an output: itself, or what is in its folder."""
    return sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
