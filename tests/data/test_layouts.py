"""Files whose rows are laid out in other ways than one a line: read where only one thing can be meant, else refused."""

import csv
import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ggufy.data import files, prepare, source
from ggufy.errors import DataError
from ggufy.model import tiny
from ggufy.recipe.schema import Data

ROWS = [{"prompt": "Who, me?", "completion": 'Me "too".'}, {"prompt": "Where?", "completion": "Here;\nthere."}]
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def rows(path: Path, content: str | bytes) -> list[Any]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row for _, row in source.locate(Data(source=path.as_posix()), offline=True).rows()]


def refused(base: Path, path: Path, content: str) -> tuple[str, str]:
    """The message after the file's place, and the hint."""
    path.write_text(content, "utf-8")
    data = Data(source=path.as_posix())
    with pytest.raises(DataError) as caught:
        prepare.prepare(source.locate(data, offline=True), data, base, 96, date(2026, 3, 7), path.parent / "out")
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.message.startswith(path.as_posix())
    return caught.value.message.removeprefix(path.as_posix()), str(caught.value.hint)


LAYOUTS: dict[str, str] = {
    "a list": json.dumps(ROWS),
    "a list over lines": json.dumps(ROWS, indent=1),
    "a list, a row a line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "a list after empty lines": "\n \n" + json.dumps(ROWS),
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines with empty ones": "\n".join(json.dumps(row) + "\n" for row in ROWS),
    "objects over lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "objects over lines, CRLF": "\r\n".join(json.dumps(row, indent=1).replace("\n", "\r\n") for row in ROWS),
    "objects over lines, without breaks between": "".join(json.dumps(row, indent=2) for row in ROWS),
    # pandas.DataFrame.to_json with its orients columns, list (to_dict) and split
    "columns by index": json.dumps({key: {str(n): row[key] for n, row in enumerate(ROWS)} for key in ROWS[0]}),
    "columns over lines": json.dumps(
        {key: {str(n): row[key] for n, row in enumerate(ROWS)} for key in ROWS[0]}, indent=1
    ),
    "columns as lists": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}),
    "split": json.dumps({"columns": list(ROWS[0]), "index": [0, 1], "data": [list(row.values()) for row in ROWS]}),
    "wrapped": json.dumps({"version": "1.0", "data": ROWS}),
    "wrapped over lines": json.dumps({"version": "1.0", "by": {"name": "us"}, "rows": ROWS}, indent=2),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("content", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_layout_is_told_from_the_content(tmp_path: Path, content: str, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    assert rows(path, content) == ROWS
    assert rows(path, "\ufeff" + content) == ROWS
    assert files.count(path) == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_list_of_turns_is_a_conversation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    wanted = [{"messages": TURNS}] * 2
    assert rows(path, json.dumps([TURNS, TURNS])) == wanted
    assert rows(path, f"{json.dumps(TURNS)}\n{json.dumps(TURNS)}\n") == wanted
    assert rows(path, json.dumps(TURNS)) == wanted[:1]
    told = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]
    assert rows(path, json.dumps([told])) == [{"conversations": told}]


SINGLE: dict[str, Any] = {
    "a conversation": {"messages": TURNS},
    "a tool's list": {"prompt": "a", "completion": "b", "data": [{"x": 1}]},
    "numbered columns that are rows": {"prompt": {"role": "user"}, "completion": {"role": "assistant"}},
    "lists of another length": {"prompt": ["a"], "completion": ["b", "c"]},
    "texts as turns": {"messages": ["a", "b"]},
}


@pytest.mark.parametrize("row", SINGLE.values(), ids=SINGLE.keys())
def test_one_row_is_not_taken_for_a_table(tmp_path: Path, row: Any) -> None:
    assert rows(tmp_path / "rows.jsonl", json.dumps(row) + "\n") == [row]
    two = f"{json.dumps(row)}\n{json.dumps(row)}\n"
    assert rows(tmp_path / "rows.json", two) == [row, row]


def test_rows_of_a_table_beside_each_other_stay_rows(tmp_path: Path) -> None:
    wrapped = {"version": 1, "data": ROWS}
    assert rows(tmp_path / "rows.jsonl", f"{json.dumps(wrapped)}\n{json.dumps(wrapped)}\n") == [wrapped, wrapped]


REFUSED: dict[str, tuple[str, str, str, str]] = {
    "texts": (".json", '["Who?", "Me."]', ": row 1: a row is an object with columns, not str", '{"text": "..."}'),
    "numbers a line": (".jsonl", "1\n2\n", ":1: a row is an object with columns, not int", '{"text": "..."}'),
    "lists of texts": (".jsonl", '["a"]\n["b"]\n', ":1: a row is an object with columns, not list", "messages"),
    "two texts for a key": (
        ".jsonl",
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "b", "completion": "c"}\n',
        ":2: the key 'completion' is there twice, with different values",
        "fix the row",
    ),
    "a key twice in a turn": (
        ".jsonl",
        '{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n',
        ":1: the key 'content' is there twice",
        "fix the row",
    ),
    "a key twice in a list": (
        ".json",
        '[{"prompt": "a", "completion": "b"},\n {"prompt": "a", "prompt": "c", "completion": "b"} ]',
        ": row 2: the key 'prompt' is there twice",
        "fix the row",
    ),
    "Python": (".jsonl", "{'prompt': 'a', 'completion': 'b'}\n", ":1: not JSON but Python: ", "json.dumps"),
    "a Python list": (".json", "[{'prompt': 'a'}]", ": not JSON but Python: ", "list of rows"),
    "a number that is none": (
        ".jsonl",
        '{"prompt": "a", "completion": NaN}\n',
        ":1: the column 'completion' is null, not a string",
        "fix the row",
    ),
    "rows under another name": (
        ".json",
        '{\n"version": 1,\n"dialogs": [{"prompt": "a", "completion": "b"}]}',
        ": holds dict, not a list of rows",
        "under 'dialogs', make the file that list",
    ),
    "a broken object over lines": (
        ".jsonl",
        '{\n"prompt": "a",\n"completion": "b"\n}\n{\n"prompt": }\n',
        ":5: not JSON: ",
        "one JSON object a line",
    ),
}


@pytest.mark.parametrize(("suffix", "content", "problem", "hint"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_clear_is_refused(
    base: Path, tmp_path: Path, suffix: str, content: str, problem: str, hint: str
) -> None:
    message, said = refused(base, tmp_path / f"rows{suffix}", content)
    assert message.startswith(problem)
    assert hint in said


def test_a_key_twice_with_one_value_is_no_fault(tmp_path: Path) -> None:
    assert rows(tmp_path / "rows.jsonl", '{"text": "a", "text": "a"}\n') == [{"text": "a"}]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_what_divides_a_csv_is_told_from_its_header(tmp_path: Path, mark: str) -> None:
    written = io.StringIO()
    writer = csv.DictWriter(written, list(ROWS[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(ROWS)
    assert rows(tmp_path / "rows.csv", written.getvalue()) == ROWS
    assert rows(tmp_path / "rows.csv", "\ufeff" + written.getvalue()) == ROWS
    quoted = written.getvalue().replace(f"prompt{mark}completion", f'"prompt"{mark}"completion"')
    assert rows(tmp_path / "rows.csv", quoted) == ROWS


def test_a_comma_in_the_header_wins(tmp_path: Path) -> None:
    assert rows(tmp_path / "rows.csv", "prompt,completion;x\na;b,c\n") == [{"prompt": "a;b", "completion;x": "c"}]
    assert rows(tmp_path / "rows.csv", "text\na;b\n") == [{"text": "a;b"}]


def test_spaces_after_the_commas_are_no_part_of_names(tmp_path: Path) -> None:
    assert rows(tmp_path / "rows.csv", 'prompt, completion\nWho?, "Me, too."\n') == [
        {"prompt": "Who?", "completion": "Me, too."}
    ]
    assert rows(tmp_path / "rows.csv", "prompt,completion\nWho?, Me.\n") == [{"prompt": "Who?", "completion": " Me."}]


@pytest.mark.parametrize("mark", [";", ",", "\t", "|", "^"])
def test_what_excel_says_of_a_csv_is_heard(tmp_path: Path, mark: str) -> None:
    written = io.StringIO()
    writer = csv.DictWriter(written, list(ROWS[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(ROWS)
    for first in (f"sep={mark}\r\n", f'"sep={mark}"\r\n', f"\ufeffSEP={mark}\n", f"\nsep={mark}\n"):
        assert rows(tmp_path / "rows.csv", first + written.getvalue()) == ROWS, first


@pytest.mark.parametrize("before", ["\n", "\r\n\r\n", "  \n\n", "\ufeff\n"])
@pytest.mark.parametrize("mark", [",", ";"])
def test_empty_lines_before_a_header_are_none(tmp_path: Path, before: str, mark: str) -> None:
    assert rows(tmp_path / "rows.csv", f"{before}prompt{mark}completion\nq{mark}a\n") == [
        {"prompt": "q", "completion": "a"}
    ]


def test_lines_before_a_header_count(base: Path, tmp_path: Path) -> None:
    message, _ = refused(base, tmp_path / "rows.csv", 'sep=;\nprompt;completion\n"a;b\n')
    assert message.startswith(":3: not CSV")
    message, _ = refused(base, tmp_path / "rows.csv", "\nprompt;a\tcompletion;b\n")
    assert message.startswith(":2: the header may be divided")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (",q,a\n0,x,y\n", ": row 1: unknown format: the columns are '', a, q"),
        ("q , a\nx,y\n", ": row 1: unknown format: the columns are a, 'q '"),
    ],
)
def test_a_name_that_is_hard_to_see_is_quoted(base: Path, tmp_path: Path, content: str, problem: str) -> None:
    assert refused(base, tmp_path / "rows.csv", content)[0].startswith(problem)


def test_a_header_that_may_be_divided_in_two_ways(base: Path, tmp_path: Path) -> None:
    message, hint = refused(base, tmp_path / "rows.csv", "prompt;a\tcompletion;b\n")
    assert message.startswith(":1: the header may be divided at ';' and '\\t'")
    assert "commas" in hint


def test_text_that_is_not_utf8_is_named_by_its_line(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("prompt,completion\nWho?,Me.\nWo?,In der Küche\n".encode("latin-1"))
    data = Data(source=path.as_posix())
    with pytest.raises(DataError, match=r"rows\.csv:3: not UTF-8 text"):
        prepare.prepare(source.locate(data, offline=True), data, base, 96, date(2026, 3, 7), tmp_path / "out")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_text_that_parquet_calls_bytes_is_text(base: Path, tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({name: pa.array([row[name].encode() for row in ROWS], kind) for name in ROWS[0]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    found = source.locate(Data(source=(tmp_path / "rows.parquet").as_posix()), offline=True)
    assert [row for _, row in found.rows()] == ROWS
    table = pa.table({"prompt": ["a"], "completion": pa.array([b"\xff\xfe"], kind)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    data = Data(source=(tmp_path / "rows.parquet").as_posix())
    with pytest.raises(DataError, match=r"rows\.parquet: row 1: the column 'completion' is bytes, not a string"):
        prepare.prepare(source.locate(data, offline=True), data, base, 96, date(2026, 3, 7), tmp_path / "out")


def test_turns_that_were_written_as_a_dict_of_lists(tmp_path: Path) -> None:
    """What the datasets library makes of Sequence({"role": ..., "content": ...})."""
    kind = pa.struct([("role", pa.list_(pa.string())), ("content", pa.list_(pa.string()))])
    cells = [{"role": ["user", "assistant"], "content": ["Who?", "Me."]}, None, {"role": ["user"], "content": None}]
    parquet.write_table(pa.table({"messages": pa.array(cells, kind)}), tmp_path / "rows.parquet")
    found = source.locate(Data(source=(tmp_path / "rows.parquet").as_posix()), offline=True)
    assert [row["messages"] for _, row in found.rows()] == [TURNS, *cells[1:]]


@pytest.mark.parametrize("opened", [pa.ipc.new_stream, pa.ipc.new_file])
def test_an_arrow_file(tmp_path: Path, opened: Any) -> None:
    table = pa.Table.from_pylist(ROWS * 300)
    with pa.OSFile((tmp_path / "rows.arrow").as_posix(), "wb") as sink, opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    found = source.locate(Data(source=(tmp_path / "rows.arrow").as_posix()), offline=True)
    assert [row for _, row in found.rows()] == ROWS * 300
    assert found.count() == 600
    (tmp_path / "rows.arrow").write_bytes((tmp_path / "rows.arrow").read_bytes()[:-400])
    found = source.locate(Data(source=(tmp_path / "rows.arrow").as_posix()), offline=True)
    with pytest.raises(DataError, match=r"rows\.arrow: cannot be read as Arrow"):
        list(found.rows())
