"""Watch a trial while it trains: its progress, its held-out losses, its signs of life."""

from __future__ import annotations

import json
import logging
import math
import time
from contextlib import ExitStack

from ggufy.errors import SweepError
from ggufy.recipe.schema import Recipe
from ggufy.runs import history
from ggufy.runs.history import Curve
from ggufy.runs.run import Run
from ggufy.sweeps.study import SIGN_SECONDS, Claim, Study
from ggufy.system import progress

log = logging.getLogger("ggufy")

_READ_SECONDS = 1.0


class Watch:
    """Reads the figures of a run as they come. `pruned` is the step and loss at which it was worse than the median."""

    def __init__(self, study: Study, claim: Claim, run: Run, wanted: Recipe) -> None:
        self.study, self.claim, self.run, self.wanted = study, claim, run, wanted
        self.pruned: tuple[int, float] | None = None
        self.told = False
        self._reported = set(claim.trial.evals)
        self._read, self._signed, self._quiet = 0.0, time.monotonic(), 0.0
        self._shown = ExitStack()

    def __enter__(self) -> Watch:
        self._bar = self._shown.enter_context(progress.bar(f"trial {self.claim.trial.number}", 1.0))
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    def look(self, *, now: bool = False) -> bool:
        """Read what is new, if it is time for that or must be `now`. Returns whether the trial is to be pruned."""
        moment = time.monotonic()
        if now or moment - self._read > _READ_SECONDS:
            self._read = moment
            train, evaluated = history.curves(self.run)
            if train:
                self._bar.update(*self._progress(train, evaluated))
            if now or moment > self._quiet:
                self._tell(evaluated, moment)
        return self.pruned is not None

    def _tell(self, evaluated: Curve, moment: float) -> None:
        """Write to the storage. Where that fails the training goes on, and it is tried again later."""
        try:
            if moment - self._signed > SIGN_SECONDS:
                self.study.sign(self.claim)
                self._signed = moment
            for step, loss in evaluated:
                if step not in self._reported and math.isfinite(loss):
                    worse = self.study.report(self.claim, step, loss)
                    self._reported.add(step)
                    self.pruned = self.pruned or ((step, loss) if worse else None)
        except SweepError as error:
            self._quiet = moment + SIGN_SECONDS
            log.info("%s; the trial goes on", error.message)

    def _progress(self, train: Curve, evaluated: Curve) -> tuple[float, str]:
        """The share that is done, and what the figures say."""
        step, loss = train[-1]
        shown = f"step {step}  loss {loss:.3f}" + (f"  eval {evaluated[-1][1]:.3f}" if evaluated else "")
        length = self.wanted.train
        share = step / length.max_steps if length.max_steps else _epochs(self.run) / length.epochs
        return min(1.0, share), shown


def _epochs(run: Run) -> float:
    try:
        last = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        return float(json.loads(last)["epoch"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0.0
