"""Folders: every file is read or named, and a refused row is named by its file, against the datasets library."""

import json
import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import datasets
import pytest

from ggufy.data import prepare, source
from ggufy.data.checks import unread
from ggufy.errors import DataError
from ggufy.model import tiny
from ggufy.recipe.schema import Data
from tests.data.test_sources import pairs, write

DAY = date(2026, 3, 7)


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def outputs(folder: Path, **settings: Any) -> list[str]:
    """The answers of the rows that are read, in their order."""
    found = source.locate(Data(source=folder.as_posix(), **settings), offline=True)
    return [row["output"] for _, row in found.rows()]


def left_out(folder: Path, **settings: Any) -> dict[str, str]:
    """The files that are not read, with their reasons."""
    found = unread.find(source.locate(Data(source=folder.as_posix(), **settings), offline=True))
    return {name: one.why for one in found for name in one.files}


def files(folder: Path, **rows: int) -> Path:
    """files(folder, a_jsonl=3) writes three rows to a.jsonl; a double underline is a folder."""
    for at, (name, count) in enumerate(rows.items()):
        stem, _, kind = name.replace("__", "/").rpartition("_")
        path = folder / f"{stem.replace('_', '-')}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, pairs(100 * at, 100 * at + count))
    return folder


LEFT: dict[str, tuple[dict[str, int], dict[str, str]]] = {
    "a word in one of three names": (
        {"plants_jsonl": 2, "animals_jsonl": 2, "train_timetable_jsonl": 2},
        {"plants.jsonl": "named for no split", "animals.jsonl": "named for no split"},
    ),
    "a file beside train": ({"train_jsonl": 2, "more_jsonl": 2}, {"more.jsonl": "named for no split"}),
    "a word for validation": (
        {"train_jsonl": 2, "my_dev_notes_jsonl": 2},
        {"my-dev-notes.jsonl": "the split validation"},
    ),
    "CSV beside JSON lines": (
        {"a_jsonl": 2, "b_jsonl": 2, "notes_csv": 2},
        {"notes.csv": "the folder is read for its .jsonl files"},
    ),
    "JSON beside Parquet": (
        {"train_parquet": 2, "test_parquet": 2, "old_json": 1},
        {"test.parquet": "the split test", "old.json": "the folder is read for its .parquet files"},
    ),
    "a folder called train": (
        {"train__a_jsonl": 2, "train__b_jsonl": 2, "c_jsonl": 2},
        {"c.jsonl": "named for no split"},
    ),
    "all of them": ({"a_jsonl": 2, "b_json": 2, "c__d_jsonl": 2}, {}),
}


@pytest.mark.parametrize(("rows", "left"), LEFT.values(), ids=LEFT.keys())
def test_what_is_not_read_is_named(tmp_path: Path, rows: dict[str, int], left: dict[str, str]) -> None:
    folder = files(tmp_path / "set", **rows)
    assert left_out(folder) == left
    theirs = datasets.load_dataset(folder.as_posix(), split="train", cache_dir=(tmp_path / "cache").as_posix())
    assert outputs(folder) == [str(output) for output in theirs["output"]]


def test_files_of_other_kinds_are_named_and_what_is_about_the_rows_is_not(tmp_path: Path) -> None:
    folder = files(tmp_path / "set", a_jsonl=2, b_jsonl=2)
    for name in ("notes.txt", "old.xlsx", "more.arrow", "c.jsonl.bak", "d.tsv"):
        (folder / name).write_bytes(b"x\ty\n")
    for name in (
        "README.md",
        "LICENSE",
        "license.txt",
        ".hidden.jsonl",
        "make.py",
        "picture.png",
        "dataset_infos.json",
    ):
        (folder / name).write_bytes(b"{}")
    (folder / ".ipynb_checkpoints").mkdir()
    write(folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl", pairs(0, 1))
    found = left_out(folder)
    assert found.keys() == {"notes.txt", "old.xlsx", "more.arrow", "c.jsonl.bak", "d.tsv"}
    assert found["notes.txt"] == "of a kind that is not read"
    assert outputs(folder) == ["0", "1", "100", "101"]


def test_most_files_being_of_another_kind_hides_no_rows(tmp_path: Path) -> None:
    """datasets would read the texts, as there are more of them."""
    folder = files(tmp_path / "set", a_jsonl=2)
    for name in ("one.txt", "two.txt", "three.txt"):
        (folder / name).write_text("x", "utf-8")
    assert outputs(folder) == ["0", "1"]
    assert left_out(folder).keys() == {"one.txt", "two.txt", "three.txt"}


def test_a_packed_file_of_the_split_is_refused(tmp_path: Path) -> None:
    folder = files(tmp_path / "set", b_jsonl=2)
    (folder / "a.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"set/a\.jsonl\.gz: is packed") as caught:
        outputs(folder)
    assert "unpack it" in str(caught.value.hint)


def test_metadata_beside_the_rows_is_no_row(tmp_path: Path) -> None:
    folder = files(tmp_path / "set", rows_jsonl=2)
    (folder / "metadata.json").write_text('{\n "made_by": "us",\n "rows": 2\n}\n', "utf-8")
    assert outputs(folder) == ["0", "1"]
    assert left_out(folder) == {"metadata.json": "about the rows, not rows"}


def test_where_no_file_is_named_train_those_of_no_split_are(tmp_path: Path) -> None:
    folder = files(tmp_path / "set", stories_jsonl=2, lab_test_results_jsonl=3)
    assert outputs(folder) == ["0", "1"]
    assert outputs(folder, split="test") == ["100", "101", "102"]
    assert left_out(folder) == {"lab-test-results.jsonl": "the split test"}
    lines = [text for _, text in unread.lines(source.locate(Data(source=folder.as_posix()), offline=True))]
    assert "the split train is stories.jsonl, as no file is named so" in lines[0]


def test_a_missing_split_names_each_file_and_its_split(tmp_path: Path) -> None:
    folder = files(tmp_path / "set", train_jsonl=2, unit_test_jsonl=2, more_jsonl=1)
    with pytest.raises(DataError) as caught:
        outputs(folder, split="validation")
    assert caught.value.message.endswith(
        "there is no split 'validation': the split train is train.jsonl, the split test is unit-test.jsonl, "
        "no split is more.jsonl"
    )
    (folder / "train.jsonl").unlink()
    (folder / "more.jsonl").unlink()
    with pytest.raises(DataError, match=r"no split 'train': the split test is unit-test\.jsonl"):
        outputs(folder)


def test_what_another_source_reads_is_not_named(tmp_path: Path) -> None:
    folder = files(tmp_path / "set", train_jsonl=2, more_jsonl=2, test_jsonl=1, val_jsonl=1)
    more = [{"source": (folder / "more.jsonl").as_posix()}]
    assert left_out(folder, more=more, eval_split="validation") == {"test.jsonl": "the split test"}


def test_readme_says_which_file_is_which(tmp_path: Path) -> None:
    folder = files(tmp_path / "set", big__a_jsonl=2, small__b_jsonl=2, stray_jsonl=1)
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("big", "small"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", "utf-8")
    assert outputs(folder, subset="small") == ["100", "101"]
    why = "README.md does not list them for the subset small"
    assert left_out(folder, subset="small") == {"big/a.jsonl": why, "stray.jsonl": why}


@pytest.mark.parametrize("name", ["data [v2]", "da#ta", "what?", "st*r", "{a,b}", "a::b", "train [1-9]", "[test]"])
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    folder = files(tmp_path / name / "inner", train_jsonl=3, test__x_jsonl=2)
    plain = files(tmp_path / "plain", train_jsonl=3, test__x_jsonl=2)
    for split in ("test", "test[1:]"):
        assert outputs(folder, split=split) == outputs(plain, split=split)
    assert outputs(files(tmp_path / "outer" / name, a_jsonl=2)) == ["0", "1"]


@pytest.mark.parametrize("name", ["data [v2]", "da#ta", "what?", "st*r", "{a,b}"])
def test_a_folder_of_any_name_inside_another(tmp_path: Path, name: str) -> None:
    assert outputs(files(tmp_path / "set" / name, a_jsonl=2).parent) == ["0", "1"]


def test_a_refused_row_is_named_by_its_file(base: Path, tmp_path: Path) -> None:
    for kind, place in (("jsonl", "b.jsonl:2"), ("csv", "b.csv: row 2"), ("parquet", "b.parquet: row 2")):
        folder = tmp_path / kind
        write(folder / f"a.{kind}", pairs(0, 3))
        write(folder / f"b.{kind}", [*pairs(3, 4), {"instruction": "q", "input": "", "output": ""}, *pairs(5, 6)])
        data = Data(source=folder.as_posix())
        found = source.locate(data, offline=True)
        with pytest.raises(DataError, match="the column 'output' is empty") as caught:
            prepare.prepare(found, data, base, 64, DAY, tmp_path / "out")
        assert caught.value.message.startswith(f"{folder.as_posix()}/{place}: ")
        shuffled = data.model_copy(update={"shuffle_seed": 3})
        with pytest.raises(DataError, match=f"/{place}: "):
            prepare.prepare(source.locate(shuffled, offline=True), shuffled, base, 64, DAY, tmp_path / "out")


@pytest.mark.parametrize("split", ["train", "test", "train[1:]", "train+test"])
def test_what_save_to_disk_wrote_is_read(tmp_path: Path, split: str) -> None:
    parts = {"train": pairs(0, 700), "test": pairs(700, 705)}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    saved.save_to_disk((tmp_path / "set").as_posix(), num_shards={"train": 2, "test": 1})
    both = {name: [row["output"] for row in rows] for name, rows in parts.items()}
    wanted = {"train[1:]": both["train"][1:], "train+test": both["train"] + both["test"], **both}[split]
    assert outputs(tmp_path / "set", split=split) == wanted
    assert outputs(tmp_path / "set" / "test") == both["test"]
    assert left_out(tmp_path / "set", split="train+test") == {}


def test_a_part_of_what_was_saved(tmp_path: Path) -> None:
    """Rows that were selected are saved as such."""
    rows = datasets.Dataset.from_list(pairs(0, 9)).select([5, 3])
    rows.save_to_disk((tmp_path / "set").as_posix())
    assert outputs(tmp_path / "set") == ["5", "3"]
    next((tmp_path / "set").glob("*.arrow")).unlink()
    with pytest.raises(
        DataError, match=r"written by save_to_disk .* data-00000-of-00001\.arrow is not there"
    ) as caught:
        outputs(tmp_path / "set")
    assert "to_parquet" in str(caught.value.hint)


def test_the_fingerprint_of_a_saved_folder_is_of_its_rows(tmp_path: Path) -> None:
    prints = set()
    for rows in (pairs(0, 3), pairs(0, 3), pairs(1, 4)):
        datasets.Dataset.from_list(rows).save_to_disk((tmp_path / "set").as_posix())
        found = source.locate(Data(source=(tmp_path / "set").as_posix()), offline=True)
        prints.add(json.dumps([row for _, row in found.rows()]))
        assert len(found.fingerprint) == 64
    assert len(prints) == 2


def test_a_folder_without_rows_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("x", "utf-8")
    with pytest.raises(DataError, match=r"holds no \.jsonl, \.json, \.parquet, \.csv, but notes\.txt"):
        outputs(tmp_path / "set")


def test_the_command_names_what_is_not_read(run: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    files(tmp_path / "set", train_jsonl=2, more_jsonl=2, test_jsonl=1)
    words = ("data", "--recipe", "tiny", "--set", "data.source=set", "--set", "data.train_size=null")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "set: not read: test.jsonl (the split test); more.jsonl (named for no split). Read is train.jsonl"
        in done.stdout
    )
    assert "rows by format: 2 alpaca\n" in done.stdout
    values = json.loads(run(*words, "--json", cwd=tmp_path).stdout)
    assert values["not_read"] == [
        {"source": "set", "files": ["test.jsonl"], "why": "the split test"},
        {"source": "set", "files": ["more.jsonl"], "why": "named for no split"},
    ]
    assert values["formats"] == {"alpaca": 2}


def test_the_stage_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from ggufy.stages import data as stage

    folder = files(tmp_path / "set", train_jsonl=2, more_jsonl=2)
    with caplog.at_level(logging.INFO, "ggufy"):
        stage._say_unread(source.locate(Data(source=folder.as_posix()), offline=True))
        (folder / "more.jsonl").rename(folder / "test.jsonl")
        stage._say_unread(source.locate(Data(source=folder.as_posix()), offline=True))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "not read: more.jsonl (named for no split)" in caplog.records[0].getMessage()


def test_no_name_hides_rows(tmp_path: Path) -> None:
    """The datasets library passes over some of these; then they are named."""
    train = files(tmp_path / "set", train_jsonl=2)
    for name in ("_part2.jsonl", "changelog.jsonl", "notice.csv", "__old/b.jsonl"):
        path = train / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "instruction,output\nq,a\n" if name.endswith("csv") else '{"instruction": "q", "output": "a"}\n', "utf-8"
        )
    (train / "config.json").write_text('[{"instruction": "q", "output": "a"}]', "utf-8")
    (train / "metadata.json").write_text('{"license": "mit"}', "utf-8")
    (train / "LICENSE").write_text("mit", "utf-8")
    assert left_out(train).keys() == {"_part2.jsonl", "changelog.jsonl", "notice.csv", "__old/b.jsonl", "config.json"}
