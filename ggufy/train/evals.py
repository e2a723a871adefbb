"""What the eval losses of a training so far say: which was best, and whether to go on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Loss = tuple[int, float]
"""A step and the loss there."""


def losses(history: Iterable[Mapping[str, Any]], key: str = "eval_loss") -> list[Loss]:
    """The losses in a log of the trainer, or in the lines of metrics.jsonl, in order; those that are finite."""
    found = [(int(entry["step"]), float(entry[key])) for entry in history if key in entry]
    return [at for at in found if math.isfinite(at[1])]


def of_checkpoint(folder: Path) -> list[Loss]:
    """Those that a checkpoint has recorded."""
    return losses(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"])


def best(evals: list[Loss]) -> Loss | None:
    """The lowest, and of equals the first."""
    return min(evals, key=lambda at: at[1], default=None)


def has_stalled(evals: list[Loss], patience: int | None) -> bool:
    """Whether the last `patience` evaluations brought nothing lower than what was before them."""
    if patience is None or len(evals) <= patience:
        return False
    lowest = min(loss for _, loss in evals[:-patience])
    return all(loss >= lowest for _, loss in evals[-patience:])
