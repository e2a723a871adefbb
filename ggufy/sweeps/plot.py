"""sweep.png: the held-out loss by trial and by each value that varied."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from ggufy.sweeps import space
from ggufy.sweeps.definition import GRID, Sweep
from ggufy.sweeps.space import Axis
from ggufy.sweeps.trials import DONE, FAILED, PRUNED, Trial

log = logging.getLogger("ggufy")

_COLUMNS = 3
_WIDE = 8  # numbers that span so many times their smallest are drawn on a log scale


def draw(path: Path, sweep: Sweep, trials: Sequence[Trial], importances: Mapping[str, float]) -> bool:
    """Draw it. False, and nothing written, where no trial is done or matplotlib is not there."""
    done = sorted((trial for trial in trials if trial.state == DONE), key=lambda trial: trial.number)
    if not done or find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = 1 + len(sweep.axes) + bool(importances)
    columns = 2 if count == 4 else min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), dpi=110, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    _by_trial(panels[0], trials, done)
    for panel, axis in zip(panels[1:], sweep.axes, strict=False):
        _by_value(panel, axis, done)
    if importances:
        panel = panels[1 + len(sweep.axes)]
        keys = list(importances)[::-1]
        panel.barh(keys, [importances[key] for key in keys], color="tab:blue")
        how = "share of the variance" if sweep.sampler == GRID else "importance (PED-ANOVA)"
        panel.set(xlabel=how, xlim=(0, 1))
    for panel in panels[count:]:
        panel.set_visible(False)
    figure.suptitle(f"{sweep.name}: {len(done)} trials")
    beside = path.with_name(f".{path.stem}.partial{path.suffix}")
    FigureCanvasAgg(figure).print_png(beside.as_posix(), metadata={"Software": None})
    beside.replace(path)
    return True


def _by_trial(panel: Any, trials: Sequence[Trial], done: Sequence[Trial]) -> None:
    numbers, losses = [trial.number for trial in done], [_loss(trial) for trial in done]
    lowest = list(itertools.accumulate(losses, min))
    panel.step(numbers, lowest, where="post", color="tab:orange", label="lowest so far")
    panel.plot(numbers, losses, "o", color="tab:blue", label="done")
    at = losses.index(min(losses))
    panel.plot(numbers[at], losses[at], "*", color="tab:orange", markersize=14)
    cut = [(trial.number, list(trial.evals.values())[-1]) for trial in trials if trial.state == PRUNED and trial.evals]
    if cut:
        panel.plot(*zip(*cut, strict=True), "v", color="tab:gray", label="pruned")
    failed = [trial.number for trial in trials if trial.state == FAILED]
    if failed:
        panel.plot(failed, [max(losses)] * len(failed), "x", color="tab:red", label="failed")
    panel.set(xlabel="trial", ylabel="held-out loss")
    panel.locator_params(axis="x", integer=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")


def _by_value(panel: Any, axis: Axis, done: Sequence[Trial]) -> None:
    values, losses = [trial.point[axis.key] for trial in done], [_loss(trial) for trial in done]
    if axis.choices:
        numeric = axis.is_numeric
        choices = sorted(axis.choices) if numeric else list(axis.choices)
        scaled = numeric and min(choices) > 0 and max(choices) >= _WIDE * min(choices)
        places: list[float] = choices if numeric else list(range(len(choices)))
        xs = [places[choices.index(value)] for value in values]
        means = [(x, fmean(loss for at, loss in zip(xs, losses, strict=True) if at == x)) for x in places if x in xs]
        panel.plot(*zip(*means, strict=True), "-", color="tab:orange", label="mean")
        if scaled:
            panel.set_xscale("log")
        panel.set_xticks(places, [space.shown(value) for value in choices], minor=False)
        panel.set_xticks([], minor=True)
        panel.legend(fontsize="small")
    else:
        xs = values
        if axis.log:
            panel.set_xscale("log")
    panel.plot(xs, losses, "o", color="tab:blue", alpha=0.7)
    panel.set(xlabel=axis.key, ylabel="held-out loss")
    panel.grid(alpha=0.3)


def _loss(trial: Trial) -> float:
    return math.nan if trial.loss is None else trial.loss
