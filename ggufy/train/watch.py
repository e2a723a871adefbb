"""What happens around the steps: figures, the progress bar, sealing checkpoints, stopping when asked."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ggufy.errors import Interrupted, TrainError
from ggufy.progress import Bar
from ggufy.train import checkpoints
from ggufy.train.job import Job

log = logging.getLogger("ggufy")

_NAMES = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "mean_token_accuracy": "token_accuracy",
    "eval_mean_token_accuracy": "eval_token_accuracy",
    "epoch": "epoch",
    "num_tokens": "tokens",
}


class Watch(TrainerCallback):
    """The callback of one training."""

    def __init__(self, job: Job, bar: Bar, resumed: int, made_on: dict[str, str]) -> None:
        self.job, self.bar, self.made_on = job, bar, made_on
        self.stopped: int | None = None
        self.lost: str | None = None
        self.latest: dict[str, float] = {}
        self.tokens_per_second = 0.0
        self._clock: tuple[float, float] | None = None
        self.evaluated_at = -1
        for figures in _keep_until(job.metrics, resumed):
            self._note(figures)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        figures = {_NAMES[key]: float(value) for key, value in (logs or {}).items() if key in _NAMES}
        if not {"loss", "eval_loss"} & figures.keys():
            return
        # With fp16 the scaler skips steps whose gradients overflow; that is how it finds its scale.
        watched = ("loss",) if args.fp16 else ("loss", "grad_norm")
        broken = [name for name in watched if not math.isfinite(figures.get(name, 0.0))]
        if broken:
            self._lose(f"the {broken[0]} became {figures[broken[0]]}", control)
            return
        self._measure(figures.get("tokens"))
        figures = {"step": state.global_step, **figures}
        self._note(figures)
        if "loss" in figures and self.tokens_per_second:
            figures["tokens_per_second"] = round(self.tokens_per_second, 1)
        with self.job.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        self.bar.update(state.global_step, self._facts(state))

    def _note(self, figures: dict[str, float]) -> None:
        self.latest.update(figures)
        if "eval_loss" in figures:
            self.evaluated_at = int(figures["step"])

    def _measure(self, tokens: float | None) -> None:
        now = time.monotonic()
        if tokens is None:
            return
        if self._clock is not None and now > self._clock[0]:
            current = (tokens - self._clock[1]) / (now - self._clock[0])
            self.tokens_per_second = (
                current if not self.tokens_per_second else 0.8 * self.tokens_per_second + 0.2 * current
            )
        self._clock = (now, tokens)

    def _facts(self, state: Any) -> str:
        parts = [f"step {state.global_step}/{state.max_steps}", f"loss {self.latest.get('loss', math.nan):.3f}"]
        if "eval_loss" in self.latest:
            parts.append(f"eval {self.latest['eval_loss']:.3f}")
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        return "  ".join(parts)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, state
        if self.stopped is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.lost is None and not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
            self._lose("a weight of the adapter is no longer a finite number", control)
        if self.lost is not None:
            shutil.rmtree(folder)
            return
        checkpoints.seal(folder, self.job.identity, self.made_on, self.job.recipe.train.keep_checkpoints)

    def _lose(self, what: str, control: Any) -> None:
        self.lost = what
        control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        if self.lost is not None:
            raise TrainError(
                f"training diverged: {self.lost} at step {state.global_step}",
                "lower train.learning_rate and start over with --fresh",
            )
        if self.stopped is not None and state.global_step < state.max_steps:
            raise Interrupted(
                f"stopped at step {state.global_step} of {state.max_steps}, with a checkpoint saved",
                "the same command again continues from there",
                code=128 + self.stopped,
            )


class StopSignals:
    """While it is entered, the first SIGINT or SIGTERM ends training after the current step; a second one at once."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._asked)

    def _asked(self, number: int, frame: Any) -> None:
        del frame
        if self.watch.stopped is not None:
            raise KeyboardInterrupt
        self.watch.stopped = number
        log.info("stopping after this step; once more to stop at once")

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


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
