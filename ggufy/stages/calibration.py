"""The texts for an importance matrix, and for comparing a file with the training model.

Also the prompts that a file is asked. Of a run: its own training conversations, as they were tokenized for training.
Else a file: plain text, cut as llama.cpp's tool cuts it, or conversations in a known format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from ggufy.data import source, tokenize
from ggufy.data.files import BadRow
from ggufy.data.rows.detect import detect
from ggufy.data.rows.reader import Reader
from ggufy.errors import ExportError, MissingExtra
from ggufy.model.tokenizer.folder import open_backend
from ggufy.recipe.schema import Data
from ggufy.stages.model_source import ModelSource
from ggufy.system import digest
from ggufy.verify import answers
from ggufy.verify.answers import Questions

TOKENS = 10_000
"""About how many tokens are used if nothing is said."""
_CHUNK = 512
_LONGEST = 1024
_CONVERSATIONS = (".json", ".jsonl")


@dataclass(frozen=True)
class Texts:
    """Token ids, each a text of its own, loaded when `tokens` is called."""

    name: str
    fingerprint: str
    tokens: Callable[[], list[list[int]]]


def texts(this: ModelSource, file: Path | None, budget: int) -> Texts:
    """About `budget` tokens: spread over a run's training data, or from a file. Raises ExportError or DataError."""
    if file is None:
        data = this.output_folder.valid("data") if this.subfolder else None
        if data is None:
            whose = f"the run {this.name} has lost its training data" if this.subfolder else f"{this.name} is not a run"
            raise ExportError(
                f"{whose}, so there is nothing to compute an importance matrix from",
                "name a text or conversations with --imatrix-data, or a finished one with --imatrix-file",
            )
        path = data.path / "train.arrow"
        return Texts("training data", data.sha256, lambda: _spread(lambda: _rows(path), budget))
    if not file.is_file():
        raise ExportError(f"no file {file.as_posix()}", "name a text or conversations (.jsonl) with --imatrix-data")
    base = this.base.path
    if file.suffix in _CONVERSATIONS:
        rows = partial(_conversations, file, base, this.day)
        return Texts(file.name, digest.of_file(file), lambda: _spread(rows, budget))
    return Texts(file.name, digest.of_file(file), lambda: _chunks(file, base, budget))


def probes(this: ModelSource) -> list[list[int]]:
    """A few of a run's own conversations, cut short, to compare a file with the training model on.

    Raises MissingExtra where the training data cannot be read.
    """
    data = this.output_folder.valid("data") if this.subfolder else None
    if data is None:
        return []
    names = [data.path / name for name in ("eval.arrow", "train.arrow") if (data.path / name).is_file()]
    found = []
    for ids in _rows(names[0]):
        found.append(ids[:_PROBE])
        if len(found) == 2:
            break
    return found


_PROBE = 96


def questions(this: ModelSource) -> Questions:
    """A few of a run's own prompts, to see whether a file's answers to them stop. None where they cannot be read."""
    data = this.output_folder.valid("data") if this.subfolder else None
    if data is None:
        return answers.NOTHING
    try:
        return answers.choose(
            (ids.values.to_numpy(), labels.values.to_numpy())
            for ids, labels in _columns(data.path / "train.arrow", "input_ids", "labels")
        )
    except (MissingExtra, OSError, ValueError, KeyError):
        # Data that this ggufy did not prepare. This is one check more, and costs nobody the file.
        return answers.NOTHING


def _rows(path: Path) -> Iterator[list[int]]:
    for (ids,) in _columns(path, "input_ids"):
        yield ids.as_py()


def _columns(path: Path, *names: str) -> Iterator[tuple[Any, ...]]:
    """The values of these columns, row by row. Raises MissingExtra."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise MissingExtra("reading the training data", "train", "pyarrow") from None
    with pa.memory_map(path.as_posix()) as mapped, pa.ipc.open_stream(mapped) as stream:
        for batch in stream:
            yield from zip(*(batch.column(name) for name in names), strict=True)


def _conversations(file: Path, base: Path, day: date) -> Iterator[list[int]]:
    tokenizer = tokenize.Tokenizer(base, day, "all")
    data = Data(source=file.as_posix())
    reader = None
    for where, row in source.locate(data, offline=True).rows():
        if reader is None:
            form = detect(row if isinstance(row, dict) else (), data, where)
            reader = Reader(form, chat=tokenizer.chat)
        try:
            yield tokenizer.encode(reader.read(row)).input_ids
        except BadRow as problem:
            raise ExportError(f"{where}: {problem}", "fix the row, or leave it out") from None


def _spread(rows: Callable[[], Iterator[list[int]]], budget: int) -> list[list[int]]:
    """Of all rows as many as fit the budget, evenly from first to last."""
    total = sum(min(len(ids), _LONGEST) for ids in rows())
    picked: list[list[int]] = []
    seen = taken = 0
    for ids in rows():
        length = min(len(ids), _LONGEST)
        if taken * total <= seen * budget:
            picked.append(list(ids[:length]))
            taken += length
        seen += length
    return picked


def _chunks(file: Path, base: Path, budget: int) -> list[list[int]]:
    """A text in chunks of 512 tokens, each begun with the BOS where there is one, as llama.cpp's tool does."""
    tokenizer = open_backend(base)
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    bos = whole[0] if whole and whole[: len(plain)] != plain else None
    # Marks such as <|eot_id|> in a text are text.
    tokenizer.encode_special_tokens = True
    ids: list[int] = []
    for piece in pieces(file):
        ids += tokenizer.encode(piece, add_special_tokens=False).ids
        if len(ids) > budget + _CHUNK:
            break
    ids = ids if bos is None else [bos, *ids]
    full = len(ids) // _CHUNK or 1
    chunks = [ids[n * _CHUNK : (n + 1) * _CHUNK] for n in range(min(full, max(1, budget // _CHUNK)))]
    return chunks if bos is None else [[bos, *chunk[1:]] for chunk in chunks]


def pieces(file: Path) -> Iterator[str]:
    """A text in pieces of about a megabyte that end with a line, so that a large file costs no more than is used."""
    try:
        with file.open(encoding="utf-8") as opened:
            while piece := opened.read(1 << 20):
                yield piece + opened.readline()
    except UnicodeDecodeError as error:
        raise ExportError(f"{file.as_posix()}: not UTF-8 text: {error.reason}", "save the file as UTF-8") from None
