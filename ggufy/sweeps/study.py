"""The study of a sweep in Optuna's storage: its trials, which process works on which, and their results.

A trial is made whole, with its values and waiting, in one transaction, and claimed by an atomic step from waiting to
running, so several processes and machines share a sweep. On one machine a claim is held by a file lock, which the
kernel drops with its process: a running trial whose lock is free was killed, and is gone on with. On several machines
it is held by a sign of life in the storage. What two did at once unknowingly is settled by number: the lower counts.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from ggufy.errors import SweepError
from ggufy.stages import provenance
from ggufy.sweeps import definition, sampler, space, storage
from ggufy.sweeps.definition import TPE, Sweep
from ggufy.sweeps.space import Point
from ggufy.sweeps.trials import DONE, ERROR, FAILED, OPEN, PRUNED, VOID, WAITING, Trial

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("ggufy")

SIGN_SECONDS = 30.0
SILENT_SECONDS = 600.0


@dataclass
class Claim:
    """A trial that this process works on, until it is let go."""

    trial: Trial
    resumed: bool
    lock: IO[str]


class Study:
    """A sweep's study, opened; made, with the points of its grid, where it is not there."""

    def __init__(self, sweep: Sweep) -> None:
        storage.check_installed()
        self.sweep = sweep
        self.folder = sweep.folder
        self.is_local = sweep.storage is None
        self.url = sweep.storage or f"sqlite:///{(self.folder / 'study.db').as_posix()}"
        self.shown_url = storage.masked(self.url)
        self._alone = (None if self.is_local else storage.lock_of(self.url)) or self.folder / "claim.lock"
        if not (self.folder / "place").exists() or (self.is_local and not (self.folder / "study.db").exists()):
            definition.refuse_taken_names(sweep)
        if not self.is_local:
            # Before anything is made here: it may be no storage, or hold another sweep.
            with storage.explained(self.shown_url, local=False):
                self._open()
        (self.folder / "trials").mkdir(parents=True, exist_ok=True)
        with self.alone():
            if self.is_local:
                self._open()
            self.place = self._place()
            self.study.set_user_attr("sweep", {**sweep.values(), "day": self.day})
            self._add_missing()

    def _open(self) -> None:
        """Open the study, or make an empty one. Raises SweepError where it is of something else."""
        import optuna

        name = self.sweep.name
        self.storage = storage.open_at(self.url)
        self.study = optuna.create_study(
            storage=self.storage, study_name=name, direction="minimize", load_if_exists=True
        )
        begun = self.study.user_attrs.get("sweep")
        if begun is None and self.study.get_trials(deepcopy=False):
            raise SweepError(f"{self.shown_url} has a study {name} that is not a sweep", "choose another --name")
        if begun is not None:
            definition.refuse_other(self.sweep, begun)
        # The day is in the prompts of every run; it is that of the first trial in all of them.
        self.day: str = (begun or {}).get("day") or provenance.today().isoformat()

    def trials(self) -> list[Trial]:
        """Those that count, by number."""
        with storage.explained(self.shown_url, local=self.is_local):
            found = self.study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get("again") for trial in found}
        return [
            self._plain(trial)
            for trial in found
            if not (trial.state.name == "FAIL" and trial.user_attrs.get("outcome") in VOID)
            and trial.number not in again
        ]

    def claim(self) -> Claim | None:
        """The next trial to work on: one that was left, one that waits, or a new one; None where none is left."""
        with self.alone():
            while True:
                trials = self.trials()
                for trial in trials:
                    if trial.state == OPEN and (claim := self._taken_over(trial)):
                        return claim
                waiting = [trial for trial in trials if trial.state == WAITING]
                if waiting:
                    if claim := self._taken(waiting[0], trials):
                        return claim
                elif self.sweep.sampler == TPE and len(trials) < self.sweep.trials:
                    self._add(sampler.proposed(self.sweep, trials))
                elif not self._lose_silent(trials):
                    return None

    def sign(self, claim: Claim) -> None:
        """Say that this process is still at work, where others could not know."""
        if not self.is_local:
            with storage.explained(self.shown_url, local=self.is_local):
                self.storage.set_trial_user_attr(self._id(claim.trial.number), "sign", time.time())

    def note(self, claim: Claim, **facts: Any) -> None:
        """Keep something with a trial that goes on."""
        with self.alone():
            for key, value in facts.items():
                self.storage.set_trial_user_attr(self._id(claim.trial.number), key, value)

    def report(self, claim: Claim, step: int, loss: float) -> bool:
        """Keep a held-out loss on the way. Returns whether the trial is worse there than the median of the others."""
        with self.alone():
            number = self._id(claim.trial.number)
            self.storage.set_trial_intermediate_value(number, step, loss)
            return self.sweep.prune and self._pruner().prune(self.study, self.storage.get_trial(number))

    def finish(self, claim: Claim, state: str, loss: float | None = None, **facts: Any) -> None:
        """Write down what came of a trial, and let it go. `outcome` among the facts says why it failed."""
        # A kill may have come between such facts and the state that goes with them.
        stale: dict[str, Any] = {key: None for key in ("outcome", "reason") if key in claim.trial.facts}
        with self.alone():
            self._close(claim.trial, state, loss, {**stale, **facts})
            (self.folder / "trials" / f"{claim.trial.run}.lock").unlink(missing_ok=True)
        self.release(claim)

    def _close(self, trial: Trial, state: str, loss: float | None, facts: dict[str, Any]) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        states = {DONE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}
        number = self._id(trial.number)
        try:
            for key, value in facts.items():
                self.storage.set_trial_user_attr(number, key, value)
            self.storage.set_trial_state_values(number, states[state], None if loss is None else [loss])
        except UpdateFinishedTrialError:
            log.info(
                "trial %d was taken over by another machine, as this one gave no sign of life; not counted here",
                trial.number,
            )

    def release(self, claim: Claim) -> None:
        """Let a trial go as it is; whoever comes next goes on with it."""
        claim.lock.close()

    def retry_errors(self) -> None:
        """Let trials that failed by something around them, such as a full disk, be tried once more."""
        with self.alone():
            for trial in self.trials():
                if trial.state == FAILED and trial.facts.get("outcome") == ERROR:
                    self._add(trial.point, again=trial)

    def _add_missing(self) -> None:
        have = {space.identity(trial.point) for trial in self.trials()}
        for point in definition.points(self.sweep):
            if space.identity(point) not in have:
                self._add(point)

    def _add(self, point: Point, again: Trial | None = None) -> None:
        """A trial that waits. One that is tried `again` goes on in the same run."""
        from optuna.trial import TrialState, create_trial

        ordered = self.sweep.sampler != TPE
        attributes: dict[str, Any] = {"point": point}
        if again is not None:
            attributes |= {"again": again.number, "run": again.run}
        self.study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params={key: space.stored(value) for key, value in point.items()},
                distributions={axis.key: axis.distribution(ordered=ordered) for axis in self.sweep.axes},
                user_attrs=attributes,
            )
        )

    def _taken(self, trial: Trial, trials: list[Trial]) -> Claim | None:
        """Claim a trial that waits, unless another process was faster or it need not be run."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        number = self._id(trial.number)
        try:
            self.storage.set_trial_user_attr(number, "sign", time.time())
            if not self.storage.set_trial_state_values(number, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        before = [other for other in trials if other.number < trial.number]
        twin = next((other for other in before if space.identity(other.point) == space.identity(trial.point)), None)
        if self.sweep.sampler == TPE and len(before) >= self.sweep.trials:
            self._close(trial, FAILED, None, {"outcome": "surplus"})
        elif twin and self.sweep.sampler != TPE:
            self._close(trial, FAILED, None, {"outcome": "duplicate"})
        elif twin and twin.is_over:
            self._close(trial, twin.state, twin.loss, _copied(twin))
        else:
            return self._held(trial, resumed=False)
        return None

    def _taken_over(self, trial: Trial) -> Claim | None:
        """Claim a trial whose process has died on this machine."""
        if self.is_local or trial.facts.get("place") == self.place:
            return self._held(trial, resumed=True)
        return None

    def _held(self, trial: Trial, *, resumed: bool) -> Claim | None:
        lock = self._lock(trial)
        if lock is None:
            return None
        number = self._id(trial.number)
        facts = {"place": self.place, "host": socket.gethostname(), "run": trial.run, "sign": time.time()}
        for key, value in facts.items():
            self.storage.set_trial_user_attr(number, key, value)
        return Claim(trial, resumed, lock)

    def _lose_silent(self, trials: list[Trial]) -> bool:
        """Give up on trials of other machines that have long given no sign, and let them be done anew."""
        now = time.time()
        foreign = [one for one in trials if one.state == OPEN and one.facts.get("place") != self.place]
        lost = [] if self.is_local else [one for one in foreign if now - one.facts.get("sign", 0.0) > SILENT_SECONDS]
        for trial in lost:
            host, silent = trial.facts.get("host", "another machine"), now - trial.facts.get("sign", 0.0)
            log.info(
                "trial %d: no sign of life from %s for %.0f minutes; it is started over",
                trial.number,
                host,
                silent / 60,
            )
            self._close(trial, FAILED, None, {"outcome": "lost"})
            self._add(trial.point, again=trial)
        return bool(lost)

    def _lock(self, trial: Trial) -> IO[str] | None:
        file = (self.folder / "trials" / f"{trial.run}.lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def _plain(self, trial: optuna.trial.FrozenTrial) -> Trial:
        names = {"WAITING": WAITING, "RUNNING": OPEN, "COMPLETE": DONE, "PRUNED": PRUNED, "FAIL": FAILED}
        facts = dict(trial.user_attrs)
        point = facts.pop("point", None) or dict(trial.params)
        run = facts.pop("run", None) or f"{self.sweep.name}-{trial.number:03d}"
        loss = trial.value if trial.state.name == "COMPLETE" else None
        return Trial(trial.number, names[trial.state.name], run, point, loss, facts, dict(trial.intermediate_values))

    def _pruner(self) -> optuna.pruners.MedianPruner:
        import optuna

        return optuna.pruners.MedianPruner(n_startup_trials=4)

    def _id(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(self.sweep.name)
        return int(self.storage.get_trial_id_from_study_id_trial_number(study, number))

    def _place(self) -> str:
        """Names this folder, whatever the machine is called today."""
        path = self.folder / "place"
        if not path.is_file() or not path.read_text("utf-8").strip():
            path.write_text(uuid.uuid4().hex, encoding="utf-8")
        return path.read_text("utf-8").strip()

    _depth = 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process of this folder, or with this SQLite file, read and write the study meanwhile."""
        if self._depth:
            yield
            return
        with self._alone.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._depth += 1
            try:
                with storage.explained(self.shown_url, local=self.is_local):
                    yield
            finally:
                self._depth -= 1


def _copied(twin: Trial) -> dict[str, Any]:
    """What is known of a trial, for another one with the same values."""
    own = ("again", "place", "host", "sign")
    facts = {key: value for key, value in twin.facts.items() if key not in own}
    return {**facts, "run": twin.run, "same_as": twin.number}
