"""The Trial class: one trial of a sweep, independent of its storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ggufy.sweeps.space import Point

WAITING, OPEN, DONE, PRUNED, FAILED = "waiting", "open", "done", "pruned", "failed"
# Why a trial that Optuna has as failed is one: of its own values, of something around it, or it does not count at all.
DIVERGED, MEMORY, KILLED, REFUSED, ERROR = "diverged", "memory", "killed", "refused", "error"
VOID = ("lost", "duplicate", "surplus")


@dataclass(frozen=True)
class Trial:
    """One trial as the storage has it."""

    number: int
    state: str
    run: str
    point: Point
    loss: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What is known of it beside: reason, steps, seconds, ..."""
    evals: dict[int, float] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.state in (DONE, PRUNED, FAILED)
