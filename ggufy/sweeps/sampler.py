"""Choose the next trial of a sweep, and find which keys matter, with Optuna on an in-memory copy of the trials."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from ggufy.sweeps import space
from ggufy.sweeps.definition import GRID, Sweep
from ggufy.sweeps.space import Axis, Point
from ggufy.sweeps.trials import DONE, ERROR, FAILED, PRUNED, Trial

if TYPE_CHECKING:
    import optuna

# Trials, before anything is said about what matters. PED-ANOVA looks at the best tenth, which has to be a few.
_ENOUGH_OF_A_GRID, _ENOUGH = 4, 30


def proposed(sweep: Sweep, trials: Sequence[Trial]) -> Point:
    """Where to look next, by all that is known. The same trials give the same answer, whoever asks and when."""
    seed = int.from_bytes(hashlib.sha256(f"{sweep.seed}/{len(trials)}".encode()).digest()[:4], "big")
    axes = {axis.key: axis.distribution(ordered=False) for axis in sweep.axes}
    asked = _known(sweep, trials, seed).ask(axes).params
    return {axis.key: axis.read(asked[axis.key]) for axis in sweep.axes}


def importances(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, float]:
    """How much each key has to do with the losses, the most first; empty where too little is known to say.

    Of a grid: the share of the losses' variance that lies between the means of its values (eta squared, the main effect
    of an analysis of variance). Else PED-ANOVA (https://arxiv.org/abs/2304.10255), of what sets the best tenth apart.
    """
    done = [trial for trial in trials if trial.state == DONE]
    varied = [axis for axis in sweep.axes if len({str(one.point[axis.key]) for one in done}) > 1]
    if len(varied) < 2 or len(done) < (_ENOUGH_OF_A_GRID if sweep.sampler == GRID else _ENOUGH):
        return {}
    if sweep.sampler == GRID:
        shares = {axis.key: _between(axis, done) for axis in varied}
    else:
        import optuna

        shares = optuna.importance.get_param_importances(_known(sweep, done, 0))
    return dict(sorted(((key, float(share)) for key, share in shares.items()), key=lambda one: -one[1]))


def _between(axis: Axis, done: Sequence[Trial]) -> float:
    groups: dict[str, list[float]] = {}
    for trial in done:
        groups.setdefault(str(trial.point[axis.key]), []).append(trial.loss or 0.0)
    losses = [loss for group in groups.values() for loss in group]
    mean = fmean(losses)
    total = sum((loss - mean) ** 2 for loss in losses)
    return sum(len(group) * (fmean(group) - mean) ** 2 for group in groups.values()) / total if total else 0.0


def _known(sweep: Sweep, trials: Sequence[Trial], seed: int) -> optuna.Study:
    """A study in memory of these trials."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    axes = {axis.key: axis.distribution(ordered=False) for axis in sweep.axes}
    # Optuna's sampler learns nothing from a failed trial, but from a pruned one that its values are bad.
    states = {DONE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.PRUNED}
    for trial in trials:
        if trial.facts.get("outcome") == ERROR:
            continue
        known.add_trial(
            create_trial(
                state=states.get(trial.state, TrialState.RUNNING),
                params={key: space.stored(value) for key, value in trial.point.items()},
                distributions=axes,
                value=trial.loss,
                intermediate_values=trial.evals if trial.state == PRUNED else {},
            )
        )
    return known
