"""The definition of a sweep from its options, and whether a sweep that was begun can be continued with it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import RecipeError, RunError, SweepError
from ggufy.recipe import recipe
from ggufy.recipe.schema import LATE_SECTIONS, Recipe
from ggufy.runs import run
from ggufy.stages import provenance
from ggufy.sweeps import space
from ggufy.sweeps.space import Axis, Point

log = logging.getLogger("ggufy")

GRID, TPE = "grid", "tpe"
_TRIALS = 20


@dataclass(frozen=True)
class Sweep:
    """The recipe of a sweep, the keys it varies, and how the points are chosen."""

    name: str
    recipe: Recipe
    axes: tuple[Axis, ...]
    sampler: str
    trials: int
    """Number of trials in all."""
    seed: int
    prune: bool = False
    storage: str | None = None
    """An Optuna storage URL; None is a file in the sweep's folder."""

    @property
    def folder(self) -> Path:
        return run.runs_folder() / self.name

    @property
    def total(self) -> int:
        return self.trials

    def recipe_of(self, point: Point) -> Recipe:
        """The recipe of one trial. Its checkpoints stay here: all trials would share one branch on the Hub."""
        made = space.apply(self.recipe, point, {axis.key: axis.where for axis in self.axes})
        return made.model_copy(update={"hub": made.hub.model_copy(update={"checkpoints": "off"})})

    def values(self) -> dict[str, Any]:
        """What is kept with the study."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "axes": [axis.values() for axis in self.axes],
            "sampler": self.sampler,
            "seed": self.seed,
        }


def make(
    base: Recipe,
    grid: Iterable[str],
    ranges: Iterable[str],
    *,
    sampler: str = GRID,
    trials: int | None = None,
    name: str | None = None,
    seed: int | None = None,
    prune: bool = False,
    storage: str | None = None,
) -> Sweep:
    """The sweep that these options define. Raises RecipeError if they are wrong."""
    ranges = tuple(ranges)
    if sampler == GRID and ranges:
        raise RecipeError(f"--range {ranges[0]}: a grid has no ranges", "add --sampler tpe, or list values with --grid")
    if sampler == GRID and trials is not None:
        raise RecipeError(f"--trials {trials}: a grid has as many trials as points", "leave it out, or --sampler tpe")
    refuse_without_held_out(base)
    if prune and not base.eval.steps:
        raise RecipeError(
            "--prune needs the held-out loss during training, but eval.steps is not set",
            "to measure it every 20 steps, give --set eval.steps=20",
        )
    axes = space.axes(base, grid, ranges)
    name = f"{base.name}-sweep" if name is None else name
    run.named(name)
    count = len(list(space.points(base, axes))) if sampler == GRID else trials or _TRIALS
    seed = base.train.seed if seed is None else seed
    return Sweep(name, base, axes, sampler, count, seed, prune, storage)


def refuse_without_held_out(base: Recipe) -> None:
    """Raise RecipeError where no conversations are held out: there is nothing to compare trials by."""
    data = base.data
    if not (data.eval_size or data.eval_split or data.eval_source):
        count = " --set data.train_size=..." if data.train_size is None else ""
        raise RecipeError(
            f"{base.name} holds out no conversations, and a sweep compares the loss on those",
            f"--set data.eval_size=20{count} holds out the 20 after the training rows; or data.eval_split, "
            "data.eval_source",
        )


def points(sweep: Sweep) -> list[Point]:
    """Those of a grid."""
    return list(space.points(sweep.recipe, sweep.axes)) if sweep.sampler == GRID else []


def refuse_taken_names(sweep: Sweep) -> None:
    """Raise RunError where a new sweep would mix with runs or a folder that are there already."""
    if (sweep.folder / "run.json").exists() or (sweep.folder / "lock").exists():
        raise RunError(f"{sweep.folder.as_posix()} is a run, not a sweep", "choose another --name")
    taken = [
        path
        for path in run.runs_folder().glob(f"{sweep.name}-*")
        if re.fullmatch(r"\d{3,}", path.name[len(sweep.name) + 1 :])
    ]
    if taken:
        raise RunError(
            f"{min(taken).as_posix()} already exists, from a sweep that has been removed",
            "choose another --name, or move those runs away",
        )


def refuse_other(sweep: Sweep, begun: Mapping[str, Any]) -> None:
    """Raise SweepError if the sweep of this name was begun with other options."""
    changes = [*_other_axes(sweep, begun["axes"]), *_other_recipe(sweep, begun)]
    for key in ("sampler", "seed"):
        mine = getattr(sweep, key)
        if begun[key] != mine and (key == "sampler" or sweep.sampler == TPE):
            changes.append(f"the {key} was {begun[key]} and is {mine}")
    if changes:
        raise SweepError(
            f"the sweep {sweep.name} was started with other options: {'; '.join(changes)}",
            "give --name NAME to start another sweep",
        )


def _other_axes(sweep: Sweep, begun: list[dict[str, Any]]) -> Iterable[str]:
    before = {axis["key"]: axis for axis in begun}
    if before.keys() != {axis.key for axis in sweep.axes}:
        yield f"it varied {', '.join(before)} and now varies {', '.join(axis.key for axis in sweep.axes)}"
        return
    for axis in sweep.axes:
        old, new = before[axis.key], axis.values()
        if "choices" in old and "choices" in new:
            gone = [value for value in old["choices"] if value not in new["choices"]]
            more = [value for value in new["choices"] if value not in old["choices"]]
            if gone:
                yield f"{axis.key} also had {', '.join(map(space.shown, gone))}"
            elif more and not (axis.is_numeric and sweep.sampler == GRID):
                added = ", ".join(map(space.shown, more))
                yield f"{axis.key} did not have {added}, and only numbers can be added to a grid"
        elif old != new:
            was = Axis(axis.key, "", tuple(old.pop("choices", ())), **{k: v for k, v in old.items() if k != "key"})
            yield f"{axis.key} was {was.text()} and is {axis.text()}"


def _other_recipe(sweep: Sweep, begun: Mapping[str, Any]) -> Iterable[str]:
    old = recipe.from_values(begun["recipe"])
    varied = {axis.key for axis in sweep.axes}
    for key, (before, after) in old.differences(sweep.recipe).items():
        if key in varied or key.partition(".")[0] in LATE_SECTIONS:
            continue
        if provenance.identity(old) != provenance.identity(_with(old, sweep.recipe, key)):
            yield f"{key} was {space.shown(before)} and is {space.shown(after)}"


def _with(old: Recipe, new: Recipe, key: str) -> Recipe:
    section, _, name = key.partition(".")
    name = name.partition(".")[0]
    changed = getattr(old, section).model_copy(update={name: getattr(getattr(new, section), name)})
    return old.model_copy(update={section: changed})
