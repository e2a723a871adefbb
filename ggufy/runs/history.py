"""The history of runs: read every run of a folder, with its state, steps, losses and exports.

A run that is broken is a row that says so. Nothing is written, and no file is read through that has not been touched
since it was stamped.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ggufy.errors import GgufyError, RunError
from ggufy.recipe import recipe
from ggufy.recipe.schema import Recipe
from ggufy.runs import run
from ggufy.runs.run import Run
from ggufy.system import digest

TRAINING, STOPPED, FINISHED, DAMAGED = "training", "stopped", "finished", "damaged"
Curve = list[tuple[int, float]]
"""(step, loss)."""


@dataclass(frozen=True)
class Row:
    """One run. What is not known is None; `problem` says why it is damaged."""

    name: str
    state: str
    problem: str = ""
    recipe: str | None = None
    base: str | None = None
    steps: int = 0
    steps_planned: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    exports: dict[str, int] = field(default_factory=dict)
    """File -> bytes."""
    date: str | None = None
    """Of the last change, in UTC."""
    figures: dict[str, Any] = field(default_factory=dict)
    """summary.json."""
    sweep: str | None = None
    """The sweep that it is a trial of."""

    def values(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


# What a run holds that was stopped while its data was prepared.
_BEFORE = {"lock", "partial", "stamps", "data"}


@dataclass(frozen=True)
class Swept:
    """One sweep: how far it is, and the lowest held-out loss."""

    name: str
    recipe: str
    planned: int
    done: int
    best_loss: float | None
    best_run: str | None


def rows() -> list[Row]:
    """Every run of the runs folder, the newest first, those of a sweep together. Other folders are left out."""
    folders = [p for p in run.runs_folder().glob("*") if (p / "run.json").exists() or (p / "lock").is_file()]
    known = sweeps()
    found = []
    for path in folders:
        trial = re.fullmatch(r"(.+)-\d{3,}", path.name)
        found.append(replace(row(Run(path)), sweep=trial[1] if trial and trial[1] in known else None))
    newest: dict[str, str] = {}
    for one in found:
        group = one.sweep or one.name
        newest[group] = max(newest.get(group, ""), one.date or "")

    def order(one: Row) -> tuple[str, ...]:
        group = one.sweep or one.name
        return newest[group], group, one.date or "", one.name

    return sorted(found, key=order, reverse=True)


def sweeps() -> dict[str, Swept]:
    """The sweeps of the runs folder by name, as their sweep.json has them."""
    found = {}
    for path in run.runs_folder().glob("*/sweep.json"):
        name = path.parent.name
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            done = sum(trial["state"] == "done" for trial in said["trials"])
            found[name] = Swept(name, said["recipe"], said["planned"], done, said["best_loss"], said["best_run"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return found


def row(this: Run) -> Row:
    """One run, read as far as it can be."""
    date = _date(this.path)
    try:
        frozen = this.frozen
        wanted = recipe.from_values(frozen["recipe"])
        base = str(frozen["base"]["name"])
    except (GgufyError, LookupError, TypeError) as error:
        problem = error.message if isinstance(error, GgufyError) else "run.json does not describe a ggufy run"
        if not this.exists and is_locked(this):
            return Row(this.name, TRAINING, date=date)
        if not this.exists and {path.name for path in this.path.iterdir()} <= _BEFORE:
            return Row(this.name, STOPPED, "it ended before its data was ready", date=date)
        return Row(this.name, DAMAGED, problem, date=date)
    train, evaluated = curves(this)
    figures = summary(this)
    exports, problem = _outputs(this)
    problem = problem or _broken_figures(this)
    state = FINISHED if this.stamp("adapter") else TRAINING if is_locked(this) else STOPPED
    planned = wanted.train.max_steps or (figures.get("steps") if state == FINISHED else None)
    return Row(
        name=this.name,
        state=DAMAGED if problem else state,
        problem=problem,
        recipe=wanted.name,
        base=base,
        steps=max([step for step, _ in (*train, *evaluated)], default=0),
        steps_planned=planned if isinstance(planned, int) else None,
        loss=train[-1][1] if train else None,
        eval_loss=evaluated[-1][1] if evaluated else None,
        exports=exports,
        date=date,
        figures=figures,
    )


def find(name: str | None) -> Run:
    """A run by its name, also one whose record is gone; without a name the newest. Raises RunError."""
    there = run.runs_folder() / name if name else None
    if there is not None and (there / "lock").is_file():
        return Run(there)
    return run.find(name)


def recipe_of(this: Run) -> Recipe:
    """The recipe of a run. Raises RunError or RecipeError."""
    return recipe.from_values(this.frozen["recipe"])


def is_locked(this: Run) -> bool:
    """Whether a ggufy is at work on it right now."""
    try:
        with (this.path / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def curves(this: Run) -> tuple[Curve, Curve]:
    """Losses by step, of training and of evaluation. Lines that cannot be read are left out: a kill cuts the last."""
    train: dict[int, float] = {}
    evaluated: dict[int, float] = {}
    for line in _lines(this):
        try:
            figures = json.loads(line)
            step = int(figures["step"])
            for curve, key in ((train, "loss"), (evaluated, "eval_loss")):
                if key in figures:
                    curve[step] = float(figures[key])
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(train.items()), sorted(evaluated.items())


def summary(this: Run) -> dict[str, Any]:
    """summary.json, empty where there is none that can be read."""
    try:
        found = json.loads((this.path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def differences(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """The keys of the recipes that differ, with both values, and the data and base where their content does."""
    found = recipe_of(first).differences(recipe_of(second))
    for name in ("base", "data"):
        mine, theirs = (_part(one.frozen, name) for one in (first, second))
        if mine.get("fingerprint") != theirs.get("fingerprint"):
            found[f"{name} content"] = tuple(str(one.get("fingerprint"))[:12] for one in (mine, theirs))  # type: ignore[assignment]
    return found


def _part(frozen: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = frozen.get(name)
    return part if isinstance(part, Mapping) else {}


def _lines(this: Run) -> list[str]:
    try:
        return (this.path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _broken_figures(this: Run) -> str:
    path = this.path / "metrics.jsonl"
    lines = _lines(this)
    if len(lines) > 1 and not any(curves(this)):
        return f"{path.as_posix()} cannot be read"
    if (this.path / "summary.json").exists() and not summary(this):
        return f"{(this.path / 'summary.json').as_posix()} cannot be read"
    return ""


def _outputs(this: Run) -> tuple[dict[str, int], str]:
    """What lies in export/, and the first stamped file that is not as it was made."""
    exports: dict[str, int] = {}
    problem = ""
    for output in this.stamped():
        stamp = this.stamp(output) or {"files": {}}
        try:
            for name, facts in stamp["files"].items():
                problem = problem or _problem(this.path / name, facts)
            if output.startswith("export/") and not output.endswith(".Modelfile"):
                exports[output.removeprefix("export/")] = sum(facts["size"] for facts in stamp["files"].values())
        except (LookupError, TypeError, AttributeError):
            problem = problem or f"the stamp of {output} cannot be read"
    return exports, problem


def _problem(path: Path, facts: Mapping[str, Any]) -> str:
    try:
        state = path.stat()
    except OSError:
        return f"{path.as_posix()} has been removed"
    same = state.st_size == facts["size"]
    if same and state.st_mtime_ns != facts["mtime_ns"]:
        same = digest.of_file(path) == facts["sha256"]
    return "" if same else f"{path.as_posix()} has been changed since it was made"


def _date(folder: Path) -> str | None:
    places = [folder / name for name in ("run.json", "metrics.jsonl", "summary.json")]
    times = [p.stat().st_mtime for p in (*places, *folder.glob("stamps/*.json")) if p.exists()]
    if not times:
        return None
    return datetime.fromtimestamp(max(times), timezone.utc).strftime("%Y-%m-%d %H:%M")


def measured() -> list[tuple[str, str, str, float]]:
    """(device, base, loaded in, tokens a second) of finished runs, the oldest first."""
    found: list[tuple[str, str, str, float]] = []
    for one in reversed(rows()):
        hardware = one.figures.get("hardware")
        device = hardware.get("device") if isinstance(hardware, dict) else one.figures.get("device")
        speed = one.figures.get("tokens_per_second")
        if one.state == FINISHED and one.base and isinstance(device, str) and isinstance(speed, int | float) and speed:
            found.append((device, one.base, recipe_of(find(one.name)).model.load_in, float(speed)))
    return found


def pair(first: str, second: str) -> tuple[Run, Run]:
    """Two runs to compare. Raises RunError where one cannot be."""
    found = find(first), find(second)
    for this in found:
        if row(this).recipe is None:
            raise RunError(
                f"{this.path.as_posix()} cannot be compared: {row(this).problem}", "name two runs that can be compared"
            )
    return found
