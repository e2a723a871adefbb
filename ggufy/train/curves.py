"""loss.png: the training loss as it was logged and smoothed, and the eval loss, from metrics.jsonl."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ggufy import plots
from ggufy.train import evals
from ggufy.train.evals import Loss

log = logging.getLogger("ggufy")

_SMOOTHING = 0.9


def draw(metrics: Path, out: Path, title: str) -> bool:
    """Draw the curves, or say what is missing for it. False where there is no picture."""
    if not plots.can_draw():
        log.info("no %s: it needs matplotlib, which `pip install 'ggufy[train]'` brings", out.name)
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
    return evals.losses(lines, "loss"), evals.losses(lines)


def smoothed(losses: list[Loss], weight: float = _SMOOTHING) -> list[Loss]:
    """An exponential mean, without the pull of a made-up value before the first (as Adam corrects its own)."""
    mean, share, points = 0.0, 0.0, []
    for step, loss in losses:
        mean = weight * mean + (1 - weight) * loss
        share = weight * share + (1 - weight)
        points.append((step, mean / share))
    return points
