"""What is pushed as a data set is what the recipe trains on: tools, calls, reasoning and weights too."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import pytest
from pyarrow import parquet

from ggufy.data import prepare, source
from ggufy.data.publish import publish
from ggufy.model import tiny
from ggufy.recipe.schema import Data

DAY = date(2026, 3, 7)
QWEN = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates/Qwen-Qwen3-0.6B.jinja"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city.", "parameters": PARAMETERS},
}
ASK = {"role": "user", "content": "Weather in Oslo?"}
CLEAR = {"role": "assistant", "content": "Clear."}
ROWS: list[dict[str, Any]] = [
    {"messages": [ASK, CLEAR]},
    {
        "messages": [
            ASK,
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "Look it up.",
                "tool_calls": [
                    {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": arguments}}
                    for arguments in ({"city": "Oslo", "days": 2}, {"city": "Oslo"})
                ],
            },
            {"role": "tool", "name": "weather", "content": '{"sky": "clear"}', "tool_call_id": "call00001"},
            CLEAR,
        ],
        "tools": [WEATHER],
    },
    {"messages": [ASK, {"role": "assistant", "content": "Rain.", "weight": 0}, ASK, CLEAR]},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, asked by a template with a place for tools, calls and reasoning, with its own end."""
    folder = Path(shutil.copytree(tiny.ensure(source.sample_texts()), tmp_path_factory.mktemp("qwen") / "base"))
    (folder / "chat_template.jinja").write_text(QWEN.read_text("utf-8").replace("<|im_end|>", "<|eot_id|>"), "utf-8")
    return folder


def prepared(path: Path, base: Path, out: Path) -> bytes:
    data = Data(source=path.as_posix())
    prepare.prepare(source.locate(data, offline=True), data, base, 2048, DAY, out)
    return (out / "train.arrow").read_bytes()


@pytest.mark.parametrize("chosen", [[0], [0, 1, 2], [1, 2, 0], [2]])
def test_the_pushed_rows_train_as_the_recipe_does(chosen: list[int], base: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROWS[number]) + "\n" for number in chosen))
    (tmp_path / "held.jsonl").write_text(json.dumps({"messages": [{**ASK, "content": "And now?"}, CLEAR]}) + "\n")
    data = Data(source=path.as_posix(), eval_source=(tmp_path / "held.jsonl").as_posix())
    checked: list[str] = []
    made = publish(
        source.locate(data, offline=True), data, base, 2048, DAY, tmp_path / "set", lambda _, text: checked.append(text)
    )
    assert made.rows == {"train": len(chosen), "validation": 1}
    assert any("Look it up." in text and "days" in text for text in checked) is (1 in chosen)
    ours = prepared(path, base, tmp_path / "ours")
    assert prepared(made.files["train"][0], base, tmp_path / "theirs") == ours
    # Both splits have the same columns, which the datasets library insists on.
    files = {split: [one.as_posix() for one in paths] for split, paths in made.files.items()}
    both = datasets.load_dataset("parquet", data_files=files, cache_dir=(tmp_path / "cache").as_posix())
    assert both["train"].features == both["validation"].features
    schema = parquet.read_schema(made.files["train"][0])
    assert ("tools" in schema.names) is (1 in chosen)
    keys = {field.name for field in schema.field("messages").type.value_type}
    wanted = {"role", "content"} | ({"weight"} if 2 in chosen else set())
    wanted |= {"tool_calls", "tool_call_id", "name", "reasoning_content"} if 1 in chosen else set()
    assert keys == wanted


def test_files_that_were_written_before_a_row_with_tools_get_its_columns(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggufy.data.publish._GROUP", 2)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROWS[number]) + "\n" for number in (0, 0, 0, 1, 2, 0)))
    data = Data(source=path.as_posix())
    made = publish(source.locate(data, offline=True), data, base, 2048, DAY, tmp_path / "set", lambda *_: None)
    schemas = {str(parquet.read_schema(one)) for one in made.files["train"]}
    assert len(made.files["train"]) > 1
    assert len(schemas) == 1
    assert prepared(tmp_path / "set/data", base, tmp_path / "theirs") == prepared(path, base, tmp_path / "ours")
