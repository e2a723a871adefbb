"""Where rows come from and in which order, against the datasets library and the file system."""

import csv
import json
import logging
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from ggufy.data import pool, prepare, source
from ggufy.data.counts import Counts
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.data.work import Plan
from ggufy.errors import DataError
from ggufy.model import tiny
from ggufy.recipe.schema import Data

DAY = date(2026, 3, 7)
Told = Callable[..., dict[str, list[str]]]


def pairs(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"instruction": f"q {n}", "input": "", "output": str(n)} for n in range(start, stop)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as a file of the kind that its name says."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), "utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path.as_posix()


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


@pytest.fixture
def told(base: Path, tmp_path: Path) -> Told:
    """told(source="a.jsonl", ...) gives the answers of the rows of each split, in their order."""
    tokenizer = Tokenizer(base, DAY, "responses")

    def told(**settings: Any) -> dict[str, list[str]]:
        made(base, tmp_path / "out", **settings)
        answers = {}
        for path in sorted((tmp_path / "out").glob("*.arrow")):
            with pa.OSFile(path.as_posix()) as file:
                rows = pa.ipc.open_stream(file).read_all()["labels"].to_pylist()
            texts = [tokenizer.decode([n for n in row if n != IGNORED]) for row in rows]
            answers[path.stem] = [text.removesuffix("<|eot_id|>") for text in texts]
            path.unlink()
        return answers

    return told


def made(base: Path, out: Path, processes: int = 1, max_length: int = 64, **settings: Any) -> dict[str, Counts]:
    data = Data.model_validate(settings)
    return prepare.prepare(source.locate(data, offline=True), data, base, max_length, DAY, out, processes)


def numbers(start: int, stop: int) -> list[str]:
    return [str(n) for n in range(start, stop)]


def test_the_same_rows_from_every_kind_of_file(base: Path, tmp_path: Path) -> None:
    rows = [{"instruction": 'a "quoted", line\nbreak ñ 🌻', "input": "", "output": "yes"}, *pairs(0, 9)]
    files = [write(tmp_path / f"rows.{kind}", rows) for kind in ("jsonl", "json", "parquet", "csv")]
    lines = tmp_path / "lines.json"
    lines.write_bytes(Path(files[0]).read_bytes())
    for file in [*files, lines.as_posix()]:
        made(base, tmp_path / "out" / Path(file).name, source=file)
    bytes_of = {path.read_bytes() for path in tmp_path.glob("out/*/train.arrow")}
    assert len(list(tmp_path.glob("out/*/train.arrow"))) == 5
    assert len(bytes_of) == 1


EXPRESSIONS = [
    *("train", "train[:4]", "train[4:]", "train[3:7]", "train[-3:]", "train[:-8]", "train[:50%]", "train[25%:75%]"),
    *("train[-20%:]", "train[:3]+train[8:9]", "train+validation", "validation[:2]+train[-1:]", "train[:99]"),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_split_expressions_mean_what_the_datasets_library_says(kind: str, told: Told, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder / f"train.{kind}", pairs(0, 12))
    write(folder / f"validation.{kind}", pairs(100, 104))
    cache = (tmp_path / "cache").as_posix()
    for expression in EXPRESSIONS:
        theirs = datasets.load_dataset(folder.as_posix(), split=expression, cache_dir=cache)["output"]
        assert told(source=folder.as_posix(), split=expression)["train"] == list(theirs), expression


def test_a_split_of_a_file(told: Told, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", pairs(0, 9))
    assert told(source=file, split="train[2:5]")["train"] == numbers(2, 5)
    with pytest.raises(DataError, match=r"rows\.jsonl: there is no split 'test'"):
        told(source=file, split="test")
    with pytest.raises(DataError, match=r"'train\[5\]' is not a split"):
        told(source=file, split="train[5]")


@pytest.mark.parametrize("split", ["train[7:3]", "train[50%:10%]", "train[-2:-5]", "train[-2:3]", "train+train[80%:2]"])
def test_a_split_that_is_reversed_is_not_merely_empty(split: str, told: Told, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", pairs(0, 9))
    with pytest.raises(DataError, match=r"data\.split: 'train\[.*\]' ends before it begins") as caught:
        told(source=file, split=split)
    assert "write the lower bound first" in str(caught.value.hint)
    with pytest.raises(DataError, match="the data set is empty"):
        told(source=file, split="train[3:3]")


def test_a_missing_split_names_those_there_are(told: Told, tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", pairs(0, 3))
    write(tmp_path / "set" / "test.jsonl", pairs(3, 5))
    with pytest.raises(DataError, match="there is no split 'validation'") as caught:
        told(source=(tmp_path / "set").as_posix(), split="validation")
    assert "it has train, test" in str(caught.value.hint)


def test_a_split_that_the_files_names_hide_is_named(told: Told, tmp_path: Path) -> None:
    """The Hub's card may call it val; without the card, files of that name are the split validation."""
    write(tmp_path / "set" / "train-00000-of-00001.parquet", pairs(0, 3))
    write(tmp_path / "set" / "val-00000-of-00001.parquet", pairs(3, 5))
    folder = (tmp_path / "set").as_posix()
    with pytest.raises(DataError, match="there is no split 'val'") as caught:
        told(source=folder, eval_split="val")
    assert "files called val-* are the split validation, unless README.md names them" in str(caught.value.hint)
    assert told(source=folder, eval_split="validation")["eval"] == numbers(3, 5)


def test_a_subset(told: Told, tmp_path: Path) -> None:
    write(tmp_path / "set" / "first.jsonl", pairs(0, 3))
    write(tmp_path / "set" / "second.jsonl", pairs(3, 5))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("first", "second"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", "utf-8")
    folder = (tmp_path / "set").as_posix()
    assert told(source=folder, subset="second")["train"] == numbers(3, 5)
    with pytest.raises(DataError, match=r"first.*second"):
        told(source=folder)


def test_a_named_split_is_held_out(told: Told, tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", pairs(0, 9))
    write(tmp_path / "set" / "val.jsonl", pairs(20, 25))
    folder = (tmp_path / "set").as_posix()
    both = {"train": numbers(0, 9), "eval": numbers(20, 25)}
    assert told(source=folder, eval_split="validation") == both
    assert told(source=folder, eval_split="validation", eval_size=2)["eval"] == numbers(20, 22)
    with pytest.raises(DataError, match="no split 'holdout'"):
        told(source=folder, eval_split="holdout")


def test_another_file_is_held_out(told: Told, tmp_path: Path) -> None:
    train, val = write(tmp_path / "a.jsonl", pairs(0, 4)), write(tmp_path / "b.csv", pairs(20, 25))
    assert told(source=train, eval_source=val) == {"train": numbers(0, 4), "eval": numbers(20, 25)}
    before = source.locate(Data(source=train, eval_source=val), offline=True).fingerprint
    write(tmp_path / "b.csv", pairs(21, 25))
    assert source.locate(Data(source=train, eval_source=val), offline=True).fingerprint != before


def test_sources_without_weights_are_taken_whole(told: Told, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", pairs(0, 4)), write(tmp_path / "b.parquet", pairs(10, 17))
    mixed = {"source": first, "more": [{"source": second, "split": "train[:5]"}]}
    assert told(**mixed)["train"] == [*numbers(0, 4), *numbers(10, 15)]
    cut = told(**mixed, train_size=6, eval_size=2)
    assert cut == {"train": [*numbers(0, 4), *numbers(10, 12)], "eval": numbers(12, 14)}


def test_weights_are_shares_to_the_end(told: Told, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = write(tmp_path / "a.jsonl", pairs(0, 100)), write(tmp_path / "b.jsonl", pairs(1000, 1020))
    with caplog.at_level(logging.INFO, "ggufy"):
        mix = told(source=first, weight=3, more=[{"source": second, "weight": 1}])["train"]
    small = [row for row in mix if int(row) >= 1000]
    assert small == numbers(1000, 1020)
    assert [row for row in mix if int(row) < 1000] == numbers(0, len(mix) - 20)
    for taken in range(1, len(mix) + 1):
        assert math.fabs(sum(int(row) >= 1000 for row in mix[:taken]) - taken / 4) <= 1
    assert "b.jsonl has no more rows, which ends the mix" in caplog.text


def test_a_shuffle_is_a_function_of_its_seed(told: Told, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", pairs(0, 50))
    other = write(tmp_path / "others.csv", pairs(50, 60))
    whole = told(source=file, shuffle_seed=1)["train"]
    assert sorted(whole, key=int) == numbers(0, 50)
    assert whole != numbers(0, 50)
    assert told(source=file, shuffle_seed=2)["train"] != whole
    assert told(source=file, shuffle_seed=1, train_size=20, eval_size=10) == {"train": whole[:20], "eval": whole[20:30]}
    both = told(source=file, shuffle_seed=1, more=[{"source": other}])["train"]
    assert sorted(both, key=int) == numbers(0, 60)
    assert both[-10:] != numbers(50, 60)
    assert not list((tmp_path / "out").glob("tmp*"))


def test_the_bytes_do_not_depend_on_the_number_of_processes(base: Path, tmp_path: Path) -> None:
    rows = [*pairs(0, 1500), {"instruction": "<|eot_id|>", "output": "bad"}, *pairs(1500, 2600)]
    rows[9]["output"] = rows[99]["output"] = "word " * 99
    file = write(tmp_path / "rows.jsonl", rows)
    reports = {
        n: made(base, tmp_path / str(n), n, source=file, on_bad_row="skip", train_size=2400, eval_size=150)
        for n in (1, 2, 3)
    }
    for name in ("train.arrow", "eval.arrow", "report.json"):
        assert len({(tmp_path / str(n) / name).read_bytes() for n in (1, 2, 3)}) == 1
    assert (reports[2]["train"].kept, reports[2]["train"].truncated, reports[2]["train"].skipped_bad) == (2399, 2, 1)
    assert "rows.jsonl:1501: turn 1 contains the special token <|eot_id|>" in reports[2]["train"].text()


def test_a_bad_row_is_named_by_whichever_process_finds_it(base: Path, tmp_path: Path) -> None:
    rows = pairs(0, 2600)
    rows[2300]["output"] = rows[2310]["output"] = ""
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"rows\.jsonl:2301: the column 'output' is empty"):
        made(base, tmp_path / "out", 2, source=file)


def test_a_process_that_dies_is_said(base: Path) -> None:
    process = pool._Process(Plan(base, DAY, Data(source="x"), 64, ((Data(source="x"), "alpaca"),)))
    assert process.batch([(0, 1, pairs(0, 1)[0])]).outcomes[0].examples == 1
    process.kill()
    with pytest.raises(DataError, match=r"ended early \(signal 9\)"):
        process.batch([(0, 1, pairs(0, 1)[0])])
    process.close()


def test_plain_text_that_is_too_long_goes_on_in_another_row(base: Path, tmp_path: Path) -> None:
    text = " ".join(map(str, range(200)))
    file = write(tmp_path / "rows.jsonl", [{"text": text}, {"text": "short"}])
    counts = made(base, tmp_path / "out", source=file, overflow="split")["train"]
    with pa.OSFile((tmp_path / "out" / "train.arrow").as_posix()) as opened:
        rows = pa.ipc.open_stream(opened).read_all().to_pylist()
    tokenizer = Tokenizer(base, DAY, "responses")
    assert counts.split_long == 1
    assert counts.text().startswith(f"2 of 2 conversations in {len(rows)} rows, ")
    assert counts.kept == len(rows) > 3
    assert all(len(row["input_ids"]) <= 64 for row in rows)
    whole = tokenizer.decode([n for row in rows[:-1] for n in row["input_ids"]])
    assert whole == f"<|begin_of_text|>{text}<|eot_id|>"
    with pytest.raises(DataError, match=r"data\.overflow: split is for plain text, but .* is alpaca"):
        made(base, tmp_path / "out", source=write(tmp_path / "rows.jsonl", pairs(0, 2)), overflow="split")


def test_the_prompt_budget_never_cuts_an_answer(told: Told, base: Path, tmp_path: Path) -> None:
    answer = "a rather long answer that stays " * 3
    file = write(tmp_path / "rows.jsonl", [{"prompt": "why " * 50, "completion": answer}])
    assert told(source=file, prompt_tokens=10, max_length=200)["train"] == [answer.strip()]
    counts = made(base, tmp_path / "out", max_length=200, source=file, prompt_tokens=10)["train"]
    assert counts.truncated == 0
    assert "1 with a prompt cut to the budget" in counts.text()


def test_a_prompt_gives_way_to_the_template_and_the_answer(told: Told, base: Path, tmp_path: Path) -> None:
    """The price recipes' 110 of 128 on a base with a chat template, whose own tokens are in neither number."""
    question, cue = "What does it cost?", "Price is $"
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"{question} {'very ' * 150} {cue}", "completion": "17.00"}] * 3)
    settings = {"source": file, "prompt_tokens": 60, "prompt_cut": "middle", "max_length": 80}
    assert told(**settings)["train"] == ["17.00"] * 3
    counts = made(base, tmp_path / "out", **settings)["train"]
    assert (counts.truncated, counts.without_answer, counts.longest) == (0, 0, 80)
    assert "3 with a prompt cut to the budget (3 further, to fit)" in counts.text()
    with pa.OSFile((tmp_path / "out" / "train.arrow").as_posix()) as opened:
        ids = pa.ipc.open_stream(opened).read_all()["input_ids"].to_pylist()[0]
    prompt = Tokenizer(base, DAY, "responses").decode(ids)
    # The template's own tokens are all there, and so are both ends of the prompt.
    assert prompt.startswith("<|begin_of_text|><|start_header_id|>system")
    assert question in prompt
    assert f"{cue}<|eot_id|>" in prompt


def test_an_answer_has_the_room_that_the_budget_leaves_it(base: Path, tmp_path: Path) -> None:
    """One that is longer by itself loses its end, as any row does; it does not swallow the prompt as well."""
    whole = {"prompt": "why", "completion": "so"}
    file = write(tmp_path / "rows.jsonl", [{"prompt": "why " * 90, "completion": "one two three four " * 90}, whole])
    counts = made(base, tmp_path / "out", source=file, prompt_tokens=60, max_length=160)["train"]
    # The row that is whole adds its answer, of two tokens, and the end of it.
    assert (counts.truncated, counts.trained_tokens) == (1, 100 + 3)
    assert (counts.answers, counts.ended) == (2, 1)
    assert counts.longest == 160


def test_in_a_long_conversation_only_the_first_prompt_gives_way(base: Path, tmp_path: Path) -> None:
    """The conversation cannot be whole, so the later prompts are not cut for it; the first answer is whole."""
    said = [
        ("user", "why " * 70),
        ("assistant", "Because it is so."),
        ("user", "how " * 40),
        ("assistant", "so " * 200),
    ]
    file = write(tmp_path / "rows.jsonl", [{"messages": [{"role": role, "content": text} for role, text in said]}])
    made(base, tmp_path / "out", source=file, prompt_tokens=60, max_length=100)
    with pa.OSFile((tmp_path / "out" / "train.arrow").as_posix()) as opened:
        row = pa.ipc.open_stream(opened).read_all().to_pylist()[0]
    tokenizer = Tokenizer(base, DAY, "responses")
    assert len(row["input_ids"]) == 100
    assert tokenizer.decode([n for n in row["labels"] if n != IGNORED]) == "Because it is so.<|eot_id|>"
    counts = made(base, tmp_path / "out", source=file, prompt_tokens=60, max_length=220)["train"]
    assert "1 with a prompt cut to the budget, 1 truncated" in counts.text()


def test_a_template_that_leaves_no_room_is_named_with_its_tokens(told: Told, base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "why", "completion": "so"}, {"prompt": "why " * 90, "completion": "that is how it is"}]
    file = write(tmp_path / "rows.jsonl", rows)
    tokenizer = Tokenizer(base, DAY, "responses")
    own = tokenizer.length_of([{"role": "user", "content": ""}], generate=True)
    settings = {"source": file, "prompt_tokens": 10, "max_length": own + 6}
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: the template takes {own} tokens before the answer") as caught:
        told(**settings)
    assert "raise model.max_length" in str(caught.value.hint)
    counts = made(base, tmp_path / "out", **settings, on_bad_row="skip")["train"]
    assert (counts.kept, counts.skipped_bad) == (1, 1)
