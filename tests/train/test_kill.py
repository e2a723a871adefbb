"""kill -9 while training, while saving and while exporting: run again, and the outputs are the same bytes."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Process, begun

TRAIN = ("train", "--recipe", "tiny", "--set", "train.max_steps=12", "--set", "train.save_steps=3")
# Random order, dropout and two gradient steps a step: what a careless resume gets wrong.
HARD = ("--set", "lora.dropout=0.1", "--set", "train.batch_size=3", "--set", "train.gradient_accumulation=2")
EXPORT = ("export", "--quant", "q8_0", "--quant", "q4_k_m")


def start(folder: Path, env: dict[str, str], *arguments: str) -> Process:
    return begun(*arguments, cwd=folder, env=env)


def finish(folder: Path, env: dict[str, str], *arguments: str) -> str:
    process = start(folder, env, *arguments)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    return err


def kill_when(process: Process, happened: Callable[[], bool], number: int = signal.SIGKILL) -> str:
    while not happened() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate()
    return err


def outputs(folder: Path) -> dict[str, bytes]:
    """Everything a run delivers."""
    run = folder / "runs" / "tiny"
    kept = [*run.glob("adapter/*"), *run.glob("export/*"), *run.glob("data/*")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(folder, env, *TRAIN, *HARD)
    finish(folder, env, *EXPORT)
    return folder


def _lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def test_training_killed(uninterrupted: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """Between two checkpoints, and then to the very end; test_train_chaos.py has every other moment."""
    run = tmp_path / "runs" / "tiny"
    process = start(tmp_path, env, *TRAIN, *HARD)
    kill_when(process, lambda: _lines(run / "metrics.jsonl") >= 5)
    assert not (run / "stamps" / "adapter.json").exists(), "killed too late to test anything"
    record = run / "run.json"
    today = record.read_text()
    said = finish(tmp_path, env, *TRAIN, *HARD)
    assert "taking over the lock" in said
    assert record.read_text() == today
    finish(tmp_path, env, *EXPORT)
    assert outputs(tmp_path) == outputs(uninterrupted)
    assert not (run / "partial").exists()
    steps = [line.split(",")[0] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [f'{{"step": {n}' for n in range(1, 13)]


@pytest.mark.parametrize("attempt", range(5))
def test_export_killed(attempt: int, uninterrupted: Path, tmp_path: Path, env: dict[str, str]) -> None:
    shutil.copytree(uninterrupted / "runs", tmp_path / "runs")
    run = tmp_path / "runs" / "tiny"
    shutil.rmtree(run / "export")
    for stamp in run.glob("stamps/export--*"):
        stamp.unlink()
    process = start(tmp_path, env, *EXPORT)
    begun = time.monotonic()
    while not (run / "partial").exists():
        assert process.poll() is None
        assert time.monotonic() - begun < 60
        time.sleep(0.001)
    time.sleep(0.03 * attempt)
    process.kill()
    process.communicate()
    for path in run.glob("export/*"):
        # A final name means a complete file, at any moment.
        assert path.read_bytes() == (uninterrupted / "runs" / "tiny" / "export" / path.name).read_bytes()
    finish(tmp_path, env, *EXPORT)
    assert outputs(tmp_path) == outputs(uninterrupted)
    assert not (run / "partial").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop(number: int, code: int, uninterrupted: Path, tmp_path: Path, env: dict[str, str]) -> None:
    run = tmp_path / "runs" / "tiny"
    process = start(tmp_path, env, *TRAIN, *HARD)
    said = kill_when(process, lambda: _lines(run / "metrics.jsonl") >= 4, number)
    assert process.returncode == code, said
    assert "with a checkpoint saved" in said
    assert "Traceback" not in said
    assert "resuming from step" in finish(tmp_path, env, *TRAIN, *HARD)
    finish(tmp_path, env, *EXPORT)
    assert outputs(tmp_path) == outputs(uninterrupted)
