"""What became of the rows of one split, and how long they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ggufy.data.work import Outcome


@dataclass
class Counts:
    """What became of the rows of one split."""

    rows: int = 0
    kept: int = 0
    truncated: int = 0
    dropped_long: int = 0
    split_long: int = 0
    skipped_bad: int = 0
    without_answer: int = 0
    prompts_cut: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    first_bad: list[str] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    """How many rows have how many tokens, before anything is done about too many."""

    def add(self, outcome: Outcome, max_length: int, overflow: str) -> None:
        """Count a usable row."""
        self.lengths[outcome.length] += 1
        self.prompts_cut += outcome.cut
        if outcome.length > max_length:
            if overflow == "drop":
                self.dropped_long += 1
                return
            if outcome.examples > 1:
                self.split_long += 1
            else:
                self.truncated += 1
        if not outcome.examples:
            self.without_answer += 1
        self.kept += outcome.examples
        self.tokens += outcome.tokens
        self.trained_tokens += outcome.trained
        self.longest = max(self.longest, outcome.longest)

    def values(self) -> dict[str, Any]:
        """For JSON."""
        lengths = {str(length): self.lengths[length] for length in sorted(self.lengths)}
        return {**{name: value for name, value in vars(self).items() if name != "lengths"}, "lengths": lengths}

    def text(self, *, places: bool = True) -> str:
        """One line for people; without `places` it names no file."""
        parts = [
            f"{self.kept:,} of {self.rows:,} conversations",
            f"{self.tokens:,} tokens",
            f"{self.trained_tokens:,} trained on",
        ]
        if self.prompts_cut:
            parts.append(f"{self.prompts_cut:,} with a prompt cut to the budget")
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated")
        if self.split_long:
            parts.append(f"{self.split_long:,} split into several")
        if self.dropped_long:
            parts.append(f"{self.dropped_long:,} too long and dropped")
        if self.without_answer:
            parts.append(f"{self.without_answer:,} without an answer once truncated")
        if self.skipped_bad:
            first = f" (first: {self.first_bad[0]})" if places else ""
            parts.append(f"{self.skipped_bad:,} unusable and skipped{first}")
        return ", ".join(parts)
