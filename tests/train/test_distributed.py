"""Training in two processes, on the CPU with gloo: the curve of one process, and one clear line when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from safetensors.numpy import load_file

from ggufy.errors import TrainError
from ggufy.recipe import recipe
from ggufy.recipe.schema import Train
from ggufy.train import distributed

Run = Callable[..., CompletedProcess[str]]

TRAIN = ("train", "--recipe", "tiny", "--backend", "hf", "--set", "data.train_size=16", "--set", "lora.r=4")
SHARED = ("--set", "train.max_steps=6", "--set", "train.batch_size=4", "--set", "train.gradient_accumulation=2")
OFTEN = ("--set", "train.save_steps=2")
# Five rows fill up neither a batch of two nor one of two in each of two processes.
HELD_OUT = ("--set", "data.eval_size=5", "--set", "eval.steps=3", "--set", "eval.batch_size=2")


def children(pid: int) -> list[int]:
    return [int(found) for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_two_processes_train_like_one_also_when_one_was_killed(run: Run, tmp_path: Path, env: dict[str, str]) -> None:
    alone = run(*TRAIN, *SHARED, *OFTEN, *HELD_OUT, "--run", "one", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    two = (*TRAIN, *SHARED, *OFTEN, *HELD_OUT, "--run", "two", "--gpus", "2")
    command = [sys.executable, "-m", "ggufy", *two]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stderr=subprocess.PIPE)
    sealed = tmp_path / "runs/two/checkpoints/checkpoint-2/manifest.json"
    while not sealed.exists() and process.poll() is None:
        time.sleep(0.002)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 1
    errors = [line for line in said.splitlines() if line.startswith(("error:", "hint:"))]
    assert errors[0] == "error: process 1 of 2 was killed (SIGKILL), which ended the training"
    assert errors[1].startswith("hint: run the same command again: it continues from step ")
    assert len(errors) == 2
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)

    other = run(*two[:-2], cwd=tmp_path)
    assert other.returncode == 1
    assert "on 2 GPU(s), and this is cpu in float32 on 1 GPU(s)" in other.stderr
    assert "--gpus 2, or with --change-gpus" in other.stderr

    again = run(*two, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("resuming from step") == 1
    for key, steps in (("loss", [1, 2, 3, 4, 5, 6]), ("eval_loss", [3, 6])):
        curves = []
        for name in ("one", "two"):
            lines = map(json.loads, (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines())
            curves.append({entry["step"]: entry[key] for entry in lines if key in entry})
        assert list(curves[0]) == list(curves[1]) == steps
        assert list(curves[1].values()) == pytest.approx(list(curves[0].values()), rel=1e-4)
    weights = [load_file(tmp_path / f"runs/{name}/adapter/adapter_model.safetensors") for name in ("one", "two")]
    assert all(abs(weights[0][name] - weights[1][name]).max() < 1e-3 for name in weights[0])
    summaries = [json.loads((tmp_path / f"runs/{name}/summary.json").read_text()) for name in ("one", "two")]
    assert [summary["samples"] for summary in summaries] == [48, 48]
    assert summaries[0]["tokens"] == summaries[1]["tokens"]


@pytest.mark.parametrize(
    ("batch", "accumulation", "count", "shared"),
    [(4, 2, 2, (4, 1)), (2, 4, 4, (2, 1)), (8, 1, 2, (4, 1)), (3, 2, 3, (2, 1)), (6, 1, 1, (6, 1))],
)
def test_a_step_has_as_many_rows_however_many_share_it(
    batch: int, accumulation: int, count: int, shared: tuple[int, int]
) -> None:
    found = distributed.share(Train(batch_size=batch, gradient_accumulation=accumulation), count)
    assert found == shared
    assert found[0] * found[1] * count == batch * accumulation


def test_a_step_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(TrainError, match=r"a step has 20 rows .* which 3 GPUs cannot share"):
        distributed.check(recipe.load("tiny", ["train.gpus=3"]))


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TrainError, match=r"train\.gpus is 2, but there are 1 GPUs here"):
        distributed.check(recipe.load("tiny", ["train.gpus=2"]))
