"""`ggufy runs` over folders in every state a run can be in."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ggufy.runs import curves

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]


@pytest.fixture
def listed(light_run: Run) -> Callable[[Path], dict[str, Any]]:
    """listed(folder) is what `ggufy runs --json` says there, by name."""

    def listed(cwd: Path) -> dict[str, Any]:
        done = light_run("runs", "--json", cwd=cwd)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return {row["name"]: row for row in json.loads(done.stdout)}

    return listed


@pytest.fixture
def second(quick: Path) -> Path:
    """A folder with runs/quick and, as other, a copy that learnt at another rate and worse."""
    other = Path(shutil.copytree(quick / "runs/quick", quick / "runs/other"))
    record = json.loads((other / "run.json").read_text("utf-8"))
    record["recipe"]["train"]["learning_rate"] = 0.5
    (other / "run.json").write_text(json.dumps(record), "utf-8")
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text("utf-8").splitlines()]
    (other / "metrics.jsonl").write_text(
        "".join(json.dumps(x | {"loss": x["loss"] + 2}) + "\n" for x in lines), "utf-8"
    )
    return quick


def test_a_finished_run(quick: Path, listed: Callable[[Path], dict[str, Any]], light_run: Run) -> None:
    row = listed(quick)["quick"]
    assert (row["state"], row["recipe"], row["base"]) == ("finished", "tiny", "builtin:tiny")
    assert (row["steps"], row["steps_planned"]) == (4, 4)
    last = json.loads((quick / "runs/quick/metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert row["loss"] == last["loss"]
    assert row["exports"] == {"quick-q8_0.gguf": (quick / "runs/quick/export/quick-q8_0.gguf").stat().st_size}
    shown = light_run("runs", "show", cwd=quick)
    assert shown.returncode == 0, shown.stderr
    assert f"{last['loss']:.4f}" in shown.stdout
    assert "quick-q8_0.gguf  3.4 MB" in shown.stdout
    assert "█" in shown.stdout
    table = light_run("runs", cwd=quick).stdout.splitlines()
    assert table[0].split()[:3] == ["run", "state", "recipe"]
    assert table[1].split()[:5] == ["quick", "finished", "tiny", "builtin:tiny", "4/4"]


def test_no_runs_yet(light_run: Run, tmp_path: Path) -> None:
    done = light_run("runs", cwd=tmp_path)
    assert done.returncode == 0
    assert "ggufy train --recipe tiny" in done.stdout
    assert light_run("runs", "--json", cwd=tmp_path).stdout == "[]\n"
    assert not list(tmp_path.iterdir())


def test_a_run_at_work_and_one_that_was_stopped(quick: Path, listed: Callable[[Path], dict[str, Any]]) -> None:
    (quick / "runs/quick/stamps/adapter.json").unlink()
    assert listed(quick)["quick"]["state"] == "stopped"
    with (quick / "runs/quick/lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert listed(quick)["quick"]["state"] == "training"
    with (quick / "runs/quick/metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # cut by a kill
    assert listed(quick)["quick"]["steps"] == 4


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("run.json", Path.unlink, "run.json"),
        ("run.json", lambda path: path.write_text("{"), "run.json cannot be read"),
        ("run.json", lambda path: path.write_text("[1]"), "does not describe a ggufy run"),
        ("run.json", lambda path: path.write_text('{"recipe": {"lora": {"r": 0}}}'), "lora.r"),
        ("run.json", lambda path: path.write_text('{"recipe": 7}'), ""),
        ("adapter/adapter_model.safetensors", Path.unlink, "adapter_model.safetensors has been removed"),
        ("export/quick-q8_0.gguf", _cut, "quick-q8_0.gguf has been changed"),
        ("export/quick-q8_0.gguf", _flip, "quick-q8_0.gguf has been changed"),
        ("metrics.jsonl", lambda path: path.write_bytes(b"\xff\xfe\n\x00\n\x01\n"), "metrics.jsonl cannot be read"),
        ("summary.json", lambda path: path.write_text("nonsense"), "summary.json cannot be read"),
        ("stamps/adapter.json", lambda path: path.write_text(json.dumps(_stamp())), "the stamp of adapter"),
    ],
)
def test_a_damaged_run_is_a_row_that_says_so(
    quick: Path,
    listed: Callable[[Path], dict[str, Any]],
    light_run: Run,
    name: str,
    damage: Callable[[Path], Any],
    said: str,
) -> None:
    shutil.copytree(quick / "runs/quick", quick / "runs/sound")
    damage(quick / "runs/quick" / name)
    rows = listed(quick)
    assert rows["sound"]["state"] == "finished"
    assert rows["quick"]["state"] == "damaged"
    assert said in rows["quick"]["problem"]
    for command in (("runs",), ("runs", "show", "quick"), ("runs", "--csv")):
        done = light_run(*command, cwd=quick)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "damaged" in done.stdout


def _stamp() -> dict[str, Any]:
    return {"output": "adapter", "inputs": {}, "files": {"run.json": 7}, "sha256": ""}


def test_a_run_that_ended_before_its_data_was_ready(quick: Path, listed: Callable[[Path], dict[str, Any]]) -> None:
    (quick / "runs/early/partial/abc").mkdir(parents=True)
    (quick / "runs/early/lock").touch()
    found = listed(quick)["early"]
    assert (found["state"], found["problem"]) == ("stopped", "it ended before its data was ready")


def test_folders_that_are_no_runs_are_left_out(quick: Path, listed: Callable[[Path], dict[str, Any]]) -> None:
    (quick / "runs/notes").mkdir()
    (quick / "runs/notes/mine.txt").write_text("mine")
    (quick / "runs/file.txt").write_text("mine")
    assert list(listed(quick)) == ["quick"]


def test_csv_is_one_line_a_run(second: Path, light_run: Run) -> None:
    done = light_run("runs", "--csv", cwd=second)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert set(rows) == {"quick", "other"}
    assert float(rows["other"]["loss"]) == pytest.approx(float(rows["quick"]["loss"]) + 2)


def test_comparing_names_what_differs(second: Path, light_run: Run, fails: Fails) -> None:
    done = light_run("runs", "compare", "quick", "other", cwd=second)
    assert done.returncode == 0, done.stderr
    recipe = done.stdout.partition("\n\n")[0].splitlines()
    assert [line.split() for line in recipe] == [
        ["recipe", "quick", "other"],
        ["train.learning_rate", "0.002", "0.5"],
    ]
    assert {"█", "▒"} <= set(done.stdout)
    said = json.loads(light_run("runs", "compare", "quick", "other", "--json", cwd=second).stdout)
    assert said["recipe"] == {"train.learning_rate": [0.002, 0.5]}
    assert len(said["curves"]["quick"]) == len(said["curves"]["other"]) == 4
    done = light_run("runs", "compare", "quick", "quick", cwd=second)
    assert done.stdout.startswith("the recipes are the same\n")
    assert "figures               quick" in done.stdout
    assert "runs/quick" not in done.stdout
    table = list(csv.reader(io.StringIO(light_run("runs", "compare", "quick", "other", "--csv", cwd=second).stdout)))
    assert table[0] == ["", "quick", "other"]
    assert ["train.learning_rate", "0.002", "0.5"] in table
    fails("runs", "compare", "quick", "nobody", cwd=second, naming=["nobody"], hinting=["quick"])
    (second / "runs/other/run.json").write_text("{")
    fails("runs", "compare", "quick", "other", cwd=second, naming=["runs/other cannot be compared"])


def test_a_picture_of_both_curves(second: Path, light_run: Run, fails: Fails) -> None:
    arguments = ("runs", "compare", "quick", "other", "--png")
    fails(*arguments, "curves.jpg", cwd=second, naming=["ends in .png"], hinting=["curves.png"])
    if find_spec("matplotlib") is None:
        fails(*arguments, "curves.png", cwd=second, naming=["matplotlib"], hinting=["[train]"])
        return
    done = light_run(*arguments, "curves.png", cwd=second)
    assert done.returncode == 0, done.stderr
    picture = (second / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) > 5000


def test_curves_in_blocks() -> None:
    falling = [(step, 4.0 - step / 10) for step in range(1, 31)]
    lines = curves.blocks({"a": falling, "b": [(30, 4.0)], "nothing": [], "nan": [(1, float("nan"))]}, 30, 10)
    assert lines[0].split()[0] == "4.000"
    assert lines[9].split()[0] == "1.000"
    rows = [line.partition("│")[2] for line in lines[:10]]
    # Down from the left to the right, one mark a step, and the other curve's only point at the top right.
    assert rows[0].rstrip().endswith("▒")
    places = [row.find("█") for row in rows if "█" in row]
    assert places == sorted(places)
    assert sum(row.count("█") for row in rows) == 29
    assert lines[-1].split() == ["█", "a", "▒", "b"]
    assert curves.blocks({"nan": [(1, float("nan"))]}) == []
    assert curves.blocks({"one": [(0, 1.0)]})
