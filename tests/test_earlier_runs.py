"""What an earlier ggufy made is continued, and found finished: earlier/README.md says what is in the archive, and how
it was made. Nothing of ggufy is imported here, so that its modules may move."""

from __future__ import annotations

import json
import math
import re
import shutil
import sqlite3
import struct
import tarfile
from collections.abc import Callable
from contextlib import closing
from importlib import metadata
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import gguf
import pytest

from .conftest import snapshot

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]

ARCHIVE = Path(__file__).parent / "earlier" / "b07fb70.tar.xz"

# The commands that made what is in it.
TRAIN = ("train", "--recipe", "small.yaml", "--run", "done")
EXPORT = ("export", "done", "--quant", "q4_0", "--imatrix", "--imatrix-tokens", "128", "--adapter-gguf")
EVAL = ("eval", "done", "--max-tokens", "8")
STOPPED = (
    *("train", "--recipe", "small.yaml", "--run", "stopped", "--set", "lora.dropout=0.1", "--set", "eval.steps=2"),
    *("--set", "train.batch_size=3", "--set", "train.gradient_accumulation=2", "--set", "train.save_steps=3"),
)
EXPORT_FOLDER = ("export", "mine", "--base", "./base", "--quant", "q8_0", "--adapter-gguf")
FILE = "exports/mine/mine-q8_0.gguf"
EVAL_FILE = ("eval", FILE, "--data", "data.jsonl", "--only", "heldout,prompts", "--max-tokens", "8")
SWEEP = ("sweep", "--recipe", "small.yaml", "--name", "sweep", "--grid", "lora.r=2,4")
TINY = "tiny-449adea6786a6b0c"


def unpack(folder: Path) -> Path:
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A copy of what is in the archive for one test."""
    return unpack(tmp_path / "earlier")


@pytest.fixture(scope="module")
def same_makers(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where ggufy or llama.cpp is another version: then exports are made again, as they should be."""
    folder = unpack(tmp_path_factory.mktemp("versions"))
    made = inputs(folder / "runs/done/stamps/export--done-q8_0.gguf.json")
    here = run("--version", cwd=folder).stdout.split()[-1]
    before = (made["general"]["ggufy.version"], made["llama_cpp"])
    if before != (now := (here, metadata.version("llama-cpp-python"))):
        pytest.skip(f"made by ggufy and llama.cpp {before}, and these are {now}: see tests/earlier/README.md")


def inputs(stamp: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stamp.read_text("utf-8"))["inputs"]
    return found


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """What is in every file of a folder, and when it was written; but for the locks, which every command takes."""
    held = {name: (sha256, (folder / name).stat().st_mtime_ns) for name, sha256 in snapshot(folder).items()}
    return {name: facts for name, facts in held.items() if facts[0] != "folder" and not name.endswith("lock")}


def record(folder: Path) -> dict[str, Any]:
    """A run's record without its recipe, to which a later version may add keys."""
    found: dict[str, Any] = json.loads((folder / "run.json").read_text("utf-8"))
    return {key: value for key, value in found.items() if key not in ("recipe", "continued_with")}


def right(done: CompletedProcess[str]) -> CompletedProcess[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def weights(path: Path) -> dict[str, tuple[float, ...]]:
    """The tensors of a safetensors file in float32."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, facts in header.items():
        assert facts["dtype"] == "F32"
        part = data[start:][slice(*facts["data_offsets"])]
        found[name] = struct.unpack(f"<{len(part) // 4}f", part)
    return found


def distance(one: Path, other: Path) -> float:
    """How far two adapters are apart, as a share of the length of the second."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    pairs = [pair for name in mine for pair in zip(mine[name], theirs[name], strict=True)]
    return math.dist(*zip(*pairs, strict=True)) / math.hypot(*(b for _, b in pairs))


def swept(folder: Path) -> dict[str, Any]:
    """What the study says that the sweep is of."""
    with closing(sqlite3.connect(folder / "runs/sweep/study.db")) as study:
        [[text]] = study.execute("SELECT value_json FROM study_user_attributes WHERE key = 'sweep'")
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_trained_run_is_up_to_date(earlier: Path, run: Run) -> None:
    before, known = state(earlier), record(earlier / "runs/done")
    said = right(run(*TRAIN, cwd=earlier))
    assert said.stderr.splitlines()[0] == "runs/done/adapter is up to date"
    assert record(earlier / "runs/done") == known
    after = state(earlier)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {"runs/done/run.json"}


@pytest.mark.usefixtures("same_makers")
def test_its_exports_are_up_to_date(earlier: Path, light_run: Run) -> None:
    before = state(earlier)
    for command, count in ((EXPORT, 4), (("export", "done"), 2)):
        said = right(light_run(*command, cwd=earlier))
        assert [line.endswith("  (up to date)") for line in said.stdout.splitlines()] == [True] * count, said.stdout
        assert said.stderr == ""
    assert state(earlier) == before


def test_it_is_verified_against_the_training_model(earlier: Path, run: Run) -> None:
    before = {name: facts for name, facts in state(earlier).items() if "/stamps/" not in name}
    said = right(run("verify", "done", cwd=earlier)).stdout.splitlines()
    made = {line.partition(":")[0] for line in said if line.endswith(": unchanged since it was made")}
    stamps = (json.loads(path.read_text("utf-8")) for path in earlier.glob("runs/done/stamps/*.json"))
    assert made == {f"runs/done/{stamp['output']}" for stamp in stamps}
    for quant in ("q4_0", "q8_0"):
        [line] = [line for line in said if line.startswith(f"done-{quant}.gguf: ")]
        assert "rows of weights as merged; against the training model: logits off by" in line
    assert any(line.startswith("done-adapter.gguf: ") and "byte for byte" in line for line in said)
    # On another kind of CPU a stamp may get another figure of how close its file is.
    assert {name: facts for name, facts in state(earlier).items() if "/stamps/" not in name} == before


@pytest.mark.usefixtures("same_makers")
@pytest.mark.parametrize(("command", "page"), [(EVAL, "runs/done"), (EVAL_FILE, "evals/mine-q8_0")])
def test_nothing_is_measured_again(command: tuple[str, ...], page: str, earlier: Path, light_run: Run) -> None:
    before = state(earlier)
    said = right(light_run(*command, cwd=earlier))
    assert said.stdout.splitlines()[-1] == f"{page}/eval/report.html  (up to date: nothing was measured again)"
    assert said.stderr == ""
    assert state(earlier) == before


def test_runs_are_listed_and_shown(earlier: Path, light_run: Run) -> None:
    before = state(earlier)
    rows = {row["name"]: row for row in json.loads(right(light_run("runs", "--json", cwd=earlier)).stdout)}
    assert {name: (row["state"], row["steps"], row["sweep"]) for name, row in rows.items()} == {
        "done": ("finished", 8, None),
        "stopped": ("stopped", 6, None),
        "sweep-000": ("finished", 8, "sweep"),
        "sweep-001": ("stopped", 2, "sweep"),
    }
    assert set(rows["done"]["exports"]) == {path.name for path in earlier.glob("runs/done/export/*.gguf")}
    table = right(light_run("runs", cwd=earlier)).stdout
    assert re.search(r"^sweep +sweep +small +lowest of sweep-000 +1 of 2 done", table, re.MULTILINE), table
    shown = right(light_run("runs", "show", "done", cwd=earlier)).stdout
    loss, held_out = lines(earlier / "runs/done/metrics.jsonl")[-2:]
    assert re.search(rf"^loss +{loss['loss']:.4f}$", shown, re.MULTILINE), shown
    assert re.search(rf"^eval loss +{held_out['eval_loss']:.4f}$", shown, re.MULTILINE), shown
    compared = json.loads(right(light_run("runs", "compare", "done", "stopped", "--json", cwd=earlier)).stdout)
    changed = {"lora.dropout", "train.batch_size", "train.gradient_accumulation", "train.save_steps", "eval.steps"}
    assert compared["recipe"].keys() == changed
    newest = right(light_run("runs", "show", cwd=earlier)).stdout
    assert re.search(r"^run +sweep-001$", newest, re.MULTILINE), newest
    assert state(earlier) == before


@pytest.mark.parametrize(
    ("setting", "named"),
    [("lora.r=8", "lora.r was 4 and is 8"), ("train.seed=1", "train.seed was 3407 and is 1")],
)
def test_another_recipe_is_refused(setting: str, named: str, earlier: Path, fails: Fails) -> None:
    naming = (f"runs/done was made with another recipe, base or data: {named}",)
    fails(*TRAIN, "--set", setting, cwd=earlier, naming=naming, hinting=("--fresh", "--run NAME"))


def test_other_data_is_refused(earlier: Path, fails: Fails, row: Callable[..., str]) -> None:
    with (earlier / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write(row("one more"))
    fails(
        *TRAIN,
        cwd=earlier,
        naming=("runs/done was made with another recipe, base or data: the data data.jsonl has changed",),
    )


def test_a_stopped_training_goes_on_from_its_checkpoint(earlier: Path, run: Run, tmp_path: Path) -> None:
    """It was killed while it wrote the checkpoint of step 6; the one before is of step 3, in the middle of an epoch."""
    stopped, whole = earlier / "runs/stopped", tmp_path / "whole/runs/stopped"
    shutil.copytree(earlier, tmp_path / "whole", ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl"))
    saved = "checkpoints/checkpoint-3/adapter_model.safetensors"
    before, known = (stopped / saved).read_bytes(), record(stopped)
    first = lines(stopped / "metrics.jsonl")

    said = right(run(*STOPPED, cwd=earlier)).stderr
    assert "taking over the lock of process" in said
    assert "skipping runs/stopped/checkpoints/checkpoint-6: it was not finished" in said
    assert "resuming from step 3" in said
    assert not re.search(r"^(train|eval): ", said, re.MULTILINE), "its data was prepared again"
    figures = lines(stopped / "metrics.jsonl")
    assert [(row["step"], "loss" in row) for row in figures] == [
        *[(1, True), (2, True), (2, False), (3, True), (4, True), (4, False)],
        *[(5, True), (6, True), (6, False), (7, True), (8, True), (8, False)],
    ]
    # The lines up to the checkpoint are those that were there, speeds and all; those after it are written anew.
    assert figures[:4] == first[:4]
    assert figures[4:9] != first[4:9]
    assert json.loads((stopped / "summary.json").read_text("utf-8"))["resumed_from_step"] == 3
    assert record(stopped) == known

    # What an undisturbed training of the same recipe ends with, of the same day, here and now.
    said = right(run(*STOPPED, "--set", "train.keep_checkpoints=4", cwd=tmp_path / "whole")).stderr
    assert "resuming from step" not in said
    [mine, theirs] = (path / "adapter/adapter_model.safetensors" for path in (stopped, whole))
    assert distance(mine, theirs) < 1e-3
    # On a CPU that computes as the one did that the checkpoint is of, it is the same to the byte.
    if (whole / saved).read_bytes() == before:
        assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.usefixtures("same_makers")
def test_a_folder_of_exports_is_up_to_date(earlier: Path, light_run: Run) -> None:
    before = state(earlier)
    said = right(light_run(*EXPORT_FOLDER, cwd=earlier))
    assert [line.endswith("  (up to date)") for line in said.stdout.splitlines()] == [True] * 3, said.stdout
    assert state(earlier) == before
    for place in ("exports/mine", FILE):
        checked = right(light_run("verify", place, cwd=earlier)).stdout
        assert f"{FILE}: unchanged since it was made" in checked
        assert "rows of weights as merged" in checked
    assert state(earlier) == before


def held(path: Path) -> dict[str, Any]:
    """The values of a GGUF's keys, and the types and bytes of its tensors."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return keys | {t.name: (t.tensor_type, t.data.tobytes()) for t in reader.tensors}


@pytest.mark.usefixtures("same_makers")
@pytest.mark.parametrize("name", ["half", "moved"])
def test_a_killed_export_is_finished(name: str, earlier: Path, light_run: Run) -> None:
    """One was killed while it wrote a file, the other when that had its final name, and its stamp was still to come."""
    folder, made = earlier / "exports" / name, f"exports/{name}/mine-q8_0.gguf"
    command = ("export", "mine", "--base", "./base", "--quant", "q8_0", "--out", f"exports/{name}")
    before = state(folder)
    said = right(light_run(*command, cwd=earlier))
    assert "taking over the lock of process" in said.stderr
    # What is written now says the size of the model, too.
    new = {"general.size_label"} if name == "half" else set()
    assert {key: value for key, value in held(earlier / made).items() if key not in new} == held(earlier / FILE)
    assert new <= gguf.GGUFReader(earlier / made).fields.keys()
    stamps = (place / "stamps/mine-q8_0.gguf.json" for place in (folder, earlier / "exports/mine"))
    assert len({json.dumps(inputs(stamp)) for stamp in stamps}) == 1
    assert not (folder / "partial").exists()
    [line] = [line for line in said.stdout.splitlines() if line.startswith(f"{made} ")]
    assert line.endswith("(up to date)") == (name == "moved")
    assert name != "moved" or state(folder)["mine-q8_0.gguf"] == before["mine-q8_0.gguf"]
    again = state(folder)
    assert right(light_run(*command, cwd=earlier)).stdout.count("(up to date)") == 2
    assert state(folder) == again


def test_a_sweep_goes_on(earlier: Path, run: Run) -> None:
    """One of its two trials was done, and the other killed with the sweep."""
    pytest.importorskip("optuna", reason="ggufy-tune[sweep] is not installed")
    before, finished = json.loads((earlier / "runs/sweep/sweep.json").read_text("utf-8")), earlier / "runs/sweep-000"
    begun = swept(earlier)
    kept, log = state(finished), (earlier / "runs/sweep/trials/sweep-000.log").read_bytes()
    said = right(run(*SWEEP, cwd=earlier)).stderr
    assert "trial 0" not in said
    assert "trial 1 goes on: lora.r=4 (1 of 2 done)" in said
    assert state(finished) == kept
    logs = {path.stem: path.read_text("utf-8") for path in earlier.glob("runs/sweep/trials/*.log")}
    assert logs["sweep-000"].encode() == log
    assert "resuming from step 2" in logs["sweep-001"]
    after = json.loads((earlier / "runs/sweep/sweep.json").read_text("utf-8"))
    trials = {trial["trial"]: trial for trial in after["trials"]}
    assert [trials[number]["state"] for number in (0, 1)] == ["done", "done"]
    assert trials[0] == next(trial for trial in before["trials"] if trial["trial"] == 0)
    # The day of the first trial is that of all.
    assert [swept(earlier)[key] for key in ("axes", "day")] == [begun["axes"], "2026-01-01"]
    again = state(earlier / "runs/sweep-001")
    assert right(run(*SWEEP, cwd=earlier)).stderr == ""
    assert state(earlier / "runs/sweep-001") == again


def test_another_sweep_is_refused(earlier: Path, fails: Fails) -> None:
    pytest.importorskip("optuna", reason="ggufy-tune[sweep] is not installed")
    naming = ("the sweep sweep was started with other options: train.max_steps was 8 and is 9",)
    fails(*SWEEP, "--set", "train.max_steps=9", cwd=earlier, naming=naming)


def test_the_built_in_model_is_still_the_one_in_the_cache(run: Run, env: dict[str, str], tmp_path: Path) -> None:
    """Its folder is named for all that it is made from."""
    right(run("data", "--recipe", "tiny", cwd=tmp_path))
    assert TINY in [path.name for path in Path(env["GGUFY_CACHE"]).iterdir()]
