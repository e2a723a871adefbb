"""The data stage: rows in, Arrow files of ids and labels out, with a report of what became of every row."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

from ggufy.data import formats
from ggufy.data.formats import BadRow, Format
from ggufy.data.source import Source
from ggufy.data.tokenize import Example, Tokenizer
from ggufy.errors import DataError, MissingExtra
from ggufy.recipe import Data
from ggufy.run import write_json

log = logging.getLogger("ggufy")

_BATCH = 256


@dataclass
class Counts:
    """What became of the rows of one split."""

    rows: int = 0
    kept: int = 0
    truncated: int = 0
    dropped_long: int = 0
    skipped_bad: int = 0
    without_answer: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    first_bad: list[str] = field(default_factory=list)

    def text(self) -> str:
        """One line for people."""
        parts = [
            f"{self.kept:,} of {self.rows:,} conversations",
            f"{self.tokens:,} tokens",
            f"{self.trained_tokens:,} trained on",
        ]
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated")
        if self.dropped_long:
            parts.append(f"{self.dropped_long:,} too long and dropped")
        if self.without_answer:
            parts.append(f"{self.without_answer:,} without an answer once truncated")
        if self.skipped_bad:
            parts.append(f"{self.skipped_bad:,} unusable and skipped (first: {self.first_bad[0]})")
        return ", ".join(parts)


def prepare(source: Source, data: Data, base: Path, max_length: int, day: date, out: Path) -> dict[str, Counts]:
    """Write to the folder `out`: `train.arrow`, `eval.arrow` (columns input_ids and labels) and `report.json`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(base, day, data.train_on)
    rows = source.rows()
    splits = {"train": islice(rows, data.train_size)}
    if data.eval_size:
        splits["eval"] = islice(rows, data.eval_size)
    report: dict[str, Counts] = {}
    form: Format | None = None
    for name, part in splits.items():
        counts = report[name] = Counts()
        first = next(part, None)
        if first is None:
            if name == "train":
                raise DataError(f"{source.name}: the data set is empty", "check data.source and data.split")
            taken = f"all {report['train'].rows:,} rows are used for training"
            raise DataError(
                f"{source.name}: no rows left to hold out: {taken}", "lower data.train_size, or set data.eval_size=0"
            )
        form = form or formats.detect(first[1] if isinstance(first[1], dict) else (), data.format, first[0])
        _write(out / f"{name}.arrow", _examples(first, part, form, tokenizer, data, max_length, counts))
        _check(counts, source, name)
        asked = data.train_size if name == "train" else data.eval_size
        if asked and counts.rows < asked:
            log.info(
                "%s: the recipe asks for %s %s rows, and there are %s", source.name, f"{asked:,}", name, counts.rows
            )
    write_json(out / "report.json", {name: asdict(counts) for name, counts in report.items()})
    return report


def _examples(
    first: tuple[str, Any],
    rest: Iterator[tuple[str, Any]],
    form: Format,
    tokenizer: Tokenizer,
    data: Data,
    max_length: int,
    counts: Counts,
) -> Iterator[Example]:
    for where, row in (pair for pairs in ([first], rest) for pair in pairs):
        counts.rows += 1
        try:
            if not isinstance(row, dict) or form.column not in row:
                raise BadRow(f"no column {form.column!r}, unlike the first row")
            example = tokenizer.encode(form.convert(row))
        except BadRow as problem:
            if data.on_bad_row == "error":
                raise DataError(
                    f"{where}: {problem}", "mend the row, or set data.on_bad_row=skip to leave such rows out"
                ) from None
            counts.skipped_bad += 1
            counts.first_bad = counts.first_bad or [f"{where}: {problem}"]
            continue
        fitted = _fit(example, where, data, max_length, counts)
        if fitted is not None:
            counts.kept += 1
            counts.tokens += len(fitted.input_ids)
            counts.trained_tokens += fitted.trained
            counts.longest = max(counts.longest, len(fitted.input_ids))
            yield fitted


def _fit(example: Example, where: str, data: Data, max_length: int, counts: Counts) -> Example | None:
    length = len(example.input_ids)
    if length > max_length:
        if data.overflow == "refuse":
            hint = "raise model.max_length, or set data.overflow to truncate or drop"
            raise DataError(f"{where}: {length:,} tokens, but model.max_length is {max_length:,}", hint)
        if data.overflow == "drop":
            counts.dropped_long += 1
            return None
        counts.truncated += 1
        example = Example(example.input_ids[:max_length], example.labels[:max_length])
    if not example.trained:
        counts.without_answer += 1
        return None
    return example


def _check(counts: Counts, source: Source, split: str) -> None:
    if counts.kept:
        return
    if counts.without_answer:
        raise DataError(
            f"{source.name}: every label of the {split} split is masked: the prompts alone fill model.max_length",
            "raise model.max_length, or check that the assistant's turns are where they should be",
        )
    raise DataError(
        f"{source.name}: none of the {counts.rows:,} {split} rows can be used: {counts.text()}",
        "see data.overflow and data.on_bad_row",
    )


def _write(path: Path, examples: Iterator[Example]) -> None:
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise MissingExtra("preparing data", "train", "pyarrow") from None
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    with pa.OSFile(path.as_posix(), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(examples, _BATCH)):
            columns = [[e.input_ids for e in batch], [e.labels for e in batch]]
            writer.write_batch(
                pa.record_batch([pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema=schema)
            )
