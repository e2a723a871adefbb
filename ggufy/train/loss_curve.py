"""The losses of a training: which was best, whether to go on, and loss.png, which draws them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ggufy import installed
from ggufy.system import plots

log = logging.getLogger("ggufy")

_SMOOTHING = 0.9

Loss = tuple[int, float]
"""A step and the loss there."""


def logged(history: Iterable[Mapping[str, Any]], key: str = "eval_loss") -> list[Loss]:
    """The losses in a log of the trainer, or in the lines of metrics.jsonl, in order; those that are finite."""
    found = [(int(entry["step"]), float(entry[key])) for entry in history if key in entry]
    return [at for at in found if math.isfinite(at[1])]


def of_checkpoint(folder: Path) -> list[Loss]:
    """Those that a checkpoint has recorded."""
    return logged(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"])


def best(evals: list[Loss]) -> Loss | None:
    """The lowest, and of equals the first."""
    return min(evals, key=lambda at: at[1], default=None)


def has_stalled(evals: list[Loss], patience: int | None) -> bool:
    """Whether the last `patience` evaluations brought nothing lower than what was before them."""
    if patience is None or len(evals) <= patience:
        return False
    lowest = min(loss for _, loss in evals[:-patience])
    return all(loss >= lowest for _, loss in evals[-patience:])


def draw(metrics: Path, out: Path, title: str) -> bool:
    """Draw the curves, or say what is missing for it. False where there is no picture."""
    if not plots.can_draw():
        log.info("no %s: it needs matplotlib, which `%s` brings", out.name, installed.command("train"))
        return False
    train, evaluated = read(metrics)
    if not train:
        return False
    with plots.picture(out, title, x="step", y="loss") as axes:
        axes.plot(*zip(*train, strict=True), color="tab:blue", alpha=0.25, linewidth=1, label="training")
        axes.plot(*zip(*smoothed(train), strict=True), color="tab:blue", linewidth=2, label="training, smoothed")
        if evaluated:
            axes.plot(*zip(*evaluated, strict=True), color="tab:orange", marker="o", markersize=3, label="eval")
        axes.grid(alpha=0.3)
    return True


def read(metrics: Path) -> tuple[list[Loss], list[Loss]]:
    """The training and the eval losses in metrics.jsonl."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.is_file() else []
    return logged(lines, "loss"), logged(lines)


def smoothed(losses: list[Loss], weight: float = _SMOOTHING) -> list[Loss]:
    """An exponential mean, without the pull of a made-up value before the first (as Adam corrects its own)."""
    mean, share, points = 0.0, 0.0, []
    for step, loss in losses:
        mean = weight * mean + (1 - weight) * loss
        share = weight * share + (1 - weight)
        points.append((step, mean / share))
    return points
