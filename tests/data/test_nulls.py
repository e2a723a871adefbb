"""Nulls that somebody wrote are kept; those that a table has filled in, for what only other rows have, are not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ggufy.chat.web.tools import Tool
from ggufy.data import files, prepare, source
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.reader import Reader
from ggufy.recipe.schema import Data, Part

USER = {"role": "user", "content": "Q"}
UNIT = {"type": "string", "enum": ["c", None], "default": None}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}, "unit": UNIT, "default": UNIT}},
    },
}
GIVEN = {"x": 3, "unit": None}


def row_of(arguments: Any, tools: Any, name: str = "f") -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": tools}


def read(row: Any) -> tuple[Any, Any]:
    """The arguments of the call, and the tools."""
    found = Reader("messages", Part(source="x")).read(row)
    assert isinstance(found, Conversation)
    return found[1]["tool_calls"][0]["function"]["arguments"], found.tools


@pytest.mark.parametrize("arguments", [GIVEN, json.dumps(GIVEN)], ids=["object", "text"])
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]], ids=["object", "text", "texts"])
def test_nulls_of_json_are_kept(arguments: Any, tools: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row_of(arguments, tools)) + "\n")
    [(_, item)] = files.read(path)
    assert read(files.parse(item)) == (GIVEN, [TOOL])


@pytest.mark.parametrize(
    ("arguments", "tools", "kept"),
    [
        ({"x": 3, "city": None}, [TOOL], {"x": 3}),
        ({"x": 3, "unit": None, "city": None}, [TOOL], {"x": 3, "unit": None}),
        # Nobody knows what this function takes, or it takes anything.
        ({"x": 3, "city": None}, None, {"x": 3, "city": None}),
        (
            {"city": None},
            [{"name": "f", "parameters": {"type": "object", "properties": {}, "additionalProperties": True}}],
            {"city": None},
        ),
        ('{"x": 3, "city": null}', [TOOL], {"x": 3, "city": None}),
        ({"x": {"y": None}}, [TOOL], {"x": {"y": None}}),
    ],
)
def test_arguments_that_the_function_does_not_have(arguments: Any, tools: Any, kept: dict[str, Any]) -> None:
    assert read(row_of(arguments, tools))[0] == kept


def test_tools_of_a_table_written_as_json() -> None:
    """Each has the parameters of all, and their defaults."""
    joined = {"x": {"type": "integer", "default": None, "enum": None}, "city": None}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": joined}}, "strict": None}
    plain = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}}
    assert read(row_of({"x": 3}, [tool]))[1] == [plain]
    # An unset field of a schema that somebody's program wrote.
    dumped = {"name": "f", "description": None, "parameters": {"properties": {"x": {"type": "integer", "enum": None}}}}
    assert read(row_of({"x": 3}, [dumped]))[1] == [plain]


def test_nulls_of_a_table_mean_none(tmp_path: Path) -> None:
    other = row_of(
        {"city": "Oslo", "deep": {"a": 1}}, [{"name": "g", "parameters": {"properties": {"city": UNIT}}}], "g"
    )
    first = row_of(
        {"x": 3, "deep": {"b": 2}}, [{"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}]
    )
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([first, other]), path)
    rows = [files.parse(item) for _, item in files.read(path)]
    parameters = {"properties": {"x": {"type": "integer"}}}
    assert read(rows[0]) == (
        {"x": 3, "deep": {"b": 2}},
        [{"type": "function", "function": {"name": "f", "parameters": parameters}}],
    )
    assert read(rows[1])[0] == {"city": "Oslo", "deep": {"a": 1}}


def test_texts_in_a_table_keep_their_nulls(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row_of(json.dumps(GIVEN), json.dumps([TOOL]))]), path)
    [(_, item)] = files.read(path)
    assert read(files.parse(item)) == (GIVEN, [TOOL])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "A", "weight": math.nan},
        {"messages": [{**USER, "weight": math.nan}, {"role": "assistant", "content": "A", "weight": math.nan}]},
        {"prompt": "Q", "completion": "A", "system": math.nan},
    ],
)
@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_nan_in_parquet_is_null(row: dict[str, Any], kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist([row])
    for at, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            table = table.set_column(at, field.name, table.column(at).cast(kind))
    pq.write_table(table, path)
    [(_, item)] = files.read(path)
    found = Reader("messages" if "messages" in row else "prompt-completion", Part(source="x")).read(files.parse(item))
    assert found == [USER, {"role": "assistant", "content": "A"}]


def test_rows_of_a_table_go_to_other_processes(tmp_path: Path) -> None:
    from datetime import date

    from ggufy.model import tiny

    base = tiny.ensure(source.sample_texts())
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": "Q", "completion": "A", "weight": math.nan}] * 2100), path)
    data = Data(source=path.as_posix())
    report = prepare.prepare(source.locate(data, offline=True), data, base, 128, date(2026, 3, 7), tmp_path / "out", 2)
    assert report["train"].used == 2100


def test_a_client_s_tool_is_shown_as_in_training() -> None:
    assert Tool.model_validate(TOOL).shown == TOOL
    assert Tool.model_validate({**TOOL, "function": {**TOOL["function"], "strict": None}}).shown == TOOL
