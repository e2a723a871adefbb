"""Counts of the rows of one split: used, cut, dropped, skipped, and how long they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ggufy.data.work import Outcome

# A row of more than so many times model.max_length is no conversation that is a little long: most of it is lost.
_ABSURD = 10
# So that the report of the same rows stays the same, which is a part of what a training is of.
_LATER = ("repeated", "trained_on_too", "apart")


def not_read(splits: Iterable[Counts]) -> list[str]:
    """Columns, and keys of turns, that are set in some row of these splits and are not read."""
    return sorted({name for counts in splits for name in counts.unread})


@dataclass
class Counts:
    """What became of the rows of one split."""

    rows: int = 0
    used: int = 0
    """Rows of which something is trained on."""
    kept: int = 0
    """Examples made of them: more than one of a row that is split."""
    truncated: int = 0
    truncated_absurdly: int = 0
    """Those that lose more than nine tenths."""
    longest_truncated: list[Any] = field(default_factory=list)
    """The place and the length of the longest of these."""
    dropped_long: int = 0
    split_long: int = 0
    skipped_bad: int = 0
    without_answer: int = 0
    prompts_cut: int = 0
    prompts_cut_further: int = 0
    """To fewer tokens than the budget, so that the answer fits."""
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    answers: int = 0
    """Turns of the assistant that are trained on."""
    ended: int = 0
    """Those of them that keep the token that stops the model; the others are cut before it."""
    trimmed: int = 0
    """Those that begin with spaces which the template takes away."""
    trimmed_ends: int = 0
    """Those that end with blank lines which it takes away."""
    trimmed_given: int = 0
    """Turns of the user or the system that begin with an indentation which it takes away."""
    formats: Counter[str] = field(default_factory=Counter)
    """How many rows were read in which format."""
    has: Counter[str] = field(default_factory=Counter)
    """How many rows have a system turn, tools, thinking."""
    unread: list[str] = field(default_factory=list)
    """Columns, and keys of turns, that are set in some row and are not read."""
    repeated: int = 0
    """Training rows that say what an earlier one says; counted where rows are held out."""
    trained_on_too: int = 0
    """Held-out rows that say what a training row says."""
    apart: int = 0
    """Rows that became one for each of their answers, as each is asked for in another way."""
    first_bad: list[str] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    """How many rows have how many tokens, before anything is done about too many."""
    by_source: Counter[int] = field(default_factory=Counter)
    """How many of the usable rows are of which source."""

    def add(self, outcome: Outcome, max_length: int, overflow: str, where: Callable[[Outcome], str]) -> None:
        """Count a usable row."""
        self.by_source[outcome.source] += 1
        self.lengths[outcome.length] += 1
        self.prompts_cut += outcome.cut
        self.formats[outcome.form] += 1
        self.has.update(outcome.has)
        self.prompts_cut_further += outcome.cut_further
        if outcome.length > max_length:
            if overflow == "drop":
                self.dropped_long += 1
                return
            if outcome.examples > 1 and not outcome.apart:
                self.split_long += 1
            else:
                self.truncated += 1
                self._truncate(outcome, max_length, where)
        if not outcome.examples:
            self.without_answer += 1
        self.used += outcome.examples > 0
        self.apart += outcome.apart
        self.answers += outcome.answers
        self.ended += outcome.ended
        self.trimmed += outcome.trimmed.answers
        self.trimmed_ends += outcome.trimmed.ends
        self.trimmed_given += outcome.trimmed.given
        self.kept += outcome.examples
        self.tokens += outcome.tokens
        self.trained_tokens += outcome.trained
        self.longest = max(self.longest, outcome.longest)

    def _truncate(self, outcome: Outcome, max_length: int, where: Callable[[Outcome], str]) -> None:
        if outcome.length <= _ABSURD * max_length:
            return
        self.truncated_absurdly += 1
        if not self.longest_truncated or outcome.length > self.longest_truncated[1]:
            self.longest_truncated = [where(outcome), outcome.length]

    def values(self) -> dict[str, Any]:
        """For report.json. What a later version began to count is left out where there is nothing to say of it."""
        lengths = {str(length): self.lengths[length] for length in sorted(self.lengths)}
        absent = {"lengths", "by_source", "formats", "has", "unread", "answers", "ended"}
        absent |= {"trimmed", "trimmed_ends", "trimmed_given"}
        absent |= {name for name in _LATER if not getattr(self, name)}
        return {**{name: value for name, value in vars(self).items() if name not in absent}, "lengths": lengths}

    def contents(self) -> dict[str, Any]:
        """For `ggufy data --json`: what is in the rows, beside what became of them."""
        return {
            "formats": dict(self.formats),
            "rows_with": {name: self.has[name] for name in ("system", "tools", "thinking")},
            "answers": self.answers,
            "answers_that_keep_their_end": self.ended,
            "answers_that_lose_leading_spaces": self.trimmed,
            "answers_that_lose_blank_lines_at_the_end": self.trimmed_ends,
            "other_turns_that_lose_their_indentation": self.trimmed_given,
            "columns_not_read": self.unread,
        }

    def text(self, *, places: bool = True) -> str:
        """One line for people; without `places` it names no file."""
        several = f" in {self.kept:,} rows" if self.kept != self.used else ""
        parts = [
            f"{self.used:,} of {self.rows:,} conversations{several}",
            f"{self.tokens:,} tokens",
            f"{self.trained_tokens:,} trained on",
        ]
        if self.apart:
            parts.append(f"{self.apart:,} made into a row for each answer, as the chat template asks for each")
        if self.prompts_cut:
            further = f" ({self.prompts_cut_further:,} further, to fit)" if self.prompts_cut_further else ""
            parts.append(f"{self.prompts_cut:,} with a prompt cut to the budget{further}")
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated{self._absurd(places=places)}")
        if self.split_long:
            parts.append(f"{self.split_long:,} split into several")
        if self.dropped_long:
            parts.append(f"{self.dropped_long:,} too long and dropped")
        if self.ended < self.answers:
            parts.append(f"{self.answers - self.ended:,} of {self.answers:,} answers cut before their end")
        parts += self._lost()
        if self.without_answer:
            parts.append(f"{self.without_answer:,} without an answer once truncated")
        if self.repeated:
            parts.append(f"{self.repeated:,} the same as an earlier one")
        if self.trained_on_too:
            parts.append(f"{self.trained_on_too:,} of {self.used:,} held-out conversations are trained on too")
        if self.skipped_bad:
            first = f" (first: {self.first_bad[0]})" if places else ""
            parts.append(f"{self.skipped_bad:,} unusable and skipped{first}")
        return ", ".join(parts)

    def _lost(self) -> list[str]:
        """What the chat template takes away."""
        said = {
            "answers lose the spaces they begin with": self.trimmed,
            "answers lose the blank lines they end with": self.trimmed_ends,
            "user or system turns lose the indentation they begin with": self.trimmed_given,
        }
        return [f"{count:,} {what} to the chat template" for what, count in said.items() if count]

    def _absurd(self, *, places: bool) -> str:
        if not self.truncated_absurdly:
            return ""
        where, length = self.longest_truncated
        longest = f"{where}, {length:,} tokens" if places else f"{length:,} tokens"
        return f" ({self.truncated_absurdly:,} by more than nine tenths; the longest: {longest})"
