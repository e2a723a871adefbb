"""Where a sweep looks next, and which of its keys matter: Optuna, asked in memory about the trials that are known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggufy.sweeps import space
from ggufy.sweeps.definition import Sweep
from ggufy.sweeps.space import Point
from ggufy.sweeps.trials import DONE, ERROR, FAILED, PRUNED, Trial

if TYPE_CHECKING:
    import optuna

_ENOUGH = 8  # trials, before anything is said about what matters


def proposed(sweep: Sweep, trials: Sequence[Trial]) -> Point:
    """Where to look next, by all that is known. The same trials give the same answer, whoever asks and when."""
    seed = int.from_bytes(hashlib.sha256(f"{sweep.seed}/{len(trials)}".encode()).digest()[:4], "big")
    axes = {axis.key: axis.distribution(ordered=False) for axis in sweep.axes}
    asked = _known(sweep, trials, seed).ask(axes).params
    return {axis.key: axis.read(asked[axis.key]) for axis in sweep.axes}


def importances(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, float]:
    """How much each key has to do with a trial being among the best; empty where too little is known."""
    import optuna

    done = [trial for trial in trials if trial.state == DONE]
    varied = [axis for axis in sweep.axes if len({str(one.point[axis.key]) for one in done}) > 1]
    if len(done) < _ENOUGH or len(varied) < 2:
        return {}
    shares = optuna.importance.get_param_importances(_known(sweep, done, 0))
    return {key: float(share) for key, share in shares.items()}


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
