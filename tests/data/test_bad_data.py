"""Bad data: one line with the row, or a counted and named skip where the recipe allows one."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ggufy.data import prepare, source
from ggufy.data.counts import Counts
from ggufy.errors import DataError
from ggufy.model import tiny
from ggufy.recipe.schema import Data

DAY = date(2026, 3, 7)


def chat(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


GOOD = chat(("user", "a?"), ("assistant", "b."))


def lines(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def parquet_bytes(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def made(base: Path, folder: Path, name: str, content: bytes, **settings: Any) -> Counts:
    (folder / name).write_bytes(content)
    data = Data.model_validate({"source": (folder / name).as_posix(), **settings})
    return prepare.prepare(source.locate(data, offline=True), data, base, 128, DAY, folder / "out")["train"]


ROWS: dict[str, tuple[Any, str]] = {
    "empty turn": (chat(("user", "a?"), ("assistant", "  \n")), "turn 2 is empty"),
    "no turns": (chat(), "no turns"),
    "null turns": ({"messages": None}, "no turns"),
    "null content": (
        chat(("user", None), ("assistant", "b.")),
        "turn 1 is null, not a string, under its key 'content'",
    ),
    "a number as content": (
        chat(("user", "a?"), ("assistant", 7)),
        "turn 2 is int, not a string, under its key 'content'",
    ),
    "no column set": (
        {"messages": None, "prompt": "a?", "completion": None},
        "no turns: the column 'messages' is null",
    ),
    "system in two columns": (
        {"system": "S", "system_prompt": "T", "messages": chat(("user", "a?"), ("assistant", "b."))["messages"]},
        "the columns 'system' and 'system_prompt' differ: which one holds is not said",
    ),
    "system in a turn and a column": (
        {"system": "S", **chat(("system", "T"), ("user", "a?"), ("assistant", "b."))},
        "a system turn and a system column that differ",
    ),
    "number as content": (chat(("user", "a?"), ("assistant", 7)), "turn 2 is int, not a string"),
    "unknown role": (chat(("user", "a?"), ("robot", "b.")), "turn 2: unknown role 'robot'; known are system"),
    "assistant first": (chat(("assistant", "b."), ("user", "a?")), "the assistant speaks first"),
    "only a system turn": (chat(("system", "Be kind.")), "the assistant says nothing"),
    "late system turn": (chat(("user", "a?"), ("assistant", "b."), ("system", "c")), "turn 3: a system turn can only"),
    "two in a row": (chat(("user", "a?"), ("user", "b?"), ("assistant", "c.")), "turn 2: two user turns in a row"),
    "role marker": (chat(("user", "<|start_header_id|>system"), ("assistant", "b.")), "turn 1 contains the special"),
    "marker in an answer": (chat(("user", "a?"), ("assistant", "b.<|eot_id|>")), "turn 2 contains the special token"),
    "other format": ({"question": "a?", "note": "b."}, "no column 'messages', unlike the first row"),
    "column of another type": ({"messages": "a? b."}, "turns are a list, not str"),
    "turn of another type": ({"messages": ["a?", "b."]}, "turn 1 has no 'role' and 'content'"),
    "row that is a list": ([GOOD], "a row is an object with columns, not list"),
    "row that is null": (b"null\n", "a row is an object with columns, not NoneType"),
    "half a surrogate pair": (
        b'{"messages": [{"role": "user", "content": "\\ud83c"}]}\n',
        "turn 1 holds half a surrogate pair",
    ),
    "not JSON": (b'{"messages": [\n', "not JSON: "),
    "deep JSON": (b"[" * 100_000 + b"\n", "not JSON: "),
    "not UTF-8": (json.dumps(GOOD).encode().replace(b"a?", b"a\xff") + b"\n", "not UTF-8 text: "),
    "binary": (b"\x89PNG\r\x00\x1a\n", "not UTF-8 text: "),
    "repeated id": (chat(("user", "c?"), ("assistant", "d."), id="one"), "its id was used in an earlier row"),
}


@pytest.mark.parametrize(("row", "problem"), ROWS.values(), ids=ROWS.keys())
def test_a_bad_row(base: Path, tmp_path: Path, row: Any, problem: str) -> None:
    content = lines({**GOOD, "id": "one"}, row, {**GOOD, "id": "two"})
    with pytest.raises(DataError) as caught:
        made(base, tmp_path, "rows.jsonl", content)
    where = f"{(tmp_path / 'rows.jsonl').as_posix()}:2: "
    assert caught.value.message.startswith(where + problem)
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.hint
    counts = made(base, tmp_path, "rows.jsonl", content, on_bad_row="skip")
    assert (counts.rows, counts.kept, counts.skipped_bad) == (3, 2, 1)
    assert f"1 unusable and skipped (first: {where}{problem}" in counts.text()


FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("rows.jsonl", b"", "the data set is empty"),
    "blank": ("rows.jsonl", b"\n \n\r\n", "the data set is empty"),
    "empty list": ("rows.json", b"[]", "the data set is empty"),
    "empty JSON": ("rows.json", b"", "not JSON: "),
    "empty CSV": ("rows.csv", b"", "the data set is empty"),
    "only a header": ("rows.csv", b"prompt,completion\n", "the data set is empty"),
    "empty Parquet": ("rows.parquet", b"", "cannot be read as Parquet"),
    "Parquet without rows": ("rows.parquet", parquet_bytes([], pa.schema([("text", pa.string())])), "is empty"),
    "truncated Parquet": ("rows.parquet", parquet_bytes([GOOD] * 99)[:-20], "cannot be read as Parquet"),
    "damaged Parquet": ("rows.parquet", parquet_bytes([GOOD] * 99).replace(b"PAR1", b"PAR2"), "read as Parquet"),
    "JSON that is no list": ("rows.json", b'{"messages":\n []}', "holds dict, not a list of rows"),
    "UTF-16": ("rows.jsonl", lines(GOOD).decode().encode("utf-16"), "is UTF-16 text, not UTF-8"),
    "UTF-16 without a BOM": ("rows.jsonl", lines(GOOD).decode().encode("utf-16-le"), "is UTF-16 text"),
    "UTF-16 CSV": ("rows.csv", "prompt,completion\na,b\n".encode("utf-16"), "is UTF-16 text"),
    "UTF-16 JSON": ("rows.json", json.dumps([GOOD]).encode("utf-16"), "is UTF-16 text"),
    "Latin-1 CSV": ("rows.csv", "prompt,completion\ncaf\xe9,b\n".encode("latin-1"), "not UTF-8 text"),
    "CSV with an open quote": ("rows.csv", b'prompt,completion\n"a,b\n', "rows.csv:2: not CSV: "),
    "CSV with a column twice": ("rows.csv", b"text,text\na,b\n", "two columns are named 'text'"),
    "ragged CSV": ("rows.csv", b"prompt,completion\na,b,c\n", "rows.csv: row 1: 3 fields, but 2 columns"),
    "unknown columns": ("rows.csv", b"q,a\nx,y\n", "rows.csv: row 1: unknown format: the columns are a, q"),
    "wrong type": (
        "rows.parquet",
        parquet_bytes([{"prompt": 1, "completion": 2}]),
        "rows.parquet: row 1: the column 'prompt' is int, not a string",
    ),
    "unknown kind": ("rows.xlsx", b"PK", "only .jsonl, .json, .parquet, .csv files can be read"),
}


@pytest.mark.parametrize(("name", "content", "problem"), FILES.values(), ids=FILES.keys())
def test_a_bad_file(base: Path, tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        made(base, tmp_path, name, content)
    assert problem in caught.value.message
    assert (tmp_path / name).as_posix() in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.hint


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(base: Path, tmp_path: Path, name: str) -> None:
    row = {"prompt": "a?", "completion": "b."}
    text = {"rows.jsonl": json.dumps(row), "rows.json": json.dumps([row]), "rows.csv": "prompt,completion\na?,b.\n"}
    made(base, tmp_path, name, text[name].encode())
    plain = (tmp_path / "out" / "train.arrow").read_bytes()
    made(base, tmp_path, name, text[name].encode("utf-8-sig"))
    assert (tmp_path / "out" / "train.arrow").read_bytes() == plain


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_a_turn_of_a_megabyte(base: Path, tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "a?", "completion": "b."}, {"prompt": "a?", "completion": "word " * 200_000}]
    csv = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows)
    content = {"rows.jsonl": lines(*rows), "rows.csv": csv.encode(), "rows.parquet": parquet_bytes(rows)}[name]
    counts = made(base, tmp_path, name, content)
    assert (counts.kept, counts.truncated, counts.longest) == (2, 1, 128)
    where = f"{(tmp_path / name).as_posix()}:{'' if name.endswith('jsonl') else ' row '}2"
    tokens = max(counts.lengths)
    assert tokens > 200_000
    assert f"1 truncated (1 by more than nine tenths; the longest: {where}, {tokens:,} tokens)" in counts.text()
    assert made(base, tmp_path, name, content, overflow="drop").dropped_long == 1
    with pytest.raises(DataError, match=r"rows.*2: [\d,]+ tokens, but model\.max_length is 128"):
        made(base, tmp_path, name, content, overflow="refuse")


def test_the_first_row_may_be_bad_where_bad_rows_are_skipped(base: Path, tmp_path: Path) -> None:
    counts = made(base, tmp_path, "rows.jsonl", lines(b"oops\n", {"zeta": 1}, GOOD), on_bad_row="skip")
    assert (counts.kept, counts.skipped_bad) == (1, 2)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: not JSON"):
        made(base, tmp_path, "rows.jsonl", lines(b"oops\n", GOOD))


def test_nothing_usable_is_an_error_also_where_rows_are_skipped(base: Path, tmp_path: Path) -> None:
    bad = chat(("user", "a?"), ("assistant", ""))
    with pytest.raises(DataError, match=r"none of the 2 train rows can be used: .*2 unusable and skipped"):
        made(base, tmp_path, "rows.jsonl", lines(bad, bad), on_bad_row="skip")


def test_ids_may_repeat_where_they_mean_nothing(base: Path, tmp_path: Path) -> None:
    row = {**GOOD, "id": 0}
    with pytest.raises(DataError, match=r"rows\.jsonl:2: its id was used") as caught:
        made(base, tmp_path, "rows.jsonl", lines(row, row))
    assert "data.unique_ids=false" in str(caught.value.hint)
    assert made(base, tmp_path, "rows.jsonl", lines(row, row), unique_ids=False).kept == 2
    none = {**GOOD, "id": None}
    assert made(base, tmp_path, "rows.jsonl", lines(none, none)).kept == 2


def test_nothing_held_out_is_left(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows left to hold out"):
        made(base, tmp_path, "rows.jsonl", lines(GOOD), train_size=1, eval_size=1)


CASES = {
    "truncated Parquet": ("rows.parquet", parquet_bytes([GOOD] * 9)[:-9], [], ["rows.parquet", "Parquet"]),
    "role marker": ("rows.jsonl", lines(chat(("user", "<|eot_id|>"), ("assistant", "b"))), [], ["rows.jsonl:1"]),
    "another format": (
        "rows.jsonl",
        lines(GOOD),
        ["data.format=alpaca"],
        ["rows.jsonl:1: not in the format alpaca, which needs 'instruction' and 'output': the columns are messages"],
    ),
    "missing split": ("rows.jsonl", lines(GOOD), ["data.split=validation"], ["no split 'validation'"]),
    "no split": ("rows.jsonl", lines(GOOD), ["data.split=train[a]"], ["'train[a]' is not a split"]),
    "unknown field": ("rows.jsonl", lines(GOOD), ['data.prompt="{zeta} x"'], ["rows.jsonl:1", "{zeta}", "messages"]),
    "bad template": ("rows.jsonl", lines(GOOD), ["data.prompt=x"], ["data.prompt", "names no column"]),
}


@pytest.mark.parametrize(("name", "content", "settings", "naming"), CASES.values(), ids=CASES.keys())
def test_the_command_says_it(
    fails: Callable[..., str], tmp_path: Path, name: str, content: bytes, settings: list[str], naming: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    values = [f"data.source={name}", "data.train_size=null", *settings]
    fails(
        "data", "--recipe", "tiny", *(w for v in values for w in ("--set", v)), cwd=tmp_path, naming=naming, works=True
    )


def test_the_command_counts_what_it_skips(run: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(GOOD, chat(("user", "a?"), ("assistant", "")), GOOD))
    settings = ["data.source=rows.jsonl", "data.train_size=null", "data.on_bad_row=skip"]
    done = run("data", "--recipe", "tiny", *(w for v in settings for w in ("--set", v)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 unusable and skipped (first: rows.jsonl:2: turn 2 is empty)" in done.stdout
