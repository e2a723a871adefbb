"""Checkpoints that can be trusted: a manifest with the hash of every file, written last.

The trainer writes checkpoint folders in place, so a folder may be half there after a crash or a full disk. Only one
with a manifest that verifies is ever resumed from, and the older ones are only removed once a newer one verifies.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from ggufy import digest
from ggufy.errors import TrainError
from ggufy.run import sync, write_json

log = logging.getLogger("ggufy")

MANIFEST = "manifest.json"
# Without one of these the trainer would resume in silence with other weights, another schedule or other random numbers.
_NEEDED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def seal(folder: Path, identity: str, made_on: dict[str, str], keep: int) -> None:
    """Write the manifest of a finished checkpoint, then remove all but the newest `keep` sealed ones."""
    missing = [name for name in (*_NEEDED, _rng(folder)) if not (folder / name).is_file()]
    if missing:
        raise TrainError(f"{folder.as_posix()}: the trainer did not write {missing[0]}", "this is a bug in ggufy")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        sync(path)
    listed = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest.of_file(path)}
        for path in files
    }
    write_json(folder / MANIFEST, {"identity": identity, "made_on": made_on, "step": step_of(folder), "files": listed})
    sync(folder.parent)
    sealed = [path for path in _folders(folder.parent) if (path / MANIFEST).is_file()]
    for old in sealed[:-keep]:
        (old / MANIFEST).unlink()
        shutil.rmtree(old)


def newest(folder: Path, identity: str, made_on: dict[str, str]) -> Path | None:
    """The newest checkpoint that verifies; says which damaged newer ones it passes over, and removes those.

    Raises TrainError where it is one of another training, or of another kind of device: nothing is removed then.
    """
    for path in reversed(_folders(folder)):
        problem = _problem(path)
        if problem is None:
            _check_same(path, identity, made_on)
            return path
        log.info("passing over %s: %s", path.as_posix(), problem)
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)
    return None


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _folders(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of)


def _check_same(folder: Path, identity: str, made_on: dict[str, str]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["identity"] != identity:
        raise TrainError(
            f"{folder.as_posix()} belongs to another recipe, base or data set",
            "--fresh starts over, --run NAME makes another run",
        )
    if manifest["made_on"] != made_on:
        before, now = (" in ".join(kind.values()) for kind in (manifest["made_on"], made_on))
        raise TrainError(
            f"{folder.as_posix()} was trained on {before}, and this is {now}: it would become another training",
            "continue where it began, set model.dtype, or start over with --fresh",
        )


def _problem(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, _ = manifest["files"], (manifest["identity"], manifest["made_on"])
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["size"] or digest.of_file(path) != facts["sha256"]:
            return f"{name} is damaged"
    return None


def _rng(folder: Path) -> str:
    several = sorted(path.name for path in folder.glob("rng_state_*.pth"))
    return several[0] if several else "rng_state.pth"
