"""Rows that are held out and trained on too, shares that are held out, and rows with nothing to predict."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import datasets
import pyarrow as pa
import pytest

from ggufy.data import prepare, source
from ggufy.data.counts import Counts
from ggufy.data.rows.conversation import Plain
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.errors import DataError, RecipeError
from ggufy.recipe import recipe
from ggufy.recipe.schema import Data
from ggufy.stages import provenance
from tests.data.test_sources import Told, base, numbers, pairs, told, write

__all__ = ["base", "told"]

DAY = date(2026, 3, 7)


def made(base: Path, out: Path, processes: int = 1, max_length: int = 64, **settings: Any) -> dict[str, Counts]:
    data = Data.model_validate(settings)
    return prepare.prepare(source.locate(data, offline=True), data, base, max_length, DAY, out, processes)


SHARED = [
    ({"split": "train[:10]", "eval_split": "train[5:15]"}, "5 of the 10 held-out rows are trained on"),
    ({"split": "train[:50%]", "eval_split": "train[40%:]"}, "2 of the 12 held-out rows"),
    ({"eval_split": "train"}, "20 of the 20 held-out rows"),
    ({"eval_split": "train[-1:]"}, "1 of the 1 held-out rows"),
    ({"split": "train[:8]+train[12:]", "eval_split": "train[10:14]"}, "2 of the 4 held-out rows"),
    ({"train_size": 10, "eval_split": "train[9:]"}, "1 of the 11 held-out rows"),
    ({"split": "train[10:]", "eval_split": "train[5:15]", "eval_size": 6}, "1 of the 6 held-out rows"),
    ({"train_size": 18, "shuffle_seed": 1, "eval_split": "train[10:]"}, "at least 8 of the 10 held-out rows"),
]
APART: list[dict[str, Any]] = [
    {"split": "train[:10]", "eval_split": "train[10:]"},
    {"split": "train[:50%]", "eval_split": "train[50%:]"},
    {"split": "train[:8]+train[12:]", "eval_split": "train[8:12]"},
    {"train_size": 10, "eval_split": "train[10:]"},
    {"split": "train[10:]", "eval_split": "train[5:15]", "eval_size": 5},
    {"train_size": 9, "eval_size": 11},
    {"eval_size": "25%", "shuffle_seed": 2},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
@pytest.mark.parametrize(("settings", "said"), SHARED)
def test_splits_that_share_rows_are_refused(
    base: Path, tmp_path: Path, kind: str, settings: dict[str, Any], said: str
) -> None:
    if kind == "folder":
        for name, start, stop in (("a", 0, 7), ("b", 7, 13), ("c", 13, 20)):
            write(tmp_path / "set" / f"{name}.jsonl", pairs(start, stop))
    file = tmp_path / "set" if kind == "folder" else Path(write(tmp_path / f"rows.{kind}", pairs(0, 20)))
    with pytest.raises(DataError) as caught:
        made(base, tmp_path / "out", source=file.as_posix(), **settings)
    assert caught.value.message.startswith(f"{file.as_posix()}: {said}")
    assert settings["eval_split"] in caught.value.message
    assert "share no row" in str(caught.value.hint)


@pytest.mark.parametrize("settings", APART)
def test_splits_that_share_no_row_are_not(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    counts = made(base, tmp_path / "out", source=write(tmp_path / "rows.jsonl", pairs(0, 20)), **settings)
    assert counts["eval"].used
    assert counts["eval"].trained_on_too == counts["train"].repeated == 0
    assert "trained on too" not in counts["eval"].text()
    assert "trained_on_too" not in (tmp_path / "out" / "report.json").read_text("utf-8")


def test_the_same_file_as_eval_source_is_refused(base: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", pairs(0, 5))
    other = write(tmp_path / "set" / "b.jsonl", pairs(5, 9))
    (tmp_path / "link.jsonl").symlink_to(file)
    for settings in (
        {"source": file, "eval_source": file},
        {"source": file, "eval_source": (tmp_path / "link.jsonl").as_posix()},
        {"source": (tmp_path / "set").as_posix(), "eval_source": other},
        {"source": file, "more": [{"source": other}], "eval_source": (tmp_path / "set").as_posix()},
        {"source": file, "split": "train[3:]", "eval_source": file},
    ):
        with pytest.raises(DataError, match=r"held-out rows are trained on: data\.eval_source .* is read for both"):
            made(base, tmp_path / "out", **settings)
    # Rows that are not taken are not trained on.
    counts = made(base, tmp_path / "out", source=file, train_size=5, more=[{"source": other}], eval_source=other)
    assert counts["eval"].trained_on_too == 0


def test_rows_that_say_the_same_are_counted(base: Path, tmp_path: Path) -> None:
    """Whatever their ids, their other columns, their kind of file and their format."""
    train = [{**row, "id": f"a{n}", "from": "here"} for n, row in enumerate(pairs(0, 100) + pairs(0, 3))]
    chats = [
        {"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"{n}"}], "id": f"b{n}"}
        for n in range(93, 193)
    ]
    files = {"source": write(tmp_path / "a.jsonl", train), "eval_source": write(tmp_path / "b.jsonl", chats)}
    held_out = Data(source=files["eval_source"])
    # One source has one format, so the chats are made into pairs for the recipe.
    assert prepare.format_of(source.locate(held_out, offline=True), held_out, held_out) == "messages"
    write(tmp_path / "b.csv", [{**row, "id": f"b{n}"} for n, row in enumerate(pairs(93, 193))])
    for processes in (1, 2):
        counts = made(
            base, tmp_path / "out", processes, source=files["source"], eval_source=(tmp_path / "b.csv").as_posix()
        )
        assert counts["train"].repeated == 3
        assert counts["eval"].trained_on_too == 7
    assert "7 of 100 held-out conversations are trained on too" in counts["eval"].text()
    assert "3 the same as an earlier one" in counts["train"].text()
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (report["train"]["repeated"], report["eval"]["trained_on_too"]) == (3, 7)
    alone = made(base, tmp_path / "out", source=files["source"])
    assert alone["train"].repeated == 0


def test_rows_that_are_dropped_are_not_trained_on(base: Path, tmp_path: Path) -> None:
    long = {"instruction": "why " * 90, "input": "", "output": "so"}
    file = write(tmp_path / "a.jsonl", [*pairs(0, 3), long])
    held = write(tmp_path / "b.jsonl", [long, *pairs(9, 11)])
    counts = made(base, tmp_path / "out", source=file, eval_source=held, overflow="drop")
    assert (counts["eval"].used, counts["eval"].trained_on_too) == (2, 0)


def test_many_rows_on_several_processes(base: Path, tmp_path: Path) -> None:
    train, held = write(tmp_path / "a.jsonl", pairs(0, 2500)), write(tmp_path / "b.jsonl", pairs(2400, 4600))
    counts = made(base, tmp_path / "out", 2, source=train, eval_source=held)
    assert counts["eval"].trained_on_too == 100


def test_a_share_of_all_rows_is_held_out(told: Told, tmp_path: Path) -> None:
    file, other = write(tmp_path / "a.jsonl", pairs(0, 40)), write(tmp_path / "b.csv", pairs(100, 120))
    theirs = datasets.Dataset.from_list(pairs(0, 40)).train_test_split(test_size=0.1, shuffle=False)
    assert told(source=file, eval_size="10%") == {"train": theirs["train"]["output"], "eval": theirs["test"]["output"]}
    assert told(source=file, train_size=20, eval_size="10%") == {"train": numbers(0, 20), "eval": numbers(20, 22)}
    assert told(source=file, split="train[:20]", eval_size="12.5%")["eval"] == numbers(18, 20)
    assert told(source=file, eval_size="0.1%")["eval"] == ["39"]
    assert told(source=file, eval_source=other, eval_size="25%")["eval"] == numbers(100, 105)
    assert told(source=file, more=[{"source": other}], eval_size="5%")["eval"] == numbers(117, 120)
    whole = told(source=file, weight=3, more=[{"source": other, "weight": 1}])["train"]
    parts = told(source=file, weight=3, more=[{"source": other, "weight": 1}], eval_size="20%")
    assert parts["train"] + parts["eval"] == whole
    assert len(parts["eval"]) == round(len(whole) / 5)
    shuffled = told(source=file, shuffle_seed=4, eval_size="10%")
    assert sorted(shuffled["train"] + shuffled["eval"], key=int) == numbers(0, 40)
    with pytest.raises(DataError, match="of 1 row, none is left to train on"):
        told(source=write(tmp_path / "one.jsonl", pairs(0, 1)), eval_size="10%")


def test_what_a_share_may_be(tmp_path: Path) -> None:
    rows = f"data.source={write(tmp_path / 'a.jsonl', pairs(0, 40))}"
    for wrong in ("0%", "100%", "-5%", "10 percent", "0.1", "-1", "null", "1e1%"):
        with pytest.raises(RecipeError, match=r"data\.eval_size: expected a number of rows such as 500, or a share"):
            recipe.load("tiny", [rows, "data.train_size=null", f"data.eval_size={wrong}"])
    with pytest.raises(RecipeError, match=r"set data\.train_size, or hold out a share: 10%"):
        recipe.load("tiny", [rows, "data.train_size=null", "data.eval_size=5"])
    assert recipe.load("tiny", [rows, "data.train_size=null", "data.eval_size=10%"]).data.eval_size == "10%"


def test_a_number_of_rows_stays_one_in_what_a_run_is_of() -> None:
    """As runs of earlier versions have it, and nothing where nothing was asked."""
    assert provenance.identity(recipe.load("tiny", ["data.eval_size=4"]))["data"]["eval_size"] == 4
    assert "eval_size" not in provenance.identity(recipe.load("tiny", []))["data"]
    assert Data(source="x").model_dump(mode="json")["eval_size"] == 0
    assert Data.model_validate({"source": "x", "eval_size": "7"}).eval_size == 7


@pytest.mark.parametrize("over", [1, 2, 5])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_text_is_never_split_to_a_token_alone(base: Path, tmp_path: Path, over: int, pieces: int) -> None:
    tokenizer = Tokenizer(base, DAY, "responses")
    size, texts = 16, [f"go{' 1' * n}{end}" for n in range(60) for end in ("", "!", " so", " so!")]
    wanted = pieces * size + over
    text = next(text for text in texts if len(tokenizer.encode(Plain("", text)).input_ids) == wanted)
    file = write(tmp_path / "rows.jsonl", [{"text": text}, {"text": "short"}])
    counts = made(base, tmp_path / "out", source=file, overflow="split", max_length=size)["train"]
    with pa.OSFile((tmp_path / "out" / "train.arrow").as_posix()) as opened:
        rows = pa.ipc.open_stream(opened).read_all().to_pylist()
    assert len(rows) == counts.kept == pieces + 2
    assert all(2 <= len(row["input_ids"]) <= size for row in rows)
    assert all(set(row["labels"][1:]) != {IGNORED} for row in rows)
    # Every token is learnt once, and in its order.
    learnt = [n for row in rows[:-1] for n in row["labels"] if n != IGNORED]
    assert tokenizer.decode(learnt) == f"{text}<|eot_id|>"


def test_a_prompt_that_fills_the_row_is_not_kept(base: Path, tmp_path: Path) -> None:
    rows = [*pairs(0, 2), {"instruction": "why " * 90, "input": "", "output": "so"}]
    counts = made(base, tmp_path / "out", source=write(tmp_path / "rows.jsonl", rows))["train"]
    assert (counts.kept, counts.without_answer) == (2, 1)


def test_the_command_says_it(run: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(0, 10))
    write(tmp_path / "b.jsonl", pairs(8, 12))
    words = [
        "data",
        "--recipe",
        "tiny",
        *(w for v in ("source=a.jsonl", "train_size=null") for w in ("--set", f"data.{v}")),
    ]
    done = run(*words, "--set", "data.eval_source=b.jsonl", cwd=tmp_path)
    assert "2 of 4 held-out conversations are trained on too" in done.stdout, done.stderr
    values = json.loads(run(*words, "--set", "data.eval_source=b.jsonl", "--json", cwd=tmp_path).stdout)
    assert (values["held_out_and_trained_on"], values["repeated"]) == (2, 0)
    done = run(*words, "--set", "data.eval_size=20%", cwd=tmp_path)
    assert "eval: 2 of 2 conversations" in done.stdout
    assert "no held-out conversation is trained on too\n" in done.stdout


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        (["val.jsonl"], "val.jsonl"),
        (["test.jsonl"], "test.jsonl"),
        (["dev.jsonl", "test.jsonl"], "dev.jsonl"),
        (["rows.jsonl"], "rows.jsonl"),
        (["train.jsonl", "val.jsonl"], "train.jsonl"),
    ],
)
def test_a_folder_is_held_out_by_the_split_it_has(base: Path, tmp_path: Path, names: list[str], held_out: str) -> None:
    train = write(tmp_path / "rows.jsonl", pairs(0, 5))
    sizes = {name: 3 + at for at, name in enumerate(names)}
    for name, size in sizes.items():
        write(tmp_path / "apart" / name, pairs(10, 10 + size))
    counts = made(base, tmp_path / "out", source=train, eval_source=(tmp_path / "apart").as_posix())
    assert counts["eval"].rows == sizes[held_out]


def test_a_folder_of_several_splits_that_are_not_plain(base: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "rows.jsonl", pairs(0, 5))
    for name in ("a", "b"):
        write(tmp_path / "apart" / f"{name}.jsonl", pairs(10, 12))
    listed = "".join(f"  - {{split: {name}, path: {name}.jsonl}}\n" for name in ("a", "b"))
    (tmp_path / "apart" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n"
    )
    with pytest.raises(DataError, match="which split is to be held out is not plain: it has a, b") as caught:
        made(base, tmp_path / "out", source=train, eval_source=(tmp_path / "apart").as_posix())
    assert "data.eval_source" in str(caught.value.hint)


MAPPED: list[tuple[dict[str, Any], dict[str, str], dict[str, Any]]] = [
    (
        {"frage": "Who?", "antwort": "Me."},
        {"prompt": "frage", "completion": "antwort"},
        {"prompt": "Who else?", "completion": "You."},
    ),
    (
        {"dialog": [{"who": "user", "says": "Who?"}, {"who": "assistant", "says": "Me."}]},
        {"messages": "dialog", "role": "who", "content": "says"},
        {"messages": [{"role": "user", "content": "Who else?"}, {"role": "assistant", "content": "You."}]},
    ),
    (
        {"messages": [{"who": "user", "says": "Who?"}, {"who": "assistant", "says": "Me."}]},
        {"role": "who", "content": "says"},
        {"conversations": [{"from": "human", "value": "Who else?"}, {"from": "gpt", "value": "You."}]},
    ),
]


@pytest.mark.parametrize(("row", "columns", "usual"), MAPPED)
def test_a_mapping_of_columns_is_not_forced_on_another_source(
    base: Path, tmp_path: Path, row: dict[str, Any], columns: dict[str, str], usual: dict[str, Any]
) -> None:
    train = write(tmp_path / "rows.jsonl", [row])
    for held_out in (usual, row):
        apart = write(tmp_path / "apart.jsonl", [held_out])
        counts = made(base, tmp_path / "out", source=train, eval_source=apart, columns=columns)
        assert counts["eval"].used == 1
    # What is in neither way is refused by what the recipe says.
    apart = write(tmp_path / "apart.jsonl", [{"q": "Who?", "a": "Me."}])
    with pytest.raises(DataError, match=r"data\.columns names|unknown format"):
        made(base, tmp_path / "out", source=train, eval_source=apart, columns=columns)


def test_an_empty_file_of_a_split_is_named(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.jsonl", pairs(0, 5))
    write(tmp_path / "set" / "train.jsonl", [])
    said = r"the data set is empty: train\.jsonl of the split train holds no row; no split is a\.jsonl"
    with pytest.raises(DataError, match=said):
        made(base, tmp_path / "out", source=(tmp_path / "set").as_posix())
