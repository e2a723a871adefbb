"""`ggufy sweep`: run the trials and report the results. Also the Python interface."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from ggufy import pipeline
from ggufy.data import source
from ggufy.errors import ExportError, Interrupted, SweepError
from ggufy.plan import base_sizes, estimate, planner
from ggufy.plan.base_sizes import Base
from ggufy.plan.plan import Plan, duration
from ggufy.recipe.schema import Recipe
from ggufy.runs import history
from ggufy.sweeps import definition, report, space, storage, work
from ggufy.sweeps.definition import GRID, Sweep
from ggufy.sweeps.report import Result
from ggufy.sweeps.space import Point
from ggufy.sweeps.study import Study
from ggufy.sweeps.trials import DONE, OPEN, WAITING
from ggufy.system import disk
from ggufy.train import job


def sweep(
    what: str | os.PathLike[str] | Recipe,
    *,
    grid: Iterable[str] = (),
    ranges: Iterable[str] = (),
    overrides: Iterable[str] = (),
    **options: Any,
) -> Result:
    """Train a recipe with every value of a grid, or with those that a sampler chooses, and compare the held-out losses.

    `grid` and `ranges` are as on the command line, "lora.r=8,16" and "train.learning_rate=1e-5..1e-3:log"; the further
    arguments are those of `definition.make`. A sweep that was begun goes on. Raises Interrupted when asked to stop.
    """
    storage.check_installed()
    wanted = definition.make(pipeline.check(what, overrides), grid, ranges, **options)
    job.check_installed(wanted.recipe)
    study = Study(wanted)
    report.write(study)
    with work.Stop() as stop:
        work.work(study, stop, lambda: report.write(study))
        found = report.write(study)
    if stop.asked is not None and found.count(OPEN, WAITING):
        raise _interrupted(found, stop.asked)
    if found.best is None and not found.count(OPEN, WAITING):
        first = next(
            (trial.facts["reason"] for trial in found.trials if trial.facts.get("reason")), "no reason is known"
        )
        raise SweepError(
            f"none of {len(found.trials)} trials finished; the first: {first}",
            f"the logs are in {(wanted.folder / 'trials').as_posix()}/",
        )
    return found


def rehearse(
    what: str | os.PathLike[str] | Recipe,
    *,
    grid: Iterable[str] = (),
    ranges: Iterable[str] = (),
    overrides: Iterable[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """What `sweep` would train: the trials of a grid, else the ranges; steps and seconds where they can be known."""
    wanted = definition.make(pipeline.check(what, overrides), grid, ranges, **options)
    where = planner.device(None)
    known = [planner.Measured(*one) for one in history.measured()]
    bases: dict[str, Base] = {}
    planned = [_planned(wanted, point, where, known, bases) for point in definition.points(wanted) or [{}]]
    times = 1 if wanted.sampler == GRID else wanted.trials

    def total(key: str) -> Any:
        known = [one[key] for one in planned if one[key] is not None]
        return times * sum(known) if len(known) == len(planned) else None

    return {
        "sweep": wanted.name,
        "recipe": wanted.recipe.name,
        "sampler": wanted.sampler,
        "planned": wanted.total,
        "keys": {axis.key: axis.text() for axis in wanted.axes},
        "trials": planned if wanted.sampler == GRID else [],
        "steps": total("steps"),
        "seconds": total("seconds"),
        "disk_bytes": total("disk_bytes"),
    }


def rehearsal_lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    keys = list(found["keys"])
    said = [f"{found['sweep']}: {_trials(found['planned'])} of {found['recipe']}, by {found['sampler']}"]
    said += [f"  {key}: {text}" for key, text in found["keys"].items()]
    if found["trials"]:
        rows = [["", *keys, "steps", "time", ""]]
        for number, trial in enumerate(found["trials"]):
            values = [space.shown(trial["values"][key]) for key in keys]
            rows.append([str(number), *values, _steps(trial["steps"]), duration(trial["seconds"]), trial["note"]])
        said += report.table(rows)
    elif found["planned"]:
        said.append(
            "  the values are chosen as the losses come in; steps and time are those of the recipe's own values"
        )
    room = "" if found["disk_bytes"] is None else f", {disk.size(found['disk_bytes'])} on the disk"
    time = duration(found["seconds"])
    said.append(f"together: {_steps(found['steps'])} steps, time {time}{room}; nothing was started")
    return said


def _trials(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'}"


def text(found: Result, *, as_json: bool = False) -> str:
    """A sweep's outcome, for people or for scripts."""
    return json.dumps(found.values(), indent=2) if as_json else "\n".join(report.lines(found))


def _planned(
    wanted: Sweep, point: Point, where: planner.Device, known: list[planner.Measured], bases: dict[str, Base]
) -> dict[str, Any]:
    made = wanted.recipe_of(point)
    plan: Plan | None = None
    try:
        model = made.model.model_dump_json()
        if model not in bases:
            bases[model] = base_sizes.base_of(made, source.sample_texts())
        plan = planner.make(made, bases[model], where, known)
        note = "" if plan.fits else "does not fit: " + plan.hint()
    except ExportError as error:
        note = f"not planned: {error.message}"
    return {
        "values": point,
        "steps": plan.steps if plan else estimate.work(made)[0],
        "seconds": plan.seconds if plan else None,
        "disk_bytes": plan.checkpoint_bytes * made.train.keep_checkpoints + plan.adapter_bytes if plan else None,
        "note": note,
    }


def _steps(count: int | None) -> str:
    return "not known" if count is None else f"{count:,}"


def _interrupted(found: Result, number: int) -> Interrupted:
    done, best = found.count(DONE), found.best
    lowest = f"; the lowest held-out loss is {best.loss:.4f}, of trial {best.number}" if best else ""
    return Interrupted(
        f"stopped after {done} of {found.sweep.total} trials{lowest}",
        "run the same command again to continue from the checkpoint of the running trial",
        code=128 + number,
    )
