"""The directory of one run: its place, its lock, its run.json. Its outputs are made in `artifacts`."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ggufy.errors import RunError
from ggufy.runs.artifacts import CONTENTS, SOURCE, Maker
from ggufy.runs.stamps import Inputs
from ggufy.system.disk import remove, write_json

log = logging.getLogger("ggufy")


def runs_folder() -> Path:
    """Where runs are: $GGUFY_RUNS, else `runs` in the current folder."""
    return Path(os.environ.get("GGUFY_RUNS") or "runs")


def named(name: str) -> Run:
    """The run of that name, there or not. Raises RunError for what cannot be the name of a folder in runs/."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RunError(
            f"{name!r} cannot be the name of a run", "use letters, digits, '.', '_' and '-', as in first-try"
        )
    return Run(runs_folder() / name)


def find(name: str | os.PathLike[str] | None = None) -> Run:
    """The run of that name or folder; without one, the newest."""
    runs = [path.parent for path in runs_folder().glob("*/run.json")]
    if name is None:
        if not runs:
            raise RunError(f"no runs yet in {runs_folder().as_posix()}/", "make one with `ggufy train --recipe tiny`")
        return Run(max(runs, key=_last_change))
    for path in (runs_folder() / name, Path(name)):
        if (path / "run.json").is_file():
            return Run(path)
    known = ", ".join(sorted(path.name for path in runs))
    if Path(name).is_dir() and not any((Path(name) / file).exists() for file in ("config.json", "adapter_config.json")):
        raise RunError(
            f"{os.fspath(name)} is not a run, and has neither config.json nor adapter_config.json in it",
            f"name a run{f' ({known})' if known else ''}, or a folder with a model or an adapter",
        )
    hint = f"the runs are {known}" if known else "there are no runs yet: make one with `ggufy train`"
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


def output_folder(what: str | os.PathLike[str] | None) -> Run:
    """A run, as `find` finds it, or a folder of exports. Raises RunError."""
    this = Run(Path(what)) if what is not None else None
    return this if this and this.origin and not this.exists else find(what)


def _last_change(path: Path) -> int:
    return max(p.stat().st_mtime_ns for p in [path / "run.json", *path.glob("stamps/*.json")])


class Run(Maker):
    """One run's directory. Making the object touches nothing."""

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
            raise RunError(f"{path.as_posix()} does not describe a ggufy run", "choose another name")
        return values

    def freeze(self, values: Mapping[str, Any]) -> None:
        """Write `run.json`, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", values)

    def refuse_foreign(self) -> None:
        """Raise RunError for a folder with files that is not a run, so that nobody's files are overwritten."""
        own = any((self.path / name).exists() for name in ("run.json", "lock"))
        if not own and self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise RunError(f"{self.path.as_posix()} already exists, and is not a ggufy run", "choose another name")

    def refuse_foreign_names(self) -> None:
        """Raise RunError where the place for exports is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path.as_posix()} is a file, not a folder", "choose another --out")

    @property
    def origin(self) -> dict[str, str] | None:
        """What `source.json` of a folder of exports says: their `source`, and its `base` where that was named."""
        try:
            found = json.loads((self.path / SOURCE).read_text(encoding="utf-8"))
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
                        remove(path)
            elif name != keep:
                remove(self.path / name)

    @contextmanager
    def lock(self, instead: str | None = None) -> Iterator[None]:
        """Hold the run as its only writer. The kernel drops the lock of a process that died.

        `instead` is the option by which the command could work elsewhere, if it has one.

        A folder that was made for this, and in which nothing came to be, is removed again.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with self._locked(instead) as file:
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

    def _locked(self, instead: str | None) -> IO[str]:
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
                in_runs = self.path.absolute().parent == runs_folder().absolute()
                what = "run" if in_runs or self.exists else "folder"
                raise RunError(
                    f"the {what} {self.path.as_posix()} is in use by another ggufy command (process {holder})",
                    f"wait for it, stop it, or choose another {instead}" if instead else "wait for it, or stop it",
                ) from None
