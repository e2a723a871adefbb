"""The directory of one run: who may write, what is finished, what it was made from.

A stage gets paths below `partial/`; when it returns, its files are synced, moved to their final names, and a stamp is
written last. So a final name is a complete file, and a valid stamp says from which inputs. Work that was killed leaves
only `partial/`, which the next attempt with the same inputs finds again and any other attempt removes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ggufy import __version__, digest
from ggufy.errors import GgufyError, RunError, Unverified

log = logging.getLogger("ggufy")

Inputs = Mapping[str, Any]

_WAITING = "stamp.json"
_SOURCE = "source.json"
# What a loader of a model folder finds by itself.
_LOADED = (".safetensors", ".gguf", ".bin", ".index.json", "adapter_config.json")
# In a stamp, of an output that nobody has verified, or that was found not to be sound.
_VERIFIED, _FAILED = "verified", "failed"
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


@dataclass(frozen=True)
class Artifact:
    """A finished output of a stage: one file, or a folder of files."""

    path: Path
    sha256: str
    size: int
    reused: bool


def runs_folder() -> Path:
    """Where runs are: $GGUFY_RUNS, else `runs` in the current folder."""
    return Path(os.environ.get("GGUFY_RUNS") or "runs")


def named(name: str) -> Run:
    """The run of that name, there or not. Raises RunError for what cannot be the name of a folder in runs/."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RunError(
            f"{name!r} cannot be the name of a run", "use letters, digits, '.', '_' and '-', as in --run first"
        )
    return Run(runs_folder() / name)


def find(name: str | os.PathLike[str] | None = None) -> Run:
    """The run of that name or folder; without one, the newest."""
    runs = [path.parent for path in runs_folder().glob("*/run.json")]
    if name is None:
        if not runs:
            raise RunError(f"no runs yet in {runs_folder().as_posix()}/", "`ggufy train --recipe tiny` makes one")
        return Run(max(runs, key=_last_change))
    for path in (runs_folder() / name, Path(name)):
        if (path / "run.json").is_file():
            return Run(path)
    known = ", ".join(sorted(path.name for path in runs))
    if Path(name).is_dir() and not any((Path(name) / file).exists() for file in ("config.json", "adapter_config.json")):
        raise RunError(
            f"{os.fspath(name)} is no run, and there is neither config.json nor adapter_config.json in it",
            f"name a run{f' ({known})' if known else ''}, or a folder with a model or an adapter",
        )
    hint = f"the runs are {known}" if known else "there are no runs yet: `ggufy train` first"
    raise RunError(f"no run {os.fspath(name)!r} in {runs_folder().as_posix()}/", hint)


def holding(path: Path) -> tuple[Run, str] | None:
    """The run or the folder of exports that a file or a split model lies in, and which of its outputs that is."""
    place = path.resolve()
    for folder in place.parents:
        this = Run(folder)
        if not (folder / "stamps").is_dir():
            continue
        name = place.relative_to(folder).as_posix()
        for output in this.stamped():
            if output == name or name in (this.stamp(output) or {"files": {}})["files"]:
                return Run(_as_named(path, folder)), output
    return None


def _as_named(path: Path, folder: Path) -> Path:
    """A parent of a path, in the words of that path where they lead there."""
    return next((parent for parent in path.parents if parent.resolve() == folder), folder)


def room(what: str | os.PathLike[str] | None) -> Run:
    """A run, as `find` finds it, or a folder of exports. Raises RunError."""
    this = Run(Path(what)) if what is not None else None
    return this if this and this.origin and not this.exists else find(what)


def _last_change(path: Path) -> int:
    return max(p.stat().st_mtime_ns for p in [path / "run.json", *path.glob("stamps/*.json")])


class Run:
    """One run's directory. Making the object touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"<ggufy.Run {self.path.as_posix()}>"

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    @property
    def frozen(self) -> dict[str, Any]:
        """What `run.json` holds."""
        path = self.path / "run.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path.as_posix()} cannot be read: {error}", "start the run again with --fresh") from None
        if not isinstance(values, dict) or "recipe" not in values:
            raise RunError(f"{path.as_posix()} is not the record of a ggufy run", "choose another --run")
        return values

    def freeze(self, values: Mapping[str, Any]) -> None:
        """Write `run.json`, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", values)

    def refuse_foreign(self) -> None:
        """Raise RunError for a folder with files in it that is no run: nobody else's `data/` is written over."""
        own = any((self.path / name).exists() for name in ("run.json", "lock"))
        if not own and self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise RunError(f"{self.path.as_posix()} is there already, and is no run of ggufy", "choose another --run")

    def refuse_foreign_names(self) -> None:
        """Raise RunError where the place for exports is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path.as_posix()} is a file, not a folder", "choose another --out")

    @property
    def origin(self) -> dict[str, str] | None:
        """What `source.json` of a folder of exports says: their `source`, and its `base` where that was named."""
        try:
            found = json.loads((self.path / _SOURCE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("source"), str) else None

    def claim(self, source: str, content: Inputs, *, base: str | None = None, force: bool = False) -> None:
        """Raise RunError where outputs are of another `source`, and not of the same `content`: parts of their inputs.

        The same source with other content is made again. `source.json` gets it with the next output that is made.
        """
        known = (self.origin or {"source": source})["source"]
        if known != source and not force:
            held = [stamp["inputs"] for output in self.stamped() if (stamp := self.stamp(output))]
            if any(inputs.get(key, value) != value for inputs in held for key, value in content.items()):
                raise RunError(
                    f"{self.path.as_posix()} holds exports of another adapter or model",
                    "choose another --out, or give --force to replace them",
                )
        self._source = {"source": source, **({"base": base} if base else {})}

    def clear(self, keep: str) -> None:
        """Remove what a run holds but its lock and the output `keep`, the record first: half cleared, it is no run.

        Only ggufy's own names go; whatever else somebody keeps in the folder stays.
        """
        stamp = self._stamp_path(keep)
        for name in CONTENTS:
            if name == "stamps":
                for path in self.path.glob("stamps/*"):
                    if path != stamp:
                        _remove(path)
            elif name != keep:
                _remove(self.path / name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run as its only writer. The kernel drops the lock of a process that died.

        A folder that was made for this, and in which nothing came to be, is removed again.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with self._locked() as file:
            file.seek(0)
            if left := file.read().strip():
                log.info("taking over the lock of process %s, which ended without releasing it", left)
            file.seek(0)
            file.truncate()
            file.write(f"{os.getpid()}\n")
            file.flush()
            try:
                yield
            finally:
                file.seek(0)
                file.truncate()
                file.flush()
                if made and [path.name for path in self.path.iterdir()] == ["lock"]:
                    (self.path / "lock").unlink()
                    with suppress(OSError):
                        for folder in made:
                            folder.rmdir()

    def _locked(self) -> IO[str]:
        """The open lock file, locked. Raises RunError where another process holds it."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have removed it in between; then it is nobody's lock.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), (self.path / "lock").stat()):
                        return file
                file.close()
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                file.close()
                raise RunError(
                    f"the run {self.path.as_posix()} is in use by another ggufy (process {holder})",
                    "wait for it, stop it, or choose another --run",
                ) from None

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
                facts = _settle([file for place in places.values() for file in _files(place)])
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

    def valid(self, output: str, inputs: Inputs | None = None) -> Artifact | None:
        """The output, if its stamp holds: made from these inputs, and its files are as they were stamped."""
        stamp = self.stamp(output)
        if stamp is None or (inputs is not None and stamp["inputs"] != _plain(inputs)):
            return None
        if stamp.get(_VERIFIED) == _FAILED:
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
                log.info("%s was changed since it was made; making it again", path.as_posix())
                return None
        size = sum(facts["size"] for facts in stamp["files"].values())
        return Artifact(self.path / output, stamp["sha256"], size, reused=True)

    def missing(self, wanted: Mapping[str, Inputs], *, force: bool = False) -> list[str]:
        """Which outputs `make` would build. Raises RunError where it would, for the files in its way."""
        missing = [output for output, inputs in wanted.items() if self.valid(output, inputs) is None]
        if not force:
            self._refuse_to_replace(missing)
        return missing

    def unverified(self, output: str) -> bool:
        """Whether nobody has verified an output yet."""
        return (self.stamp(output) or {}).get(_VERIFIED) == "no"

    def note_verified(self, output: str, *, sound: bool) -> None:
        """Write into its stamp what verifying an output has found. One that is not sound is not valid from then on."""
        stamp, path = self.stamp(output), self._stamp_path(output)
        if stamp is None:
            return
        stamp.pop(_VERIFIED, None)
        state = path.stat()
        write_json(path, stamp if sound else {**stamp, _VERIFIED: _FAILED})
        # Which output is the newest goes by this time.
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    def discard(self, output: str) -> None:
        """Remove an output that is not needed any more, its stamp last: half removed, it is not valid."""
        _remove(self.path / output)
        self._stamp_path(output).unlink(missing_ok=True)

    def damage(self, output: str) -> str | None:
        """Re-hash an output: what is wrong with it against its stamp, or None."""
        stamp = self.stamp(output)
        for name, facts in (stamp or {"files": {}})["files"].items():
            path = self.path / name
            if not path.is_file():
                return f"{path.as_posix()} was removed"
            if path.stat().st_size != facts["size"] or digest.of_file(path) != facts["sha256"]:
                return f"{path.as_posix()} was changed"
        return None

    def stamp(self, output: str) -> dict[str, Any] | None:
        """The stamp of an output, whatever became of its files since."""
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

    def _partial(self, output: str, inputs: Inputs) -> Path:
        return self.path / "partial" / f"{output.replace('/', '--')}.{digest.of_values(_plain(inputs))[:16]}"

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
                    f"{(self.path / output).as_posix()} is there already, and ggufy did not make it",
                    "move it away, or give --force to write over it",
                )
            if changed := self._replaced(output):
                raise RunError(
                    f"{changed.as_posix()} is not the file that ggufy made",
                    "move it away, or give --force to write over it",
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
            _remove(folder)
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
            "inputs": _plain(inputs),
            "files": stamped,
            "sha256": sha256,
            **({} if verified else {_VERIFIED: "no"}),
            "ggufy": __version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if self._source is not None:
            write_json(place.parent / _SOURCE, self._source)
            (place.parent / _SOURCE).replace(self.path / _SOURCE)
        write_json(place.parent / _WAITING, stamp)
        final.parent.mkdir(parents=True, exist_ok=True)
        if others:
            self._move_beside(output, place, files)
        else:
            if final.is_dir() or place.is_dir():
                _remove(final)
            place.replace(final)
        sync(final.parent)
        self._finish_move(output, inputs)
        return Artifact(final, sha256, sum(facts["size"] for facts in stamped.values()), reused=False)

    def _move_beside(self, output: str, place: Path, files: list[Path]) -> None:
        """Replace what the stamp of a folder lists by these files, and leave what else is there."""
        stamp = self.stamp(output)
        for name in stamp["files"] if stamp else ():
            _remove(self.path / name)
        for file in files:
            moved = self.path / output / file.relative_to(place)
            moved.parent.mkdir(parents=True, exist_ok=True)
            file.replace(moved)
            sync(moved.parent)
        _remove(place)

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


def _settle(files: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Force files to the disk and hash them, several at a time: what a stamp says of each."""
    with ThreadPoolExecutor(4) as pool:
        hashes = [pool.submit(digest.of_file, file) for file in files]
        for _ in pool.map(sync, files):
            pass
        states = [file.stat() for file in files]
        return {
            file: {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": hashed.result()}
            for file, state, hashed in zip(files, states, hashes, strict=True)
        }


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON so that after a crash there is the old file or the new one, never a part of either."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync(path.parent)


def _plain(inputs: Inputs) -> Any:
    return json.loads(json.dumps(inputs))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
