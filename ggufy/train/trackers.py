"""Experiment trackers that get a training's figures beside metrics.jsonl: TensorBoard, W&B, Trackio.

An error in a tracker is reported once, and the training goes on without it.
"""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from ggufy.train.job import Job

log = logging.getLogger("ggufy")

FOLDER = "tracking"
_WANDB_HOST = "api.wandb.ai"


def callbacks(job: Job) -> list[TrainerCallback]:
    """One for each tracker of the recipe, which writes into the run's folder where it keeps files."""
    names = job.recipe.tracking.report_to
    if not names:
        return []
    folder = (job.metrics.parent / FOLDER).absolute()
    folder.mkdir(exist_ok=True)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", (folder / "tensorboard").as_posix())
    os.environ.setdefault("WANDB_DIR", folder.as_posix())
    os.environ.setdefault("WANDB_PROJECT", "ggufy")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    if "wandb" in names and "WANDB_MODE" not in os.environ and (job.recipe.hub.offline or not _wandb_knows_us()):
        os.environ["WANDB_MODE"] = "offline"
        log.info("wandb: no login, so its figures stay in %s; `wandb sync` sends them", job.metrics.with_name(FOLDER))
    return [Guarded(name, _make(name)) for name in names]


class Guarded(TrainerCallback):
    """A tracker that cannot stop the training."""

    def __init__(self, name: str, tracker: TrainerCallback | None) -> None:
        self.name, self.tracker = name, tracker

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._pass_on("on_train_begin", args, state, control, rest)

    def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._pass_on("on_log", args, state, control, rest)

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._pass_on("on_train_end", args, state, control, rest)

    def _pass_on(self, event: str, args: Any, state: Any, control: Any, rest: dict[str, Any]) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, event)(args, state, control, **rest)
        except Exception as error:  # noqa: BLE001 - of libraries that may raise anything, and must not end a training
            self.tracker = None
            log.warning("%s: %s; training goes on without it", self.name, _one_line(error))


def _make(name: str) -> TrainerCallback | None:
    try:
        made: TrainerCallback = get_reporting_integration_callbacks([name])[0]()
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("%s: %s; training goes on without it", name, _one_line(error))
        return None
    return made


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _wandb_knows_us() -> bool:
    """Whether there is a key for W&B: in the environment or, from `wandb login`, in netrc. It is not read."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(_WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
