"""The report of `ggufy data`: how long the rows are, what is cut, and one row with the trained part marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

from ggufy.data import prepare
from ggufy.data.checks import unread
from ggufy.data.checks.unread import Unread
from ggufy.data.counts import Counts, not_read
from ggufy.data.files import BadRow
from ggufy.data.mix import Row
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.texts import names_of
from ggufy.data.source import Source
from ggufy.data.tokenize import IGNORED, Example, Tokenizer
from ggufy.data.work import Worker
from ggufy.recipe.schema import Data
from ggufy.system import plots

# The share of the rows that a suggested length holds whole, and what it is a multiple of.
_HELD = 0.99
_STEP = 64
_BARS = 16
_WIDTH = 40
# Of one stretch of the example.
_SHOWN = 1500
_BESIDE = {"system": "a system turn", "tools": "tools", "thinking": "thinking"}


@dataclass(frozen=True)
class Report:
    """Lengths are in tokens, of whole rows: before anything is done about those over `max_length`."""

    source: str
    format: str
    rendered_by: str
    max_length: int
    splits: dict[str, Counts]
    example: list[tuple[str, bool]]
    """A row's text in stretches, and whether each is trained on."""
    with_tools: bool
    """Whether the example is the first row with tools, as there are some."""
    not_read: list[Unread]
    files: list[str]
    """Which files of folders are read for what, and which are not, where that is not plain."""

    @property
    def formats(self) -> dict[str, int]:
        """How many usable rows, of all splits, were read in which format."""
        return dict(sum((counts.formats for counts in self.splits.values()), Counter()))

    @property
    def columns_not_read(self) -> list[str]:
        """Columns, and keys of turns, that are set in some row and are not read."""
        return not_read(self.splits.values())

    @property
    def lengths(self) -> Counter[int]:
        return self.splits["train"].lengths

    def at(self, share: float) -> int:
        """The length that this share of the rows does not exceed."""
        left = share * self.lengths.total()
        for length in sorted(self.lengths):
            left -= self.lengths[length]
            if left <= 1e-9:
                return length
        return 0

    @property
    def mean(self) -> float:
        return sum(length * count for length, count in self.lengths.items()) / max(1, self.lengths.total())

    @property
    def too_long(self) -> int:
        return sum(count for length, count in self.lengths.items() if length > self.max_length)

    @property
    def suggested(self) -> int:
        """The multiple of 64 that holds 99 of 100 rows whole."""
        return -(-self.at(_HELD) // _STEP) * _STEP

    def bars(self) -> list[tuple[int, int, int]]:
        """(first length, last length, rows) of a histogram; its last bar holds the longest hundredth."""
        last = self.at(1)
        width = max(1, -(-self.at(_HELD) // _BARS))
        counts: Counter[int] = Counter()
        for length, count in self.lengths.items():
            counts[min(length // width, _BARS)] += count
        used = range(min(counts), max(counts) + 1)
        return [(bar * width, last if bar == _BARS else bar * width + width - 1, counts[bar]) for bar in used]

    def values(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "source": self.source,
            "format": self.format,
            "formats": self.formats,
            "not_read": [{"source": one.source, "files": list(one.files), "why": one.why} for one in self.not_read],
            "held_out_and_trained_on": self.splits["eval"].trained_on_too if "eval" in self.splits else None,
            "repeated": self.splits["train"].repeated if "eval" in self.splits else None,
            "rendered_by": self.rendered_by,
            "max_length": self.max_length,
            "splits": {name: {**counts.values(), **counts.contents()} for name, counts in self.splits.items()},
            "tokens_per_epoch": self.splits["train"].tokens,
            "trained_tokens_per_epoch": self.splits["train"].trained_tokens,
            "mean": round(self.mean, 2),
            "median": self.at(0.5),
            "p95": self.at(0.95),
            "p99": self.at(0.99),
            "max": self.at(1),
            "rows_over_max_length": self.too_long,
            "share_over_max_length": round(self.too_long / self.lengths.total(), 6),
            "suggested_max_length": self.suggested,
            "histogram": [{"from": low, "to": high, "rows": count} for low, high, count in self.bars()],
            "example": [{"text": text, "trained": trained} for text, trained in self.example],
            "example_has_tools": self.with_tools,
        }

    def lines(self, mark: Callable[[str], str]) -> Iterator[str]:
        """For people; `mark` shows that a text is trained on."""
        yield f"{self.source}: format {self.format}, rendered by {self.rendered_by}"
        for name, counts in self.splits.items():
            yield f"{name}: {counts.text()}"
        yield f"rows by format: {', '.join(f'{count:,} {form}' for form, count in self.formats.items())}"
        yield from self._contents()
        if "eval" in self.splits and not self.splits["eval"].trained_on_too:
            yield "no held-out conversation is trained on too"
        yield from self.files
        total = self.lengths.total()
        yield ""
        yield (
            f"tokens a row: mean {self.mean:,.1f}, median {self.at(0.5):,}, 95% up to {self.at(0.95):,}, "
            f"99% up to {self.at(0.99):,}, longest {self.at(1):,}"
        )
        yield f"over model.max_length {self.max_length:,}: {self.too_long:,} of {total:,} ({self.too_long / total:.1%})"
        yield f"suggested model.max_length: {self.suggested:,}, which holds 99% of the rows whole"
        train = self.splits["train"]
        yield f"tokens per epoch: {train.tokens:,}, trained on {train.trained_tokens:,}"
        yield ""
        yield from self._histogram()
        yield ""
        which = "the first row with tools" if self.with_tools else "the first row"
        yield f"{which}, with {mark('what is trained on')} marked:"
        yield "".join(mark(_short(text)) if trained else _short(text) for text, trained in self.example)

    def _contents(self) -> Iterator[str]:
        train = self.splits["train"]
        beside = [f"{train.has[name]:,} with {said}" for name, said in _BESIDE.items() if train.has[name]]
        if beside:
            yield f"training rows: {', '.join(beside)}"
        if train.answers:
            yield f"answers that keep their end: {train.ended:,} of {train.answers:,}"
        if self.columns_not_read:
            yield f"not read: columns {names_of(self.columns_not_read)}"

    def _histogram(self) -> Iterator[str]:
        bars = self.bars()
        most = max(count for _, _, count in bars)
        names = [f"{low:,}-{high:,}" for low, high, _ in bars]
        width, digits = max(map(len, names)), max(len(f"{count:,}") for _, _, count in bars)
        yield f"{'tokens':>{width}}  {'rows':>{max(digits, 4)}}"
        for name, (low, high, count) in zip(names, bars, strict=True):
            length = -(-count * _WIDTH // most)
            here = "  <- model.max_length" if low <= self.max_length <= high else ""
            yield f"{name:>{width}}  {count:>{max(digits, 4)},}  {'█' * length}{here}".rstrip()

    def save_png(self, path: Path) -> None:
        """The histogram as a picture. Raises MissingExtra."""
        with plots.picture(path, self.source, x="tokens", y="rows") as axes:
            lengths = sorted(self.lengths)
            axes.hist(lengths, bins=60, weights=[self.lengths[length] for length in lengths], color="#4c78a8")
            axes.axvline(self.max_length, color="#e45756", label=f"model.max_length {self.max_length:,}")
            axes.axvline(self.suggested, color="#54a24b", linestyle="--", label=f"suggested {self.suggested:,}")


def make(source: Source, data: Data, base: Path, max_length: int, day: date, scratch: Path) -> Report:
    """Prepare the data in the folder `scratch`, and describe it."""
    splits = prepare.prepare(source, data, base, max_length, day, scratch)
    tokenizer = Tokenizer(base, day, data.train_on)
    form = prepare.format_of(source, data, data)
    plain = form == "text" or (form == "prompt-completion" and not tokenizer.chat)
    how = "no template" if plain else "the base's chat template" if tokenizer.chat else "Alpaca's template"
    with_tools = splits["train"].has["tools"] > 0
    if with_tools:
        _, plan = prepare.planned(source, data, base, max_length, day)
        example = _first_with_tools(Worker(plan), prepare.splits(source, data, scratch)["train"])
    else:
        example = _first(scratch / "train.arrow", tokenizer)
    files = [text for _, text in unread.lines(source)]
    return Report(source.name, form, how, max_length, splits, example, with_tools, unread.find(source), files)


def _first(path: Path, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    import pyarrow as pa

    with pa.OSFile(path.as_posix()) as file, pa.ipc.open_stream(file) as stream:
        row = stream.read_next_batch().slice(0, 1).to_pylist()[0]
    return _marked(Example(row["input_ids"], row["labels"]), tokenizer)


def _first_with_tools(worker: Worker, rows: Iterable[Row]) -> list[tuple[str, bool]]:
    for row in rows:
        try:
            cut = worker.cuts(row)[-1]
        except BadRow:
            continue
        sample = cut.sample
        if isinstance(sample, Conversation) and (sample.tools or any("tool_calls" in turn for turn in sample)):
            return _marked(cut.example, worker.tokenizer)
    return []


def _marked(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    pairs = zip(example.input_ids, example.labels, strict=True)
    stretches = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    return [(tokenizer.decode([token for token, _ in stretch]), trained) for trained, stretch in stretches]


def _short(text: str) -> str:
    left = len(text) - _SHOWN
    return text if left <= 0 else f"{text[: _SHOWN // 2]} ... {left:,} characters ... {text[-_SHOWN // 2 :]}"
