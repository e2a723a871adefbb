"""The held-out conversations of an evaluation: those of the run, or a file of the user's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ggufy.data import prepare, source
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.reader import Reader
from ggufy.data.tokenize import Tokenizer
from ggufy.data.work import Worker
from ggufy.errors import DataError, EvalError, MissingExtra
from ggufy.evaluate.metrics.answers import Question
from ggufy.evaluate.metrics.texts import HeldOut, Text
from ggufy.export.adapter.adapter import EMBEDDING
from ggufy.model.safetensors import Checkpoint
from ggufy.model.template import Message
from ggufy.model.tokenizer import folder
from ggufy.model.tool_calls import said
from ggufy.recipe import recipe
from ggufy.recipe.schema import Data
from ggufy.recipe.section import template_fields
from ggufy.runs.run import Run
from ggufy.stages import calibration, provenance
from ggufy.stages.model_source import ModelSource

_CHUNK = 512
_PLAIN = (".txt", ".md")


def of_run(this: Run, limit: int) -> HeldOut:
    """The held-out conversations of a run, as tokenized for training. Raises EvalError if there are none."""
    data = this.valid("data")
    path = this.path / "data" / "eval.arrow"
    hint = "give conversations with --data FILE, or leave the losses out: --only prompts"
    if data is None and this.exists:
        raise EvalError(f"{this.path.as_posix()} has lost its training data", hint)
    if data is None or not path.is_file():
        raise EvalError(
            f"{this.path.as_posix()} has no held-out conversations, so there is nothing to measure a loss on",
            f"{hint}; to hold out N conversations, train with data.eval_size=N",
        )
    rows, total = _arrow(path, limit)
    texts = [text for text in rows if any(text.wanted)]
    if not texts:
        raise EvalError(f"{path.as_posix()}: no token in it counts, so there is nothing to measure", hint)
    return HeldOut(f"what {this.name} held out", texts, total)


def of_file(file: Path, tokenizer: Tokenizer, limit: int, *, like: Data | None = None) -> HeldOut:
    """The first conversations in a file, or a text in pieces of 512 tokens. Raises EvalError or DataError.

    `like` is how a recipe reads its data: by the same columns and prompt, where the file has them.
    """
    if not file.is_file():
        raise EvalError(f"no file {file.as_posix()}", "name conversations (.jsonl, .json, .csv, .parquet) or a .txt")
    if file.suffix.lower() in _PLAIN:
        chunks = list(_chunks(file, tokenizer))
        return HeldOut(file.name, chunks[:limit], len(chunks))
    texts: list[Text] = []
    places: list[str] = []
    total = 0
    for where, reader, row in _rows(file, tokenizer, like):
        total += 1
        if len(texts) >= limit:
            continue
        try:
            examples = tokenizer.examples(reader.read(row))
        except BadRow as problem:
            raise DataError(f"{where}: {problem}", "fix the row, or leave it out") from None
        for example in examples:
            text = Text(example.input_ids, example.labels)
            if any(text.wanted):
                texts.append(text)
                places.append(where)
    if not texts:
        raise EvalError(f"{file.as_posix()}: the assistant says nothing in it", "name a file with answers in it")
    return HeldOut(file.name, texts, total, places)


def questions(this: ModelSource, file: Path | None, limit: int) -> list[Question]:
    """What the held-out conversations, or those in a file, ask last, each with the answer that was given.

    Raises EvalError where the data that a run was trained on has changed or is gone.
    """
    tokenizer = tokenizer_of(this)
    found: list[Question] = []
    for sample in _samples(this) if file is None else _samples_of_file(file, tokenizer, data_of(this)):
        last = next((n for n in range(len(sample) - 1, -1, -1) if sample[n]["role"] == "assistant"), None)
        # A text without turns asks nothing.
        if last:
            asked = sample[:last]
            conversation, offered = (asked.shown(), asked.tools) if isinstance(asked, Conversation) else (asked, None)
            found.append(Question(str(len(found) + 1), conversation, said(sample[last]), tools=offered))
        if len(found) == limit:
            break
    if not found:
        raise EvalError(f"{this.name} has no held-out questions with answers", "give some with --data FILE")
    return found


def unread_by_base(this: ModelSource, held: HeldOut) -> str | None:
    """Why a source's base cannot read conversations: they have tokens that came with the adapter. None: it can."""
    if not this.resizes:
        return None
    rows = Checkpoint.open(this.base.path)[EMBEDDING].shape[0]
    new = min((token for text in held.texts for token in text.ids if token >= rows), default=None)
    if new is None:
        return None
    name = folder.of(this.tokenizer).names.get(new, "a token without a name")
    return f"the conversations have {name} ({new}), which came with the adapter; the base has {rows:,} tokens"


def _samples(this: ModelSource) -> Iterator[list[Message]]:
    """What a run has held out, read again from where its data came from."""
    if not this.subfolder:
        raise EvalError(f"{this.name} is not a run, so it has no held-out conversations", "give some with --data FILE")
    frozen = this.output_folder.frozen
    wanted = recipe.from_values(frozen["recipe"])
    rows = provenance.rows(wanted, frozen)
    if rows.fingerprint != frozen["data"]["fingerprint"]:
        raise EvalError(f"the data {rows.name} has changed since {this.name} was trained", "give some with --data FILE")
    _, plan = prepare.planned(rows, wanted.data, this.tokenizer, wanted.model.max_length, this.day)
    worker = Worker(plan)
    with TemporaryDirectory(prefix="ggufy-") as scratch:
        parts = prepare.splits(rows, wanted.data, Path(scratch))
        if rows.held_out is None:
            # They are counted off one after the other.
            deque(parts["train"], maxlen=0)
        for row in parts.get("eval", ()):
            try:
                sample = worker.sample(row)
            except BadRow:
                # It was left out of what was held out, too: else the training would have refused it.
                continue
            if isinstance(sample, list):
                yield sample


def _samples_of_file(file: Path, tokenizer: Tokenizer, like: Data | None) -> Iterator[list[Message]]:
    for where, reader, row in _rows(file, tokenizer, like):
        try:
            sample = reader.read(row)
        except BadRow as problem:
            raise DataError(f"{where}: {problem}", "fix the row, or leave it out") from None
        if isinstance(sample, list):
            yield sample


def data_of(this: ModelSource) -> Data | None:
    """How the recipe of a run reads its data."""
    return recipe.from_values(this.output_folder.frozen["recipe"]).data if this.subfolder else None


def tokenizer_of(this: ModelSource) -> Tokenizer:
    """The tokenizer of a model source's base, on its day."""
    data = data_of(this)
    return Tokenizer(this.tokenizer, this.day, data.train_on if data else "responses")


def _arrow(path: Path, limit: int) -> tuple[list[Text], int]:
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise MissingExtra("reading the held-out conversations", "train", "pyarrow") from None
    texts: list[Text] = []
    total = 0
    with pa.memory_map(path.as_posix()) as mapped, pa.ipc.open_stream(mapped) as stream:
        for batch in stream:
            total += batch.num_rows
            wanted = batch.slice(0, max(0, limit - len(texts)))
            for ids, labels in zip(wanted.column("input_ids"), wanted.column("labels"), strict=True):
                texts.append(Text(ids.as_py(), labels.as_py()))
    return texts, total


def _rows(file: Path, tokenizer: Tokenizer, like: Data | None) -> Iterator[tuple[str, Reader, Any]]:
    settings = Data(source=file.as_posix())
    found = source.locate(settings, offline=True)
    reader: Reader | None = None
    for where, row in found.rows():
        if reader is None:
            if like is not None and _needed(like) <= set(row if isinstance(row, dict) else ()):
                keys = {name: getattr(like, name) for name in ("format", "columns", "roles", "prompt")}
                settings = settings.model_copy(update=keys)
            reader = Reader(prepare.format_of(found, settings, settings), settings, chat=tokenizer.chat)
        yield where, reader, row


def _needed(like: Data) -> set[str]:
    """The columns that a recipe names."""
    filled = set(template_fields(like.prompt)) - {"prompt", "instruction"} if like.prompt else set()
    return {*like.columns.values(), *filled}


def _chunks(file: Path, tokenizer: Tokenizer) -> Iterator[Text]:
    """A text in pieces, each begun with the BOS where there is one; every token after the first counts."""
    ids: list[int] = []
    space = _CHUNK - (tokenizer.bos is not None)
    before = [] if tokenizer.bos is None else [tokenizer.bos]
    for piece in calibration.pieces(file):
        ids += tokenizer.plain(piece)
        while len(ids) >= space:
            chunk, ids = [*before, *ids[:space]], ids[space:]
            yield Text(chunk, chunk)
    if len(ids) > 1:
        yield Text([*before, *ids], [*before, *ids])
