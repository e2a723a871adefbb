"""The work on one batch of rows, in this process or in another: read, tokenize, fit to the length."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from ggufy.data import files
from ggufy.data.budget import Budget, Cut
from ggufy.data.checks.said import NOTHING, Trimmed
from ggufy.data.files import BadRow
from ggufy.data.mix import Row
from ggufy.data.rows.conversation import Conversation, Plain, Sample
from ggufy.data.rows.reader import Reader
from ggufy.data.tokenize import IGNORED, Example, Tokenizer
from ggufy.recipe.schema import Data, Part


@dataclass(frozen=True)
class Plan:
    """Everything a process needs to know to do its share."""

    base: Path
    day: date
    data: Data
    max_length: int
    parts: tuple[tuple[Part, str], ...]
    """How the rows of each source are read, and in which format they are."""


class Outcome(NamedTuple):
    """What became of a row."""

    source: int
    number: int
    problem: str = ""
    """Why it is unusable."""
    refused: bool = False
    """Too long, and the recipe refuses that."""
    length: int = 0
    """Tokens, before anything is done about too many."""
    examples: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    cut: bool = False
    """Its prompt was over the budget."""
    cut_further: bool = False
    """And had to be cut to less than the budget, so that the answer fits."""
    identity: int | None = None
    """A hash of its `id`."""
    answers: int = 0
    """Answers that are trained on, before anything is done about too many tokens."""
    ended: int = 0
    """Those of them that keep the token that stops the model."""
    trimmed: Trimmed = NOTHING
    """What its turns lose to the template."""
    form: str = ""
    """The format it was read in."""
    has: tuple[str, ...] = ()
    """What it has beside turns: tools, system, thinking."""
    apart: bool = False
    """It became a row for each of its answers."""
    said: int | None = None
    """A hash of its ids as they are before any are cut off; of a row that is used, where rows are held out."""


def _numbers() -> array[int]:
    return array("i")


@dataclass
class Result:
    """A batch, done: an outcome a row, and the ids and labels of all its examples, one after the other."""

    outcomes: list[Outcome] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    input_ids: array[int] = field(default_factory=_numbers)
    labels: array[int] = field(default_factory=_numbers)
    unread: set[str] = field(default_factory=set)
    """Columns, and keys of turns, that no row so far was read for."""

    def drop(self, index: int, problem: str) -> None:
        """Take a row's examples out; it is unusable after all."""
        gone = self.outcomes[index]
        first = sum(outcome.examples for outcome in self.outcomes[:index])
        start = sum(self.sizes[:first])
        del self.input_ids[start : start + gone.tokens]
        del self.labels[start : start + gone.tokens]
        del self.sizes[first : first + gone.examples]
        self.outcomes[index] = Outcome(gone.source, gone.number, problem)


class Worker:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tokenizer = Tokenizer(plan.base, plan.day, plan.data.train_on)
        self.budget = Budget(self.tokenizer, plan.data, plan.max_length)
        self.readers = [Reader(form, part, chat=self.tokenizer.chat) for part, form in plan.parts]

    def batch(self, rows: Sequence[Row]) -> Result:
        """Stops after the first row that the recipe does not allow."""
        result = Result()
        for row in rows:
            outcome = self._row(row, result)
            result.outcomes.append(outcome)
            if outcome.refused or (outcome.problem and self.plan.data.on_bad_row == "error"):
                break
        # What ggufy's own samples say beside their turns is known.
        theirs = (reader for reader, (part, _) in zip(self.readers, self.plan.parts, strict=True) if not _own(part))
        result.unread = set().union(*(reader.unread for reader in theirs))
        return result

    def cuts(self, row: Row) -> list[Cut]:
        """What a row says, its prompts cut to the budget, and what becomes of that. Raises BadRow."""
        return self.budget.encode(self._read(row))

    def sample(self, row: Row) -> Sample:
        """What a row says, its prompts cut to the budget, in one piece. Raises BadRow."""
        cuts, whole = self.cuts(row), self._read(row)
        last = cuts[-1].sample
        if len(cuts) == 1 or isinstance(last, Plain) or isinstance(whole, Plain):
            return last
        turns = [{**turn, "content": cut["content"]} for turn, cut in zip(whole, last, strict=False)]
        return Conversation([*turns, *whole[len(last) :]], getattr(whole, "tools", None))

    def _read(self, row: Row) -> Sample:
        source, _, item = row
        return self.readers[source].read(files.parse(item))

    def _row(self, row: Row, result: Result) -> Outcome:
        source, number, item = row
        identity = None
        try:
            values = files.parse(item)
            identity = _identity(values) if self.plan.data.unique_ids else None
            reader = self.readers[source]
            cuts = self.budget.encode(reader.read(values))
        except BadRow as problem:
            return Outcome(source, number, str(problem), identity=identity)
        examples = [cut.example for cut in cuts]
        length = max(len(example.input_ids) for example in examples)
        if length > self.plan.max_length and self.plan.data.overflow == "refuse":
            return Outcome(source, number, refused=True, length=length)
        kept = [part for part in self._fit(examples, length) if _predicts(part)]
        for part in kept:
            result.sizes.append(len(part.input_ids))
            result.input_ids.extend(array("i", part.input_ids))
            result.labels.extend(array("i", part.labels))
        sizes = [len(part.input_ids) for part in kept]
        longest = self.plan.max_length if self.plan.data.overflow == "truncate" else length
        trained = sum(part.trained for part in kept)
        return Outcome(
            source=source,
            number=number,
            length=length,
            examples=len(kept),
            tokens=sum(sizes),
            trained=trained,
            longest=max(sizes, default=0),
            cut=any(cut.cut for cut in cuts),
            cut_further=any(cut.further for cut in cuts),
            identity=identity,
            answers=sum(len(example.ends) for example in examples) if kept else 0,
            ended=sum(end < longest for example in examples for end in example.ends) if kept else 0,
            trimmed=_trimmed(examples) if kept else NOTHING,
            form=reader.name_of_form,
            has=_has(cuts[-1].sample),
            said=_said(examples) if kept and self.plan.data.holds_out else None,
            apart=len(examples) > 1,
        )

    def _fit(self, examples: list[Example], length: int) -> list[Example]:
        """The examples of a row, or what the recipe makes of them where one is too long."""
        longest, overflow = self.plan.max_length, self.plan.data.overflow
        if length <= longest:
            return examples
        if overflow == "drop":
            return []
        if overflow == "truncate":
            return [Example(example.input_ids[:longest], example.labels[:longest]) for example in examples]
        [example] = examples
        pieces = [
            Example(example.input_ids[at : at + longest], example.labels[at : at + longest])
            for at in range(0, length, longest)
        ]
        if len(pieces[-1].input_ids) == 1:
            # A token alone is predicted from nothing. It gets the ones before it, which are learnt where they are.
            ids, label = example.input_ids[-longest:], example.labels[-1]
            pieces[-1] = Example(ids, [*[IGNORED] * (len(ids) - 1), label])
        return pieces


def _trimmed(examples: list[Example]) -> Trimmed:
    """Of a row: where it became several, these say what is given again."""
    answers, ends, given = zip(*(example.trimmed for example in examples), strict=True)
    return Trimmed(sum(answers), sum(ends), max(given))


def _own(part: Part) -> bool:
    """Whether the rows are ggufy's own samples."""
    return part.source.startswith("builtin:")


def _predicts(part: Example) -> bool:
    """Whether something in it is learnt: the first token is predicted from nothing."""
    return part.trained > (part.labels[0] != IGNORED)


def _said(examples: list[Example]) -> int:
    return _hash(b"".join(array("i", example.input_ids).tobytes() for example in examples))


def _has(sample: Sample) -> tuple[str, ...]:
    if isinstance(sample, Plain):
        return ()
    found = ["system"] if sample[0]["role"] == "system" else []
    if getattr(sample, "tools", None) or any("tool_calls" in message for message in sample):
        found.append("tools")
    if any("reasoning_content" in message or "</think>" in message["content"] for message in sample):
        found.append("thinking")
    return tuple(found)


def _identity(row: Any) -> int | None:
    value = row.get("id") if isinstance(row, dict) else None
    if value is None or value == "":
        return None
    return _hash(repr(value).encode("utf-8", "replace"))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
