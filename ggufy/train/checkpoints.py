"""Checkpoints that can be trusted: a manifest with the hash of every file, written last.

The trainer writes checkpoint folders in place, so a folder may be half there after a crash or a full disk. Only one
with a manifest that verifies is ever resumed from, and the older ones are only removed once a newer one verifies.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufy.errors import TrainError
from ggufy.system import digest
from ggufy.system.disk import sync, write_json

log = logging.getLogger("ggufy")

MANIFEST = "manifest.json"
# Without one of these the trainer would resume in silence with other weights, another schedule or other random numbers.
_NEEDED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
# What a checkpoint is made with. Those of earlier versions do not name the backend; there was one.
_KINDS = {"device": "cpu", "dtype": "float32", "backend": "hf", "gpus": "1"}


def seal(
    folder: Path,
    identity: str,
    made_on: Mapping[str, str],
    keep: int,
    *,
    seen: Mapping[str, float] | None = None,
    always: Collection[int] = (),
) -> None:
    """Write the manifest of a finished checkpoint, then remove all but the newest `keep` sealed ones.

    `seen` is what of the training so far only ggufy counts; the checkpoints of the steps in `always` stay.
    """
    missing = [name for name in (*_NEEDED, _rng(folder)) if not (folder / name).is_file()]
    if missing:
        raise TrainError(f"{folder.as_posix()}: the trainer did not write {missing[0]}", "this is a bug in ggufy")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        sync(path)
    sync(folder)
    listed = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest.of_file(path)}
        for path in files
    }
    manifest = {"identity": identity, "made_on": dict(made_on), "step": step_of(folder), "seen": dict(seen or {})}
    write_json(folder / MANIFEST, {**manifest, "files": listed})
    sync(folder.parent)
    for old in _sealed(folder.parent)[:-keep]:
        if step_of(old) not in always:
            _remove(old)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """While a checkpoint is written: on a full disk, remove the incomplete one and name the one before it."""
    try:
        yield
    except Exception as error:
        problem = no_room(error)
        if problem is None:
            raise
        shutil.rmtree(folder, ignore_errors=True)
        left = last_sealed(folder.parent)
        kept = f"{left.as_posix()} is kept" if left else "there is none before it"
        again = (
            f"run the same command again to continue from step {step_of(left)}"
            if left
            else "run the same command again"
        )
        raise TrainError(
            f"{folder.as_posix()}: {problem} while the checkpoint was written; {kept}", f"free some space; {again}"
        ) from error


def newest(folder: Path, identity: str, made_on: Mapping[str, str], *, change_gpus: bool = False) -> Path | None:
    """The newest checkpoint that verifies; says which damaged newer ones it passes over, and removes those.

    Raises TrainError where it is one of another training, or of another kind of device: nothing is removed then.
    """
    for path in reversed(_folders(folder)):
        problem = damage(path)
        if problem is None:
            _check_same(path, identity, made_on, change_gpus=change_gpus)
            return path
        log.info("skipping %s: %s", path.as_posix(), problem)
        _remove(path)
    return None


def begun_with(folder: Path) -> str | None:
    """The backend that made the newest checkpoint which has a manifest; None where there is none."""
    for path in reversed(_folders(folder)):
        try:
            return str((_KINDS | manifest(path)["made_on"])["backend"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def last_sealed(folder: Path) -> Path | None:
    """The newest checkpoint that was finished, whatever became of it since."""
    return next(iter(reversed(_sealed(folder))), None)


def manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint says."""
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return found


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        said = manifest(folder)
        files, _ = said["files"], (said["identity"], said["made_on"])
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    for name in _NEEDED:
        if name not in files:
            return f"its manifest does not list {name}"
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["size"] or digest.of_file(path) != facts["sha256"]:
            return f"{name} is damaged"
    return None


def no_room(error: Exception) -> str | None:
    """What a library meant to say where there was no room for a file, if that is what it said."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk"
    if "No space left" in text or "StorageFull" in text or "os error 28" in text:
        return "no space left on the disk"
    if (isinstance(error, OSError) and error.errno == errno.EFBIG) or "File too large" in text:
        return "a file is larger than a limit allows"
    # torch does not pass the system's reason on.
    if "PytorchStreamWriter" in text or "unexpected pos" in text:
        return "a file could not be written to its end, as on a full disk,"
    return None


def _folders(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of)


def _sealed(folder: Path) -> list[Path]:
    return [path for path in _folders(folder) if (path / MANIFEST).is_file()]


def _remove(folder: Path) -> None:
    """The manifest first: half removed, it is no checkpoint."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _check_same(folder: Path, identity: str, made_on: Mapping[str, str], *, change_gpus: bool) -> None:
    said = manifest(folder)
    if said["identity"] != identity:
        raise TrainError(
            f"{folder.as_posix()} belongs to another recipe, base or data set",
            "give --fresh to start over, or --run NAME to make another run",
        )
    before, now = _KINDS | said["made_on"], _KINDS | dict(made_on)
    if change_gpus:
        before["gpus"] = now["gpus"]
    if before != now:
        was, here = (f"{on['device']} in {on['dtype']}" for on in (before, now))
        hint = "continue where it began, set model.dtype, or start over with --fresh"
        if before["backend"] != now["backend"]:
            was, here = (f"{text} by {on['backend']}" for text, on in ((was, before), (here, now)))
            hint = f"continue with --backend {before['backend']}, or start over with --fresh"
        if before["gpus"] != now["gpus"]:
            was, here = (f"{text} on {on['gpus']} GPU(s)" for text, on in ((was, before), (here, now)))
            hint = f"continue with --gpus {before['gpus']}, or with --change-gpus, or start over with --fresh"
        raise TrainError(
            f"{folder.as_posix()} was trained on {was}, and this is {here}: "
            "continuing would make it a different training",
            hint,
        )


def _rng(folder: Path) -> str:
    several = sorted(path.name for path in folder.glob("rng_state_*.pth"))
    return several[0] if several else "rng_state.pth"
