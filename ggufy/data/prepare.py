"""The data stage: rows in, Arrow files of ids and labels out, with a report of what became of every row.

The bytes of the files do not depend on how many processes made them: rows go to them in batches of one size, and what
comes back is written in order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from datetime import date
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

from ggufy.data import files, mix, pool
from ggufy.data.checks import overlap
from ggufy.data.counts import Counts
from ggufy.data.files import BadRow
from ggufy.data.mix import Row
from ggufy.data.rows import detect
from ggufy.data.rows.reader import Reader
from ggufy.data.source import Source
from ggufy.data.work import Outcome, Plan, Result, Worker
from ggufy.errors import DataError, MissingExtra
from ggufy.recipe.schema import Data, Part
from ggufy.system import machine, progress
from ggufy.system.disk import write_json

log = logging.getLogger("ggufy")

_BATCH = 256
_LARGE = 4 << 20
# Below so many batches, starting processes takes longer than they save.
_FEW = 8
# How far to look for a row that tells the format, where the recipe skips bad ones.
_LOOK = 100


def prepare(
    source: Source, data: Data, base: Path, max_length: int, day: date, out: Path, processes: int | None = None
) -> dict[str, Counts]:
    """Write to the folder `out`: `train.arrow`, `eval.arrow` (columns input_ids and labels) and `report.json`."""
    stage, splits = opened(source, data, base, max_length, day, out, processes)
    report = {name: stage.split(name, part, partial(_write, out / f"{name}.arrow")) for name, part in splits.items()}
    write_json(out / "report.json", {name: counts.values() for name, counts in report.items()})
    return report


def opened(
    source: Source, data: Data, base: Path, max_length: int, day: date, out: Path, processes: int | None = None
) -> tuple[Stage, dict[str, Iterator[Row]]]:
    """What prepares the splits of a recipe's data, and the rows of each; they are to be read in this order."""
    out.mkdir(parents=True, exist_ok=True)
    sources, plan = planned(source, data, base, max_length, day)
    odd = next((form for _, form in plan.parts if form != "text"), None)
    if data.overflow == "split" and odd:
        raise DataError(
            f"data.overflow: split is for plain text, but {source.name} is {odd}", "truncate, drop or refuse"
        )
    sizes = _sizes(source, data)
    overlap.refuse(source, data, *sizes)
    return Stage(plan, sources, processes or machine.cores(), sizes), splits(source, data, out, sizes)


def planned(source: Source, data: Data, base: Path, max_length: int, day: date) -> tuple[list[Source], Plan]:
    """All sources of a recipe, that of what is held out last, and how their rows are read."""
    apart = [] if source.held_out is None else [source.held_out]
    sources = [source, *source.more, *apart]
    held_out = (_held_out(one, data) for one in apart)
    parts = zip(sources, (data, *data.more, *held_out), strict=True)
    return sources, Plan(base, day, data, max_length, tuple((part, format_of(one, part, data)) for one, part in parts))


def _held_out(source: Source, data: Data) -> Data:
    """How held-out rows are read: as those of data.source, or, of another source, by the usual names of columns.

    Those come second: what the recipe says is tried on the first row.
    """
    mapped = data.model_copy(update={"source": source.name})
    if not data.eval_source or not data.columns:
        return mapped
    plain = mapped.model_copy(update={"columns": {}})
    return plain if not _fits(source, mapped, data) and _fits(source, plain, data) else mapped


def _fits(source: Source, part: Part, data: Data) -> bool:
    try:
        reader = Reader(format_of(source, part, data), part)
        for _, item in islice(source.raw(), 1):
            reader.read(files.parse(item))
    except (BadRow, DataError):
        return False
    return True


Sizes = tuple[int | None, int | None]
"""How many rows are trained on and held out; None is all there are."""


def splits(source: Source, data: Data, scratch: Path, sizes: Sizes | None = None) -> dict[str, Iterator[Row]]:
    """The rows that are trained on, and those that are held out, to be read in this order."""
    sources = [source, *source.more]
    train_size, eval_size = sizes or _sizes(source, data)
    rows = mix.rows(sources, data, scratch)
    found: dict[str, Iterator[Row]] = {"train": islice(rows, train_size)}
    if source.held_out is not None:
        held_out = ((len(sources), number, item) for number, item in source.held_out.raw())
        found["eval"] = islice(held_out, eval_size)
    elif eval_size:
        found["eval"] = islice(rows, eval_size)
    return found


def _sizes(source: Source, data: Data) -> Sizes:
    """A share is of what is held out apart, else of train_size; without that of all rows, and those before are left."""
    if isinstance(data.eval_size, int):
        return data.train_size, data.eval_size or None
    share = float(data.eval_size.removesuffix("%")) / 100
    if source.held_out is not None:
        return data.train_size, max(1, round(share * source.held_out.count()))
    if data.train_size is not None:
        return data.train_size, max(1, round(share * data.train_size))
    total = mix.count([source, *source.more], data)
    held_out = max(1, round(share * total))
    if held_out >= total:
        raise DataError(
            f"{source.name}: of {total:,} row{'s' * (total != 1)}, none is left to train on beside data.eval_size "
            f"{data.eval_size}",
            "hold out less, or name other rows with data.eval_source",
        )
    return total - held_out, held_out


def format_of(source: Source, part: Any, data: Data) -> str:
    """The format of a source, told from its first row; of one that skips bad rows, from the first that tells it."""
    first: DataError | None = None
    where = source.where()
    for number, item in islice(source.raw(), _LOOK if data.on_bad_row == "skip" else 1):
        try:
            row = files.parse(item)
            if not isinstance(row, dict):
                raise BadRow(f"a row is an object with columns, not {type(row).__name__}")
            return detect.detect(row, part, where(number))
        except BadRow as problem:
            first = first or _bad(where(number), str(problem))
        except DataError as error:
            first = first or error
    raise first or source.empty()


class Stage:
    """The preparation of the splits of one data set."""

    def __init__(self, plan: Plan, sources: list[Source], processes: int, sizes: Sizes) -> None:
        self.plan, self.sources, self.processes, self.sizes = plan, sources, processes, sizes
        self.places: dict[int, Callable[[int], str]] = {}
        self.seen: set[tuple[int, int]] = set()
        self.said = overlap.Seen()

    def split(self, name: str, rows: Iterator[Row], write: Callable[[Iterator[Result]], None]) -> Counts:
        """Prepare one split; `write` reads all the results."""
        counts = Counts()
        data, main = self.plan.data, self.sources[0].name
        asked = self.sizes[name != "train"]
        apart = name == "eval" and bool(data.eval_split or data.eval_source)
        total = asked or sum(
            source.count() for source in (self.sources[-1:] if apart else self.sources[: 1 + len(data.more)])
        )
        write(self._counted(name, rows, counts, total))
        if name == "train" and data.holds_out:
            counts.repeated = self.said.close()
        if not counts.rows and name == "eval" and not apart:
            raise DataError(
                f"{main}: no rows left to hold out: all rows are used for training",
                "lower data.train_size, or set data.eval_size=0",
            )
        if not counts.rows:
            raise DataError(f"{main}: there are no {name} rows", "check data.source and data.split")
        _check(counts, main, name)
        if asked and counts.rows < asked:
            log.info("%s: the recipe asks for %s %s rows, and there are %s", main, f"{asked:,}", name, counts.rows)
        return counts

    def _counted(self, name: str, rows: Iterator[Row], counts: Counts, total: int) -> Iterator[Result]:
        """The results, counted; a row that the recipe does not allow ends it all."""
        with closing(self._results(rows)) as results, progress.bar("preparing", total) as bar:
            for result in results:
                self._drop_repeated(result)
                counts.unread = sorted({*counts.unread, *result.unread})
                for outcome in result.outcomes:
                    self._count(outcome, counts)
                said = [outcome.said for outcome in result.outcomes if outcome.said is not None]
                if name == "train":
                    self.said.add(said)
                elif said:
                    counts.trained_on_too += self.said.count(said)
                bar.update(counts.rows, f"{counts.rows:,} rows")
                yield result

    def _results(self, rows: Iterator[Row]) -> Generator[Result, None, None]:
        batches = _batches(rows)
        few = list(islice(batches, _FEW))
        if len(few) < _FEW or self.processes == 1:
            worker = Worker(self.plan)
            yield from (worker.batch(batch) for batch in chain(few, batches))
        else:
            yield from pool.results(self.plan, chain(few, batches), self.processes)

    def _drop_repeated(self, result: Result) -> None:
        """Make unusable the rows whose id was there before in the same source."""
        for index, outcome in enumerate(result.outcomes):
            if outcome.identity is None or outcome.problem:
                continue
            if (key := (outcome.source, outcome.identity)) in self.seen:
                result.drop(index, "its id was used in an earlier row")
            self.seen.add(key)

    def _count(self, outcome: Outcome, counts: Counts) -> None:
        counts.rows += 1
        if outcome.refused:
            limit = self.plan.max_length
            hint = "raise model.max_length, or set data.overflow to truncate or drop"
            raise DataError(
                f"{self.place(outcome)}: {outcome.length:,} tokens, but model.max_length is {limit:,}", hint
            )
        if outcome.problem:
            where = self.place(outcome)
            if self.plan.data.on_bad_row == "error":
                raise _bad(where, outcome.problem)
            counts.skipped_bad += 1
            counts.first_bad = counts.first_bad or [f"{where}: {outcome.problem}"]
            return
        counts.add(outcome, self.plan.max_length, self.plan.data.overflow, self.place)

    def place(self, outcome: Outcome) -> str:
        """Where a row is from, for people."""
        if outcome.source not in self.places:
            self.places[outcome.source] = self.sources[outcome.source].where()
        return self.places[outcome.source](outcome.number)


def _bad(where: str, problem: str) -> DataError:
    hint = "fix the row, or set data.on_bad_row=skip to leave such rows out"
    if problem.startswith("a row is an object"):
        hint = 'write it as {"text": "..."} or {"messages": [...]}, or set data.on_bad_row=skip to leave such rows out'
    if problem.startswith("not JSON but Python"):
        hint = "write each line with json.dumps(row), or set data.on_bad_row=skip to leave such lines out"
    elif problem.startswith("not JSON"):
        hint = "write one JSON object on each line, or set data.on_bad_row=skip to leave such lines out"
    if problem.startswith("the template takes"):
        hint = "raise model.max_length by what the template takes, or set data.on_bad_row=skip to leave such rows out"
    if problem.startswith("its id"):
        hint = "remove one of the two, or set data.unique_ids=false if ids need not be unique there"
    return DataError(f"{where}: {problem}", hint)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """In batches that the rows alone determine: of so many, or fewer where they are large."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += _size(row[2])
        if len(batch) == _BATCH or size >= _LARGE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(item: Any) -> int:
    """About how many bytes a row has."""
    if isinstance(item, str | bytes):
        return len(item)
    if isinstance(item, dict):
        return sum(map(_size, item.values()))
    return sum(map(_size, item)) if isinstance(item, list) else 8


def _check(counts: Counts, source: str, split: str) -> None:
    if counts.kept and (split != "train" or counts.ended or not counts.answers):
        return
    if counts.kept:
        raise DataError(
            f"{source}: all {counts.answers:,} answers of the {split} split are cut before the token that ends them, "
            "so the model would never stop",
            "raise model.max_length, or set data.overflow=drop to leave out what does not fit",
        )
    if counts.without_answer:
        raise DataError(
            f"{source}: every label of the {split} split is masked: the prompts alone fill model.max_length",
            "raise model.max_length, or check that the assistant's turns are where they should be",
        )
    raise DataError(
        f"{source}: none of the {counts.rows:,} {split} rows can be used: {counts.text()}",
        "see data.overflow and data.on_bad_row",
    )


def _write(path: Path, results: Iterator[Result]) -> None:
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise MissingExtra("preparing data", "train", "pyarrow") from None
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    with pa.OSFile(path.as_posix(), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for result in results:
            if not result.sizes:
                continue
            offsets = pa.array([0, *accumulate(result.sizes)], pa.int32())
            columns = [
                pa.ListArray.from_arrays(
                    offsets, pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])
                )
                for values in (result.input_ids, result.labels)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
