"""The trainer's callback: figures, progress bar, checkpoints, stopping early or when asked."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ggufy.errors import Diverged, Interrupted, TrainError
from ggufy.system.interrupts import StopSignals
from ggufy.system.progress import Bar
from ggufy.train import batches, checkpoints, distributed, loss_curve, memory
from ggufy.train.job import Job

log = logging.getLogger("ggufy")

_NAMES = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "mean_token_accuracy": "token_accuracy",
    "epoch": "epoch",
    "num_input_tokens_seen": "tokens",
}


class Watch(TrainerCallback):
    """The callback of one training. `seen` tells what a checkpoint's manifest is to keep of it."""

    def __init__(
        self,
        job: Job,
        bar: Bar | None,
        resumed: int,
        made_on: dict[str, str],
        signals: StopSignals,
        seen: Callable[[], dict[str, float]],
    ) -> None:
        self.job, self.bar, self.made_on, self.signals, self.seen = job, bar, made_on, signals, seen
        self.has_eval = (job.data / "eval.arrow").is_file()
        self.lost: str | None = None
        self.latest: dict[str, float] = {}
        self.tokens_per_second = 0.0
        self._clock: tuple[float, float] | None = None
        self.is_first, self.several = distributed.place()[0] == 0, distributed.place()[1] > 1
        for figures in _keep_until(job.metrics, resumed) if self.is_first else ():
            self.latest.update(figures)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kept: Any) -> None:
        del args, control
        scheduler: Any = kept["lr_scheduler"]
        if state.global_step == 0 or not hasattr(scheduler, "lr_lambdas"):
            return
        # The optimizer's file holds the rate of the schedule as it was planned then; more steps make another one.
        planned = [b * f(scheduler.last_epoch) for b, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        groups: list[dict[str, Any]] = scheduler.optimizer.param_groups
        if planned != [group["lr"] for group in groups]:
            before, now = groups[0]["lr"], planned[0]
            log.info("the learning rate goes on at %.3g instead of %.3g, by the schedule's new end", now, before)
            for group, rate in zip(groups, planned, strict=True):
                group["lr"] = rate

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kept: Any) -> None:
        figures = {_NAMES[key]: float(value) for key, value in (logs or {}).items() if key in _NAMES}
        if not {"loss", "eval_loss"} & figures.keys():
            return
        # With fp16 the scaler skips steps whose gradients overflow; that is how it finds its scale.
        watched = ("loss", "eval_loss") if args.fp16 else ("loss", "eval_loss", "grad_norm")
        broken = [name for name in watched if not math.isfinite(figures.get(name, 0.0))]
        if broken:
            self._lose(f"the {broken[0].replace('_', ' ')} became {figures[broken[0]]}", control)
            return
        self._measure(figures)
        figures = {"step": state.global_step, **figures}
        self.latest.update(figures)
        if "loss" in figures and self.tokens_per_second:
            figures["tokens_per_second"] = round(self.tokens_per_second, 1)
        if self.bar is None:
            return  # the first process writes for all
        with self.job.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        self.bar.update(state.global_step, self._facts(state, kept))

    def _measure(self, figures: dict[str, float]) -> None:
        now, tokens = time.monotonic(), figures.get("tokens", 0.0)
        # The time of an evaluation is not counted: after one, only the clock is set.
        if "loss" in figures and self._clock is not None and now > self._clock[0]:
            current = (tokens - self._clock[1]) / (now - self._clock[0])
            self.tokens_per_second = (
                current if not self.tokens_per_second else 0.8 * self.tokens_per_second + 0.2 * current
            )
        self._clock = (now, tokens)

    def _facts(self, state: Any, kept: dict[str, Any]) -> str:
        parts = [f"step {state.global_step}/{state.max_steps}", f"loss {self.latest.get('loss', math.nan):.3f}"]
        if "eval_loss" in self.latest:
            parts.append(f"eval {self.latest['eval_loss']:.3f}")
        if "learning_rate" in self.latest:
            parts.append(f"lr {self.latest['learning_rate']:.1e}")
        if "grad_norm" in self.latest:
            parts.append(f"grad {self.latest['grad_norm']:.2f}")
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if torch.cuda.is_available():
            own = memory.of_adapter(kept["model"], kept["optimizer"])
            parts.append(memory.shown(torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), own))
        return "  ".join(parts)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args
        if self.several:
            # A signal reaches them at different steps; they have to stop at the same.
            self.signals.asked = _highest(self.signals.asked)
        if self.signals.asked is not None:
            control.should_save = True
            control.should_training_stop = True
        if state.global_step >= state.max_steps and self.has_eval:
            # Before the last save, so that the last checkpoint knows its eval loss.
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args
        if self.lost is not None:
            return
        train, done = self.job.recipe.train, loss_curve.logged(state.log_history)
        lowest = loss_curve.best(done)
        if train.keep_best and lowest is not None and lowest[0] == state.global_step:
            control.should_save = True
        if loss_curve.has_stalled(done, train.early_stopping) and state.global_step < state.max_steps:
            log.info(
                "stopping early at step %d: %d evaluations in a row without a lower eval loss than %.4f at step %d",
                *(
                    state.global_step,
                    train.early_stopping,
                    lowest[1] if lowest else math.nan,
                    lowest[0] if lowest else 0,
                ),
            )
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.lost is None and not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
            self._lose("a weight of the adapter is no longer a finite number", control)
        if self.several:
            torch.distributed.barrier()  # each has its random state to save
        if not self.is_first:
            torch.distributed.barrier()
            return
        self._seal(folder, state)
        if self.several:
            torch.distributed.barrier()

    def _seal(self, folder: Path, state: Any) -> None:
        if self.lost is not None:
            shutil.rmtree(folder)
            return
        train = self.job.recipe.train
        lowest = loss_curve.best(loss_curve.logged(state.log_history)) if train.keep_best else None
        with checkpoints.saving(folder):
            checkpoints.seal(
                folder,
                self.job.identity,
                self.made_on,
                train.keep_checkpoints,
                seen=self.seen(),
                always={lowest[0]} if lowest else (),
            )

    def _lose(self, what: str, control: Any) -> None:
        self.lost = what
        control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        if self.lost is not None:
            self._refuse_unlabelled(state)
            last = checkpoints.last_sealed(self.job.checkpoints)
            good = (
                f"; the last good checkpoint is {last.as_posix()}" if last else "; there is no checkpoint before that"
            )
            use = f", or export that one as it is: ggufy export {last.as_posix()}" if last else ""
            raise Diverged(
                f"training diverged: {self.lost} at step {state.global_step}{good}",
                f"lower train.learning_rate and start over with --fresh{use}",
            )
        if self.signals.asked is not None and state.global_step < state.max_steps:
            raise Interrupted(
                f"stopped at step {state.global_step} of {state.max_steps}, with a checkpoint saved",
                "run the same command again to continue from there",
                code=128 + self.signals.asked,
            )

    def _refuse_unlabelled(self, state: Any) -> None:
        """Raise TrainError where there was no loss because there was nothing to predict."""
        folder = self.job.data
        empty = sum(
            batches.unlabelled(path) for path in (folder / "train.arrow", folder / "eval.arrow") if path.is_file()
        )
        if empty:
            raise TrainError(
                f"{self.lost} at step {state.global_step}: {empty:,} prepared rows have nothing to predict",
                f"remove {folder.as_posix()}/, so that they are prepared again, and start over with --fresh",
            )


def _highest(number: int | None) -> int | None:
    """The highest of all processes' numbers, None being the lowest."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.tensor([number or 0], device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found.item()) or None


def _keep_until(path: Path, step: int) -> list[dict[str, float]]:
    """Drop the figures of steps that will be made again; returns those that stay."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            figures = json.loads(line)
            if figures["step"] <= step:
                kept.append(figures)
        except (ValueError, KeyError):
            continue  # the last line of a killed run may be a part of one
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text("".join(f"{json.dumps(figures)}\n" for figures in kept), encoding="utf-8")
    beside.replace(path)
    return kept
