"""The results of a sweep: the table, sweep.json, the best trial's recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ggufy.recipe.schema import Recipe
from ggufy.runs import history
from ggufy.runs.run import Run, runs_folder
from ggufy.sweeps import plot, sampler, space
from ggufy.sweeps.definition import GRID, Sweep
from ggufy.sweeps.study import Study
from ggufy.sweeps.trials import DONE, FAILED, OPEN, PRUNED, WAITING, Trial
from ggufy.system.disk import write_json

_ORDER = {DONE: 0, PRUNED: 1, FAILED: 2, OPEN: 3, WAITING: 4}


@dataclass(frozen=True)
class Result:
    """A sweep as it stands: the trials that count, those done first, the lowest loss at the top."""

    sweep: Sweep
    trials: tuple[Trial, ...]
    importances: dict[str, float]
    storage: str

    @property
    def best(self) -> Trial | None:
        return self.trials[0] if self.trials and self.trials[0].state == DONE else None

    @property
    def best_recipe(self) -> Path:
        return self.sweep.folder / "best.yaml"

    @property
    def picture(self) -> Path:
        return self.sweep.folder / "sweep.png"

    def count(self, *states: str) -> int:
        return sum(trial.state in states for trial in self.trials)

    def values(self) -> dict[str, Any]:
        """For --json, and what sweep.json holds."""
        best = self.best
        return {
            "sweep": self.sweep.name,
            "recipe": self.sweep.recipe.name,
            "sampler": self.sweep.sampler,
            "storage": self.storage,
            "planned": self.sweep.total,
            "keys": [axis.key for axis in self.sweep.axes],
            "best": None if best is None else best.number,
            "best_loss": None if best is None else best.loss,
            "best_run": None if best is None else best.run,
            "best_recipe": None if best is None else self.best_recipe.as_posix(),
            "plot": self.picture.as_posix() if self.picture.is_file() else None,
            "importances": self.importances,
            "trials": [_values(trial) for trial in self.trials],
        }


def result(study: Study) -> Result:
    """Read the trials of a study."""
    trials = sorted(study.trials(), key=lambda one: (_ORDER[one.state], one.loss or 0.0, one.number))
    return Result(study.sweep, tuple(trials), sampler.importances(study.sweep, trials), study.shown_url)


def write(study: Study) -> Result:
    """Write sweep.json, sweep.png and best.yaml of a sweep as it stands."""
    found = result(study)
    with study.alone():
        plot.draw(found.picture, found.sweep, found.trials, found.importances)
        if best := found.best:
            _write(found.best_recipe, _best_text(found, best))
        write_json(study.folder / "sweep.json", found.values())
    return found


def lines(found: Result) -> list[str]:
    """The table, for people, and what to do next."""
    keys = [axis.key for axis in found.sweep.axes]
    rows = [["trial", "state", "held-out loss", *keys, "steps", "time", "run"]]
    for trial in found.trials:
        seconds, steps = trial.facts.get("seconds"), trial.facts.get("steps")
        rows.append(
            [
                str(trial.number),
                _state(trial),
                "" if trial.loss is None else f"{trial.loss:.4f}",
                *(space.shown(trial.point.get(key)) for key in keys),
                "" if steps is None else f"{steps:,}",
                "" if seconds is None else f"{seconds:,.1f} s",
                trial.run,
            ]
        )
    said = table(rows)
    said += [f"trial {t.number} {t.state}: {t.facts['reason']}" for t in found.trials if t.facts.get("reason")]
    if found.importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in found.importances.items())
        how = (
            "share of the losses' variance"
            if found.sweep.sampler == GRID
            else "share of what sets the best apart (PED-ANOVA)"
        )
        said.append(f"{how}: {shares}")
    said += _at_the_edge(found)
    if left := found.count(OPEN, WAITING):
        said.append(f"{left} of {len(found.trials)} trials are still running in other processes")
    if best := found.best:
        said += ["", f"best: trial {best.number}, held-out loss {best.loss:.4f}: {space.text(best.point)}"]
        said.append(f"      {found.best_recipe.as_posix()}  its recipe")
        if found.picture.is_file():
            said.append(f"      {found.picture.as_posix()}  the plot")
        said.append(f"next: ggufy export {best.run}")
    return said


def _at_the_edge(found: Result) -> Iterator[str]:
    """Where the best value is the last one that was tried, and a better one may lie beyond."""
    for axis in found.sweep.axes:
        if not (found.best and axis.choices and axis.is_numeric):
            continue
        best, tried = found.best.point[axis.key], {one.point[axis.key] for one in found.trials if one.state == DONE}
        if len(tried) > 1 and best in (min(tried), max(tried)):
            end = "highest" if best == max(tried) else "lowest"
            yield f"the best {axis.key} is the {end} tried, {space.shown(best)}: there may be better ones beyond"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def recipe_text(wanted: Recipe) -> str:
    """A recipe as YAML: what differs from the defaults, and what has none."""
    values = wanted.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _best_text(found: Result, best: Trial) -> str:
    made = space.apply(found.sweep.recipe, best.point)
    made = made.model_copy(update={"name": f"{found.sweep.name}-best"})
    said = (
        f"# The lowest held-out loss of the sweep {found.sweep.name}: {best.loss:.4f} of trial {best.number},\n"
        f"# whose run is {best.run}. There were {found.count(DONE)} trials; these keys were varied:\n"
    )
    for axis in found.sweep.axes:
        said += f"#   {axis.key}: {axis.text()}; here {space.shown(best.point[axis.key])}\n"
    return said + recipe_text(made)


def _state(trial: Trial) -> str:
    if trial.state != OPEN:
        return trial.state
    if (runs_folder() / trial.run).exists():
        return "training" if history.is_locked(Run(runs_folder() / trial.run)) else "stopped"
    return f"on {trial.facts.get('host', 'another machine')}"


def _values(trial: Trial) -> dict[str, Any]:
    kept = ("reason", "outcome", "steps", "seconds", "tokens_per_second", "host", "same_as")
    return {
        "trial": trial.number,
        "state": trial.state,
        "loss": trial.loss,
        "values": trial.point,
        "run": trial.run,
        **{name: trial.facts.get(name) for name in kept},
    }


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
