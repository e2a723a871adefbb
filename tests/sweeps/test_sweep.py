"""`ggufy sweep`: real trainings that are killed, shared and fail; and, by a formula instead, who does which trial."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from ggufy import installed, pipeline
from ggufy.errors import GgufyError, RunError, SweepError
from ggufy.recipe import recipe
from ggufy.sweeps import definition, report, sampler, storage, sweep, work
from ggufy.sweeps.study import Study
from ggufy.sweeps.trials import DIVERGED, DONE, ERROR, FAILED, OPEN, PRUNED
from tests.conftest import Process

pytest.importorskip("optuna", reason="ggufy-tune[sweep] is not installed")

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]

SMALL = ("train.max_steps=6", "train.save_steps=2", "data.train_size=4", "data.eval_size=4", "eval.steps=2")
SETTINGS = tuple(part for setting in SMALL for part in ("--set", setting))
# The second value makes the weights of the first step overflow.
SWEEP = ("sweep", "--recipe", "tiny", *SETTINGS, "--grid", "lora.alpha=64,1e30,32")
HELD_OUT = ("--recipe", "tiny", "--set", "data.eval_size=4")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with a sweep that was killed in its first trial and then finished by two processes; their answers."""
    folder = tmp_path_factory.mktemp("swept")
    command = [sys.executable, "-m", "ggufy", *SWEEP, "--json"]

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    first = begin()
    while not list(folder.glob("runs/tiny-sweep-000/checkpoints/*/manifest.json")) and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.communicate()[0] == ""
    both = [begin(), begin()]
    answers = []
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "Traceback" not in err
        answers.append(json.loads(out))
    return folder, answers


def by_values(answer: dict[str, Any]) -> dict[float, dict[str, Any]]:
    return {trial["values"]["lora.alpha"]: trial for trial in answer["trials"]}


def finished(swept: tuple[Path, list[dict[str, Any]]]) -> dict[str, Any]:
    """What sweep.json says at the end."""
    found: dict[str, Any] = json.loads((swept[0] / "runs/tiny-sweep/sweep.json").read_text("utf-8"))
    return found


def test_each_point_is_one_trial_scored_by_its_runs_held_out_loss(
    swept: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, answers = swept
    assert any(len(answer["trials"]) == 3 for answer in answers)
    trials = by_values(finished(swept))
    assert set(trials) == {64.0, 1e30, 32.0}
    assert [trials[alpha]["state"] for alpha in (64.0, 1e30, 32.0)] == ["done", "failed", "done"]
    for alpha in (64.0, 32.0):
        summary = json.loads((folder / "runs" / trials[alpha]["run"] / "summary.json").read_text("utf-8"))
        assert trials[alpha]["loss"] == summary["eval_loss"]
    assert trials[64.0]["loss"] != trials[32.0]["loss"]


def test_a_killed_trial_went_on_and_no_other_was_trained_twice(swept: tuple[Path, list[dict[str, Any]]]) -> None:
    logs = {path.stem: path.read_text("utf-8") for path in swept[0].glob("runs/tiny-sweep/trials/*.log")}
    assert {name: log.count("backend: ") for name, log in logs.items()} == {
        "tiny-sweep-000": 2,
        "tiny-sweep-001": 1,
        "tiny-sweep-002": 1,
    }
    assert "resuming from step" in logs["tiny-sweep-000"]
    assert sorted(path.name for path in swept[0].glob("runs/*")) == ["tiny-sweep", *sorted(logs)]


def test_a_trial_that_diverges_is_recorded_and_the_sweep_goes_on(swept: tuple[Path, list[dict[str, Any]]]) -> None:
    trial = by_values(finished(swept))[1e30]
    assert trial["loss"] is None
    assert trial["outcome"] == "diverged"
    assert trial["reason"].startswith("training diverged: ")


def test_the_best_is_a_right_recipe_with_its_values(swept: tuple[Path, list[dict[str, Any]]], run: Run) -> None:
    folder, found = swept[0], finished(swept)
    done = [trial for trial in found["trials"] if trial["state"] == "done"]
    best = min(done, key=lambda trial: trial["loss"])
    assert found["best_run"] == best["run"]
    assert found["trials"][0] == best
    checked = run("recipes", "check", found["best_recipe"], cwd=folder)
    assert checked.returncode == 0, checked.stderr
    shown = yaml.safe_load(run("recipes", "show", found["best_recipe"], cwd=folder).stdout)
    trained = json.loads((folder / "runs" / best["run"] / "run.json").read_text("utf-8"))["recipe"]
    assert shown["lora"] == trained["lora"]
    assert shown["train"] == trained["train"]
    picture = (folder / found["plot"]).read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) > 10_000


def test_again_it_trains_nothing_and_a_trial_is_an_ordinary_run(
    swept: tuple[Path, list[dict[str, Any]]], run: Run
) -> None:
    folder = swept[0]
    logs = {path: path.read_bytes() for path in folder.glob("runs/tiny-sweep/trials/*.log")}
    again = run(*SWEEP, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert {path: path.read_bytes() for path in logs} == logs
    best = finished(swept)["best_run"]
    assert f"next: ggufy export {best}" in again.stdout
    rows = [line.split() for line in again.stdout.splitlines()]
    assert rows[0][:2] == ["trial", "state"]
    assert [row[1] for row in rows[1:4]] == ["done", "done", "failed"]
    assert rows[1][-1] == best
    by_hand = run("train", "--recipe", f"runs/tiny-sweep/trials/{best}.yaml", "--run", best, cwd=folder)
    assert by_hand.returncode == 0, by_hand.stderr
    assert f"runs/{best}/adapter is up to date" in by_hand.stderr


def test_runs_are_listed_with_their_sweep(swept: tuple[Path, list[dict[str, Any]]], run: Run) -> None:
    listed = run("runs", cwd=swept[0])
    assert listed.returncode == 0, listed.stderr
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names[1] == "tiny-sweep"
    assert sorted(names[2:]) == ["tiny-sweep-000", "tiny-sweep-001", "tiny-sweep-002"]
    assert "2 of 3 done" in listed.stdout
    rows = json.loads(run("runs", "--json", cwd=swept[0]).stdout)
    assert {row["sweep"] for row in rows} == {"tiny-sweep"}


def test_interrupted_it_says_how_to_go_on(tmp_path: Path, start: Callable[..., Process]) -> None:
    long = [part.replace("max_steps=6", "max_steps=5000") for part in SWEEP]
    process = start(*long, cwd=tmp_path, log=tmp_path / "log")
    while not list(tmp_path.glob("runs/*/checkpoints/*/manifest.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    said = (tmp_path / "log").read_text("utf-8").splitlines()
    assert said[-2] == "stopped after 0 of 3 trials"
    assert said[-1].startswith("hint: run the same command again to continue")
    assert "with a checkpoint saved" in (tmp_path / "runs/tiny-sweep/trials/tiny-sweep-000.log").read_text("utf-8")


def test_what_is_wrong_with_the_machine_stops_the_sweep(tmp_path: Path, fails: Fails) -> None:
    wrong = ("sweep", *HELD_OUT, "--set", "data.source=gone.jsonl", "--grid", "lora.r=8,16")
    fails(*wrong, cwd=tmp_path, naming=["trial 0 failed", "gone.jsonl"], works=True)


@pytest.mark.parametrize(
    ("options", "naming", "hinting"),
    [
        ({"overrides": ["data.eval_size=0"]}, "tiny holds out no conversations", "data.eval_size=20"),
        ({"grid": []}, "needs something to vary", "--grid lora.r=8,16,32"),
        ({"grid": ["lora.r"]}, "--grid lora.r: expected section.key=values", ""),
        ({"grid": ["lora.r="]}, "--grid lora.r=: no values", ""),
        ({"grid": ["lora.r=[8"]}, "the values are not a list", ""),
        ({"grid": ["lora.r=8,0"]}, "--grid lora.r=8,0: lora.r: expected", ""),
        ({"grid": ["lora.rr=8"]}, "--grid lora.rr=8: lora.rr: unknown key; did you mean r?", ""),
        ({"grid": ["name=a,b"]}, "--grid name=a,b: expected section.key=values", ""),
        ({"grid": ["name.x=a,b"]}, "name is not a section of a recipe", ""),
        ({"grid": ["lora.r=8", "lora.r=9"]}, "lora.r is varied already, by --grid lora.r=8", ""),
        ({"grid": ["export.quants=[f16],[q8_0]"]}, "export only says what is done with a run", "lora, train or model"),
        ({"grid": ["tracking.log_steps=1,2"]}, "tracking only says", ""),
        ({"grid": ["train.save_steps=1,2"]}, "train.save_steps does not change the adapter", ""),
        ({"grid": ["eval.steps=1,2"]}, "eval.steps only says when and how", ""),
        ({"grid": ["data.train_size=10,20"]}, "changes the held-out conversations", "data.eval_split"),
        ({"grid": ["model.max_length=64,128"]}, "changes the held-out conversations", ""),
        (
            {"grid": [f"train.seed={','.join(map(str, range(101)))}", f"lora.r={','.join(map(str, range(1, 11)))}"]},
            "the grid has 1,010 points",
            "--sampler tpe",
        ),
        ({"ranges": ["lora.r=8..16"]}, "--range lora.r=8..16: a grid has no ranges", "--sampler tpe"),
        ({"trials": 3}, "a grid has as many trials as points", ""),
        ({"sampler": "tpe", "ranges": ["train.seed=8"]}, "expected key=low..high", ""),
        ({"sampler": "tpe", "ranges": ["train.seed=16..8"]}, "16 is not below 8", ""),
        ({"sampler": "tpe", "ranges": ["train.learning_rate=1e-3..x"]}, "train.learning_rate: expected", ""),
        ({"sampler": "tpe", "ranges": ["lora.dropout=0..0.5:log"]}, "must begin above 0", ""),
        ({"sampler": "tpe", "ranges": ["lora.alpha=0.5..3:int"]}, "must be whole numbers", ""),
        ({"sampler": "tpe", "ranges": ["train.schedule=1..2"]}, "train.schedule", ""),
        ({"sampler": "tpe", "ranges": ["train.packing=0..1"]}, "is not a number", "--grid train.packing"),
        ({"prune": True}, "--prune needs the held-out loss", "eval.steps"),
        ({"name": "a/b"}, "'a/b' cannot be the name", ""),
        ({"storage": "sqlite://"}, "lost at the end of this process", "name a file"),
        ({"storage": "nonsense"}, "not a storage URL", "sqlite:///"),
        ({"storage": "sqlite:////gone/a.db"}, "sqlite:////gone/a.db cannot be used", "can be reached"),
        ({"storage": "postgresql+none://u:secret@h/d"}, "u:***@h/d cannot be used", ""),
    ],
)
def test_bad_input_is_one_line(
    options: dict[str, Any], naming: str, hinting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGUFY_RUNS", str(tmp_path / "runs"))
    with pytest.raises(GgufyError) as caught:
        sweep.sweep("tiny", **{"overrides": ["data.eval_size=4"], "grid": ["lora.r=8"], **options})
    assert naming in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert hinting in caught.value.hint
    assert "secret" not in caught.value.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "naming"),
    [
        ({"overrides": ["data.eval_size=4", "train.learning_rate=1e-3"]}, "train.learning_rate was 0.002 and is 0.001"),
        ({"grid": ["lora.r=8,32"]}, "lora.r also had 16"),
        ({"grid": ["lora.alpha=8,16"]}, "it varied lora.r and now varies lora.alpha"),
        ({"sampler": "tpe"}, "the sampler was grid and is tpe"),
    ],
    ids=str,
)
def test_another_sweep_is_not_mixed_in(
    changes: dict[str, Any], naming: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = study_of(tmp_path, monkeypatch, "lora.r=8,16").claim()
    assert claim is not None
    claim.lock.close()
    options = {"overrides": ["data.eval_size=4"], "grid": ["lora.r=8,16"], **changes}
    with pytest.raises(SweepError, match=re.escape(naming)) as caught:
        sweep.sweep("tiny", **options)
    assert caught.value.hint == "give --name NAME to start another sweep"


def test_runs_of_another_sweep_are_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/tiny-sweep-007").mkdir(parents=True)
    with pytest.raises(RunError, match="tiny-sweep-007 already exists"):
        study_of(tmp_path, monkeypatch, "lora.r=8,16")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "tiny-sweep-007"]


def test_without_optuna_the_command_that_brings_it(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['optuna'] = None\n", "utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), env.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "ggufy", "sweep", *HELD_OUT, "--grid", "lora.r=8"]
    done = subprocess.run(command, cwd=tmp_path, env=env | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: ggufy sweep needs the package optuna, which is not installed",
        f"hint: {installed.command('sweep')}",
    ]


def test_a_dry_run_lists_the_trials_and_starts_nothing(tmp_path: Path, run: Run) -> None:
    grid = ("--grid", "lora.r=8,16,8", "--grid", "train.learning_rate=5e-5,0.00005,2e-4")
    done = run("sweep", *HELD_OUT, *grid, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    assert done.stdout.startswith("tiny-sweep: 4 trials of tiny, by grid\n")
    cells = [line.split()[:4] for line in done.stdout.splitlines()[4:8]]
    assert cells == [
        ["0", "8", "5e-05", "80"],
        ["1", "8", "0.0002", "80"],
        ["2", "16", "5e-05", "80"],
        ["3", "16", "0.0002", "80"],
    ]
    assert "320 steps" in done.stdout


# From here on the trainings are a formula: what is tested is who does which trial, in Optuna's real storage.

LOSS = "abs(point['lora.r'] - 24) + 1e3 * point.get('train.learning_rate', 0.0)"
WORKER = f"""
import sys, time
from ggufy import pipeline
from ggufy.recipe import recipe
from ggufy.errors import GgufyError, RunError, SweepError
from ggufy.sweeps import definition, report, sampler, sweep, work
from ggufy.sweeps.study import Study
base = recipe.load("tiny", ["data.eval_size=4"])
grid = ["lora.r=" + ",".join(map(str, range(1, 13))), "train.learning_rate=1e-4,1e-3"]
study = Study(definition.make(base, grid, []))
while claim := study.claim():
    point = claim.trial.point
    with open(sys.argv[1], "a") as file:
        file.write(f"{{claim.trial.number}}\\n")
    study.finish(claim, "done", {LOSS})
"""


def loss(point: dict[str, Any]) -> float:
    return float(eval(LOSS, {"abs": abs, "point": point}))


def study_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *grid: str, ranges: tuple[str, ...] = (), **rest: Any
) -> Study:
    monkeypatch.setenv("GGUFY_RUNS", str(tmp_path / "runs"))
    base = recipe.load("tiny", ["data.eval_size=4"])
    return Study(definition.make(base, grid, ranges, **rest))


TPE = {
    "ranges": ("lora.r=8..64:int", "train.learning_rate=1e-5..1e-3:log"),
    "sampler": "tpe",
    "trials": 13,
}


def test_processes_that_are_killed_at_any_time_do_each_point_once(tmp_path: Path, env: dict[str, str]) -> None:
    def begin(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER, name], cwd=tmp_path, env=env)

    for wait in (0.9, 1.1):
        process = begin("killed")
        time.sleep(wait)
        process.kill()
        process.wait()
    both = [begin("one"), begin("two")]
    assert [process.wait(60) for process in both] == [0, 0]
    os.environ["GGUFY_RUNS"] = str(tmp_path / "runs")
    try:
        base = recipe.load("tiny", ["data.eval_size=4"])
        grid = ["lora.r=" + ",".join(map(str, range(1, 13))), "train.learning_rate=1e-4,1e-3"]
        trials = Study(definition.make(base, grid, [])).trials()
    finally:
        del os.environ["GGUFY_RUNS"]
    assert len(trials) == 24
    assert {trial.state for trial in trials} == {DONE}
    assert all(trial.loss == loss(trial.point) for trial in trials)
    done = [
        line for name in ("one", "two") if (tmp_path / name).exists() for line in (tmp_path / name).read_text().split()
    ]
    assert len(done) == len(set(done))


def test_two_workers_never_hold_the_same_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = study_of(tmp_path, monkeypatch, "lora.r=8,16,32")
    two = study_of(tmp_path, monkeypatch, "lora.r=8,16,32")
    claims = [claim for study in (one, two, one) if (claim := study.claim())]
    assert [claim.trial.point["lora.r"] for claim in claims] == [8, 16, 32]
    assert two.claim() is None
    # A worker that dies drops its lock; the other goes on with what it had.
    one.release(claims[0])
    again = two.claim()
    assert again is not None
    assert again.resumed
    assert again.trial.number == claims[0].trial.number
    for claim in (*claims[1:], again):
        claim.lock.close()


def test_values_can_be_added_to_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = study_of(tmp_path, monkeypatch, "lora.r=8,16")
    while claim := first.claim():
        first.finish(claim, DONE, loss(claim.trial.point))
    more = study_of(tmp_path, monkeypatch, "lora.r=32,8,16")
    claim = more.claim()
    assert claim is not None
    assert claim.trial.point == {"lora.r": 32}
    more.finish(claim, DONE, 1.0)
    assert more.claim() is None
    assert len(more.trials()) == 3


def points(study: Study, until: int = 99) -> list[dict[str, Any]]:
    found = []
    while len(found) < until and (claim := study.claim()):
        found.append(claim.trial.point)
        if claim.trial.number == 3:
            study.finish(claim, FAILED, outcome=DIVERGED, reason="training diverged")
        else:
            study.finish(claim, DONE, loss(claim.trial.point))
    return found


def test_tpe_goes_on_as_if_it_had_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = points(study_of(tmp_path / "a", monkeypatch, **TPE))
    assert len(whole) == 13
    parts: list[dict[str, Any]] = []
    for until in (1, 5, 4, 99):
        parts += points(study_of(tmp_path / "b", monkeypatch, **TPE), until)
    assert parts == whole
    assert all(8 <= point["lora.r"] <= 64 and isinstance(point["lora.r"], int) for point in whole)
    assert all(1e-5 <= point["train.learning_rate"] <= 1e-3 for point in whole)
    # It looks where losses are low: after the random beginning it is nearer to the minimum.
    losses = [loss(point) for point in whole]
    assert sorted(losses[10:])[1] < sorted(losses[:10])[4]
    other = points(study_of(tmp_path / "c", monkeypatch, **TPE, seed=1))
    assert other != whole


def test_tpe_takes_the_loss_of_a_point_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, monkeypatch, "lora.r=8,16", sampler="tpe", trials=6)
    claimed = points(study)
    assert sorted(point["lora.r"] for point in claimed) == [8, 16]
    trials = study.trials()
    assert len(trials) == 6
    assert {trial.state for trial in trials} == {DONE}
    assert len({trial.run for trial in trials}) == 2


def test_tpe_learns_that_values_cannot_be_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = ("train.packing=true", "train.group_by_length=true")
    study = study_of(tmp_path, monkeypatch, *choices, sampler="tpe", trials=2)
    with work.Stop() as stop:
        work.work(study, stop, lambda: None)
    [first, second] = study.trials()
    assert (first.state, second.state) == (FAILED, FAILED)
    assert "whose rows are full" in first.facts["reason"]


def test_an_error_of_the_machine_is_tried_again_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, monkeypatch, "lora.r=8,16")
    claim = study.claim()
    assert claim is not None
    study.finish(claim, FAILED, outcome=ERROR, reason="no space left on the disk")
    claim = study.claim()
    assert claim is not None
    study.finish(claim, FAILED, outcome=DIVERGED, reason="training diverged")
    assert study.claim() is None
    again = study_of(tmp_path, monkeypatch, "lora.r=8,16")
    again.retry_errors()
    claim = again.claim()
    assert claim is not None
    assert claim.trial.point == {"lora.r": 8}
    assert claim.trial.run == "tiny-sweep-000"
    again.finish(claim, DONE, 2.0)
    assert again.claim() is None
    assert [(trial.point["lora.r"], trial.state) for trial in again.trials()] == [(16, FAILED), (8, DONE)]


def test_machines_share_a_storage_and_outlive_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    one = study_of(tmp_path / "a", monkeypatch, "lora.r=8,16", storage=storage)
    two = study_of(tmp_path / "b", monkeypatch, "lora.r=8,16", storage=storage)
    lost, held = one.claim(), two.claim()
    assert lost is not None
    assert held is not None
    two.finish(held, DONE, 1.0)
    assert two.claim() is None  # the other machine may be at work
    with one.alone():
        one.storage.set_trial_user_attr(one._id(lost.trial.number), "sign", time.time() - 3600)
    taken = two.claim()
    assert taken is not None
    assert taken.trial.point == lost.trial.point
    caplog.set_level("INFO", logger="ggufy")
    one.finish(lost, DONE, 7.0)  # it was only slow
    assert "was taken over by another machine" in caplog.text
    two.finish(taken, DONE, 2.0)
    assert sorted(trial.loss or 0.0 for trial in one.trials()) == [1.0, 2.0]


def test_a_worse_trial_is_stopped_where_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Four trials by a formula that no training can beat, and a real one that has to give way."""
    settings = ("--set", "train.max_steps=2000", "--set", "train.save_steps=1000", "--set", "data.train_size=2")
    given = ("sweep", *HELD_OUT, "--set", "eval.steps=2", *settings, "--prune", "--grid", "lora.r=1,2,3,4,5")
    monkeypatch.setenv("GGUFY_RUNS", str(tmp_path / "runs"))
    changes = [part for part in (*HELD_OUT, *given, *settings) if "=" in part and not part.startswith("lora.r=")]
    study = Study(definition.make(recipe.load("tiny", changes), ["lora.r=1,2,3,4,5"], [], prune=True))
    for value in (1, 2, 3, 4):
        claim = study.claim()
        assert claim is not None
        assert not study.report(claim, 2, value / 100)
        facts = {"held_out": "x", "data": "x", "base": "x"}
        study.finish(claim, DONE, value / 100, **facts)
    done = run(*given, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trial = next(trial for trial in json.loads(done.stdout)["trials"] if trial["values"]["lora.r"] == 5)
    assert trial["state"] == PRUNED
    assert "above the median" in trial["reason"]
    assert "with a checkpoint saved" in (tmp_path / "runs/tiny-sweep/trials/tiny-sweep-004.log").read_text("utf-8")
    assert OPEN not in {one.state for one in study.trials()}


def test_what_a_key_has_to_do_with_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two factors, 3 x 2, without interaction: 10 r + 20 d has the variances 66.7 and 100 (over 166.7 in all)."""
    study = study_of(tmp_path, monkeypatch, "lora.r=1,2,3", "lora.dropout=0.0,0.5")
    while claim := study.claim():
        assert sampler.importances(study.sweep, study.trials()[:3]) == {}
        study.finish(claim, DONE, 10.0 * claim.trial.point["lora.r"] + 40 * claim.trial.point["lora.dropout"])
    shares = sampler.importances(study.sweep, study.trials())
    assert list(shares) == ["lora.dropout", "lora.r"]
    assert shares == pytest.approx({"lora.dropout": 0.6, "lora.r": 0.4})


def test_the_lowest_loss_becomes_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(
        tmp_path, monkeypatch, "lora.target_modules=all,[q_proj,v_proj],attention", "train.packing=false,true"
    )
    losses = iter([5.0, math.nan, 4.0, 3.0, 3.5, 7.0])
    while claim := study.claim():
        value = next(losses)
        if math.isnan(value):
            study.finish(claim, FAILED, outcome=DIVERGED, reason="training diverged")
        else:
            study.finish(claim, DONE, value)
    found = report.write(study)
    assert [trial.loss for trial in found.trials] == [3.0, 3.5, 4.0, 5.0, 7.0, None]
    assert found.best is not None
    assert found.best.point == {"lora.target_modules": ["q_proj", "v_proj"], "train.packing": True}
    best = pipeline.check(found.best_recipe)
    assert best.lora.target_modules == ("q_proj", "v_proj")
    assert set(study.sweep.recipe.differences(best)) == {"lora.target_modules", "train.packing"}


def test_a_best_value_at_the_end_of_the_grid_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, monkeypatch, "lora.r=8,16,32", "lora.dropout=0.1,0.0,0.2")
    while claim := study.claim():
        study.finish(claim, DONE, 100.0 - claim.trial.point["lora.r"] + abs(claim.trial.point["lora.dropout"] - 0.1))
    said = [line for line in report.lines(report.result(study)) if "there may be" in line]
    assert said == ["the best lora.r is the highest tried, 32: there may be better ones beyond"]


def test_a_storage_whose_making_was_killed_takes_no_name_twice(tmp_path: Path) -> None:
    """Killed at each statement that makes a table or an index; SQLite keeps those before it."""
    killed = """
import os, sqlite3, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from ggufy.sweeps import storage
left = int(sys.argv[2])

@event.listens_for(Engine, "before_cursor_execute")
def before(connection, cursor, statement, *rest):
    global left
    left -= statement.lstrip().startswith("CREATE")
    if left < 0:
        os._exit(9)

storage.open_at(f"sqlite:///{sys.argv[1]}")
"""
    import optuna

    ends = []
    for number in (0, 1, 2, 3, 99):
        path = tmp_path / f"{number}.db"
        ends.append(subprocess.run([sys.executable, "-c", killed, str(path), str(number)]).returncode)
        for _ in range(2):
            opened = storage.open_at(f"sqlite:///{path}")
            optuna.create_study(storage=opened, study_name="one", load_if_exists=True)
        assert len(opened.get_all_studies()) == 1
    assert ends[0] == 9
    assert ends[-1] == 0
