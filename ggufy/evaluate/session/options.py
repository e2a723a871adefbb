"""The options of `ggufy eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ggufy.system import machine

SECTIONS = ("heldout", "quants", "prompts", "references", "tools", "numbers", "judge")


@dataclass(frozen=True)
class EvalOptions:
    """The options of one call of `ggufy eval`."""

    only: Sequence[str] = SECTIONS
    against: Path | None = None
    """The file to compare with, instead of the F16 file."""
    data: Path | None = None
    limit: int = 100
    """Use at most this many held-out conversations."""
    prompts: Path | None = None
    rows: int = 50
    """How many held-out rows the models answer, to be compared with the data's own answers."""
    max_kl: float = 0.05
    """Largest mean KL, in nats per token, at which a quant is recommended."""
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 3407
    context: int | None = None
    """Context size in tokens; if not given, as many as the conversations need, and 4096 for answers."""
    threads: int | None = None
    adapter: bool = True
    """Also measure the training model itself, if torch is installed."""
    out: Path | None = None
    keep: bool = False
    """Keep the files that are made for the comparison."""
    judge: str | None = None
    """The model that grades the answers to the prompts, at an OpenAI-compatible address."""
    judge_url: str | None = None
    """The judge's address, if it is not OpenAI's."""
    judge_price: tuple[float, float] | None = None
    """Price of a million tokens in and out."""
    judge_rows: int = 0
    """How many held-out questions are graded too, beside the prompts."""
    judge_parallel: int = 4
    judge_per_minute: float | None = None
    """Ask the judge at most this many questions a minute."""
    judge_timeout: float = 120.0
    """Seconds to wait for a reply."""
    judge_tokens: int = 1024
    """Longest reply, in tokens."""
    judge_again: bool = False
    """Ask the judge again what it has graded before."""
    yes: bool = False
    """Ask the judge without asking the user for confirmation."""
    confirm: Callable[[str], bool] | None = None
    """Asks the user for confirmation; without this and `yes` no judge is asked."""

    @property
    def cores(self) -> int:
        return self.threads or machine.cores()

    @property
    def insisted(self) -> Sequence[str]:
        """The parts that the user named: if one of them cannot be done, that is an error."""
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
