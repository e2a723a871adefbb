"""What somebody may ask of `ggufy eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ggufy.system import machine

SECTIONS = ("heldout", "quants", "prompts", "references", "tools", "numbers", "judge")


@dataclass(frozen=True)
class EvalOptions:
    """What somebody asked of `ggufy eval`."""

    only: Sequence[str] = SECTIONS
    against: Path | None = None
    """What the files are compared with, in the place of the F16 file."""
    data: Path | None = None
    limit: int = 100
    """The most held-out conversations."""
    prompts: Path | None = None
    rows: int = 50
    """The most held-out rows that models answer, to be held against the data's own answers."""
    max_kl: float = 0.05
    """The most that a quant may be off, as mean KL in nats a token, to be recommended."""
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 3407
    context: int | None = None
    """Tokens kept in view; as many as the conversations need if not given, for answers 4096."""
    threads: int | None = None
    adapter: bool = True
    """Also the training model itself, where torch is."""
    out: Path | None = None
    keep: bool = False
    """Files made for the comparison stay."""
    judge: str | None = None
    """The model that judges the answers to the prompts, by an OpenAI-compatible endpoint."""
    judge_url: str | None = None
    """Where it is, if not at OpenAI."""
    judge_price: tuple[float, float] | None = None
    """Of a million tokens in and out."""
    judge_rows: int = 0
    """Held-out questions that are judged too, beside the prompts."""
    judge_parallel: int = 4
    judge_per_minute: float | None = None
    """The most questions a minute."""
    judge_timeout: float = 120.0
    """Seconds for one reply."""
    judge_tokens: int = 1024
    """The longest reply."""
    judge_again: bool = False
    """Also what it was asked before."""
    yes: bool = False
    """The judge may cost what it costs."""
    confirm: Callable[[str], bool] | None = None
    """Asks whoever is there; without that and `yes` no judge is asked."""

    @property
    def cores(self) -> int:
        return self.threads or machine.cores()

    @property
    def insisted(self) -> Sequence[str]:
        """The parts that somebody named: there an error is better than nothing."""
        return () if tuple(self.only) == SECTIONS else self.only


class EvalArguments(TypedDict, total=False):
    """The fields of EvalOptions, as keyword arguments."""

    only: Sequence[str]
    against: Path | None
    data: Path | None
    limit: int
    prompts: Path | None
    max_kl: float
    max_tokens: int
    temperature: float
    seed: int
    context: int | None
    threads: int | None
    adapter: bool
    out: Path | None
    keep: bool
    rows: int
    judge: str | None
    judge_url: str | None
    judge_price: tuple[float, float] | None
    judge_rows: int
    judge_parallel: int
    judge_per_minute: float | None
    judge_timeout: float
    judge_tokens: int
    judge_again: bool
    yes: bool
    confirm: Callable[[str], bool] | None
