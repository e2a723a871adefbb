"""The work loop of a sweep: take a trial, train it in a separate process, store the result, repeat."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from ggufy.errors import GgufyError, Interrupted, RecipeError, SweepError
from ggufy.recipe.schema import Recipe
from ggufy.runs import history
from ggufy.runs.run import Run, runs_folder
from ggufy.sweeps import report, space
from ggufy.sweeps.study import Claim, Study
from ggufy.sweeps.trials import DIVERGED, DONE, ERROR, FAILED, KILLED, MEMORY, PRUNED, REFUSED
from ggufy.sweeps.watch import Watch
from ggufy.system.interrupts import StopSignals

log = logging.getLogger("ggufy")

_LOOK_SECONDS = 0.2
# So many in a row that fail by something around them, and the sweep stops.
_ERRORS = 3
_OUTCOMES = {"Diverged": DIVERGED, "OutOfMemory": MEMORY}


class Stop(StopSignals):
    """The trial at work is told too."""

    process: subprocess.Popen[bytes] | None = None

    def _note(self, number: int, frame: Any) -> None:
        del frame
        if self.process is None and self.asked is not None:
            raise KeyboardInterrupt
        if self.asked is None:
            log.info("stopping%s", "; the running trial saves a checkpoint first" if self.process else "")
        self.asked = number
        self.tell(number)

    def tell(self, number: int) -> None:
        """Send the trial at work a signal."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def work(this: Study, stop: Stop, after_each: Callable[[], object]) -> None:
    """Work on a sweep until nothing is left to take, or until asked to stop.

    Raises what a trial failed with where that is no matter of its values and none has succeeded, or several in a row.
    """
    errors = 0
    this.retry_errors()
    while stop.asked is None and (claim := this.claim()):
        try:
            failed = _train(this, claim, stop)
        except BaseException:
            this.release(claim)
            raise
        after_each()
        errors = errors + 1 if failed else 0
        trials = this.trials()
        if failed and (errors >= _ERRORS or not any(trial.state == DONE for trial in trials)):
            raise failed


def _train(this: Study, claim: Claim, stop: Stop) -> GgufyError | None:
    """Run a trial to its end. Returns what it failed with, where that is something around it."""
    trial = claim.trial
    run = Run(runs_folder() / trial.run)
    try:
        wanted = this.sweep.recipe_of(trial.point)
    except RecipeError as error:
        # Values that are right one by one, and cannot be together.
        this.finish(claim, FAILED, outcome=REFUSED, reason=error.message)
        log.info("trial %d failed: %s", trial.number, error.message)
        return None
    _wait_for_orphan(run, stop)
    if stop.asked is not None:
        this.release(claim)
        return None
    over = sum(one.is_over for one in this.trials())
    begins = "goes on" if claim.resumed else "begins"
    log.info("trial %d %s: %s (%d of %d done)", trial.number, begins, space.text(trial.point), over, this.sweep.total)
    files = {kind: this.folder / "trials" / f"{trial.run}.{kind}" for kind in ("yaml", "log", "json")}
    files["yaml"].write_text(report.recipe_text(wanted), encoding="utf-8")
    files["json"].unlink(missing_ok=True)
    code, pruned = _watched(this, claim, run, wanted, files, stop)
    said = _answer(files["json"])
    files["json"].unlink(missing_ok=True)
    if "facts" in said:
        return _judge(this, claim, run, wanted, said["facts"])
    if pruned:
        step, loss = pruned
        facts: dict[str, Any] = {
            "steps": step,
            "reason": f"held-out loss {loss:.4f} at step {step}, above the median of the others",
        }
        this.finish(claim, PRUNED, **facts)
        log.info(
            "trial %d: stopped at step %d, its held-out loss %.4f is above the median there", trial.number, step, loss
        )
        return None
    if stop.asked is not None:
        this.release(claim)
        return None
    if said.get("kind") == Interrupted.__name__ or code < 0:
        _killed(this, claim, code)
        return None
    return _failed(this, claim, said, code, files["log"])


def _watched(
    this: Study, claim: Claim, run: Run, wanted: Recipe, files: dict[str, Path], stop: Stop
) -> tuple[int, tuple[int, float] | None]:
    """The exit code of a trial's process, and the step and loss at which it was pruned, if it was."""
    arguments = [files["yaml"].as_posix(), claim.trial.run, files["json"].as_posix(), str(os.getpid())]
    command = [sys.executable, "-m", "ggufy.sweeps.child", *arguments]
    env = os.environ | {"SOURCE_DATE_EPOCH": _noon(this.day)}
    with files["log"].open("ab") as sink, Watch(this, claim, run, wanted) as watch:
        # A session of its own: what is typed at the terminal comes to it once, through this process.
        stop.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
        try:
            if stop.asked is not None:
                stop.tell(stop.asked)
            while stop.process.poll() is None:
                time.sleep(_LOOK_SECONDS)
                if watch.look() and not watch.told:
                    watch.told = True
                    stop.tell(signal.SIGTERM)
            watch.look(now=True)
            return stop.process.returncode, watch.pruned if watch.told else None
        except BaseException:
            stop.tell(signal.SIGTERM)
            stop.process.wait()
            raise
        finally:
            stop.process = None


def _judge(this: Study, claim: Claim, run: Run, wanted: Recipe, facts: dict[str, Any]) -> GgufyError | None:
    """Write down the held-out loss of a trial that has trained to its end."""
    figures = history.summary(run)
    key = "best_eval_loss" if wanted.train.keep_best else "eval_loss"
    loss = figures.get(key)
    known = {name: figures.get(name) for name in ("steps", "seconds", "tokens_per_second", "trainable_parameters")}
    facts = {**facts, **{name: value for name, value in known.items() if value is not None}}
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        reason = "it has no held-out loss" if loss is None else f"its held-out loss is {loss}"
        this.finish(claim, FAILED, outcome=DIVERGED, reason=reason, **facts)
        log.info("trial %d failed: %s", claim.trial.number, reason)
        return None
    if other := _other_inputs(this, facts):
        error = SweepError(
            f"trial {claim.trial.number} cannot be compared with trial {other[0]}: {other[1]}",
            "give --name NAME to start another sweep",
        )
        this.finish(claim, FAILED, outcome=ERROR, reason=error.message, **facts)
        return error
    before = min((trial.loss for trial in this.trials() if trial.loss is not None), default=math.inf)
    this.finish(claim, DONE, float(loss), **facts)
    best = ", the lowest so far" if loss < before else ""
    log.info("trial %d: held-out loss %.4f%s", claim.trial.number, loss, best)
    return None


def _other_inputs(this: Study, facts: dict[str, Any]) -> tuple[int, str] | None:
    """A trial that saw something else which should be the same, and what."""
    varied = {axis.key.partition(".")[0] for axis in this.sweep.axes}
    names = {
        "held_out": "the held-out tokens are different",
        "data": "the data has changed",
        "base": "the base has changed",
    }
    free = {"data": "data" in varied, "base": "model" in varied, "held_out": False}
    for trial in this.trials():
        for name, text in names.items():
            if trial.state == DONE and not free[name] and trial.facts.get(name) != facts[name]:
                return trial.number, text
    return None


def _killed(this: Study, claim: Claim, code: int) -> None:
    """A trial that something else ended: it goes on once, and counts as failed if that happens again."""
    name = signal.Signals(-code).name if code < 0 else "a signal"
    if claim.trial.facts.get("kills"):
        reason = f"killed twice ({name}), as happens when memory runs out"
        this.finish(claim, FAILED, outcome=KILLED, reason=reason)
        log.info("trial %d failed: %s", claim.trial.number, reason)
        return
    log.info("trial %d was killed by %s; it continues from its checkpoint", claim.trial.number, name)
    this.note(claim, kills=1)
    this.release(claim)


def _failed(this: Study, claim: Claim, said: dict[str, Any], code: int, logged: Path) -> GgufyError | None:
    outcome = _OUTCOMES.get(said.get("kind", ""), ERROR)
    message = (
        said.get("message") or f"its process ended without an error message (exit code {code}); see {logged.as_posix()}"
    )
    # Out of memory goes on with what to turn, line by line.
    reason = message.split("\n")[0].partition("; settings that need less memory")[0]
    this.finish(claim, FAILED, outcome=outcome, reason=reason)
    log.info("trial %d failed: %s", claim.trial.number, reason)
    if outcome != ERROR:
        return None
    hint = said.get("hint") or "run the same command again to continue"
    return SweepError(f"trial {claim.trial.number} failed, but not because of its values: {message}", hint)


def _wait_for_orphan(run: Run, stop: Stop) -> None:
    """Wait for a training that a killed sweep has left: it is saving its last checkpoint."""
    said = False
    while history.is_locked(run) and stop.asked is None:
        if not said:
            log.info("waiting for another process that is working on %s", run.path.as_posix())
            said = True
        time.sleep(_LOOK_SECONDS)


def _noon(day: str) -> str:
    found = date.fromisoformat(day)
    return str(int(datetime(found.year, found.month, found.day, 12, tzinfo=timezone.utc).timestamp()))


def _answer(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
