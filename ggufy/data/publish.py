"""Write the prepared rows as a data set for the Hub: Parquet files of text, not of token ids.

They are the rows that a training would see, in its order: selected, mixed, shuffled, with the prompts made and cut as
the recipe says, and without those that are unusable. Trained on with the same settings they give the same token ids.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ggufy.data import prepare
from ggufy.data.counts import Counts
from ggufy.data.mix import Row
from ggufy.data.rows.conversation import UNTRAINED, Plain, Sample
from ggufy.data.source import Source
from ggufy.data.work import Result, Worker
from ggufy.errors import DataError, MissingExtra
from ggufy.model.template import Message
from ggufy.recipe.schema import Data

# By the names that others expect.
SPLITS = {"train": "train", "eval": "validation"}
_GROUP = 5_000
# A file that is this large is followed by another.
_LARGE = 400_000_000


@dataclass
class Published:
    """What was written."""

    columns: str = ""
    """messages, prompt-completion or text."""
    files: dict[str, list[Path]] = field(default_factory=dict)
    """By split."""
    rows: dict[str, int] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    """What some row has beside the role and the content of its turns."""
    counts: dict[str, Counts] = field(default_factory=dict)


def publish(
    source: Source,
    data: Data,
    base: Path,
    max_length: int,
    day: date,
    out: Path,
    check: Callable[[str, str], None],
) -> Published:
    """Write the splits below `out`/data. `check` is told where each row is from, and its text, before it is written."""
    stage, splits = prepare.opened(source, data, base, max_length, day, out)
    made = Published()
    worker = Worker(stage.plan)
    for split, rows in splits.items():
        # The rows that are under way; their results come back in this order.
        waiting: deque[Row] = deque()
        write = partial(_write, made, stage, worker, waiting, out / "data", SPLITS[split], check)
        made.counts[SPLITS[split]] = stage.split(split, _noted(rows, waiting), write)
    # All files of a data set have the same columns.
    for path in (path for paths in made.files.values() for path in paths):
        _widen(path, made.keys)
    return made


def _noted(rows: Iterator[Row], waiting: deque[Row]) -> Iterator[Row]:
    for row in rows:
        waiting.append(row)
        yield row


def _write(
    made: Published,
    stage: prepare.Stage,
    worker: Worker,
    waiting: deque[Row],
    folder: Path,
    split: str,
    check: Callable[[str, str], None],
    results: Iterator[Result],
) -> None:
    def kept() -> Iterator[dict[str, Any]]:
        for result in results:
            for outcome in result.outcomes:
                row = waiting.popleft()
                if outcome.examples:
                    columns, values = _values(worker.sample(row))
                    made.keys |= _keys(values)
                    where = stage.place(outcome)
                    if made.columns not in ("", columns):
                        raise DataError(
                            f"{where}: this row is of the kind {columns}, but the rows before it are {made.columns}",
                            "a data set holds only one kind of row: make a recipe for each kind",
                        )
                    made.columns = columns
                    check(where, json.dumps(values, ensure_ascii=False))
                    yield values

    made.files[split], made.rows[split] = _parquet(folder, split, made.keys, kept())


def _values(sample: Sample) -> tuple[str, dict[str, Any]]:
    if not isinstance(sample, Plain):
        tools = getattr(sample, "tools", None)
        listed = {"tools": json.dumps(tools, ensure_ascii=False)} if tools else {}
        return "messages", {"messages": [_turn(message) for message in sample], **listed}
    if not sample.prompt:
        return "text", {"text": sample.completion}
    return "prompt-completion", {"prompt": sample.prompt, "completion": sample.completion}


def _turn(message: Message) -> dict[str, Any]:
    """A turn as OpenAI's API has it: in a table the arguments of a call, which differ from tool to tool, are JSON."""
    turn = {key: value for key, value in message.items() if key != UNTRAINED}
    if UNTRAINED in message:
        turn["weight"] = 0
    if calls := turn.get("tool_calls"):
        turn["tool_calls"] = [
            {
                **call,
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                },
            }
            for call in calls
        ]
    return turn


def _keys(values: dict[str, Any]) -> set[str]:
    found = {key for message in values.get("messages", ()) for key in message}
    return (found | values.keys()) - {"role", "content", "messages", "prompt", "completion", "text"}


def _schema(columns: Iterable[str], keys: set[str]) -> Any:
    """The columns of a table, of which turns have these keys beside role and content."""
    import pyarrow as pa

    text = pa.string()
    call = pa.struct([("id", text), ("type", text), ("function", pa.struct([("name", text), ("arguments", text)]))])
    more = {
        "reasoning_content": text,
        "tool_calls": pa.list_(call),
        "tool_call_id": text,
        "name": text,
        "weight": pa.int64(),
    }
    if unknown := keys - more.keys() - {"tools"}:
        raise AssertionError(f"a turn has {', '.join(sorted(unknown))}")
    turn = pa.struct([("role", text), ("content", text), *((key, kind) for key, kind in more.items() if key in keys)])
    names = dict.fromkeys([*columns, *(["tools"] if "tools" in keys else [])])
    return pa.schema([(name, pa.list_(turn) if name == "messages" else text) for name in names])


def _widen(path: Path, keys: set[str]) -> None:
    """Write a file again, with the columns that only rows elsewhere in the data set need."""
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        schema = _schema(file.schema_arrow.names, keys)
        if file.schema_arrow.equals(schema):
            return
        wider = path.with_suffix(".wider")
        with parquet.ParquetWriter(wider, schema, compression="zstd") as writer:
            for group in range(file.num_row_groups):
                writer.write_table(pa.Table.from_pylist(file.read_row_group(group).to_pylist(), schema=schema))
    wider.replace(path)


def _parquet(folder: Path, split: str, keys: set[str], rows: Iterator[dict[str, Any]]) -> tuple[list[Path], int]:
    """The rows in files named as the `datasets` library names them, and how many there were.

    `keys` are those that turns have beside role and content, in the rows so far.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtra("writing Parquet files", "train", "pyarrow") from None
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    schema: Any = None
    total, writer = 0, None
    try:
        while group := list(islice(rows, _GROUP)):
            columns = group[0].keys()
            if writer is not None and not schema.equals(_schema(columns, keys)):
                writer.close()
                writer = None
            if writer is None:
                schema = _schema(columns, keys)
                parts.append(folder / f"{split}-{len(parts):05d}.part")
                writer = parquet.ParquetWriter(parts[-1], schema, compression="zstd")
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            total += len(group)
            if parts[-1].stat().st_size >= _LARGE:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    files = []
    for number, part in enumerate(parts):
        files.append(part.replace(folder / f"{split}-{number:05d}-of-{len(parts):05d}.parquet"))
    return files, total
