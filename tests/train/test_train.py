"""Training that goes wrong, is started over, or goes on elsewhere: what is kept, and what is said."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
from safetensors.numpy import load_file, save_file

from ggufy.errors import ExportError
from ggufy.export import engine
from ggufy.export.request import Request
from tests.conftest import snapshot
from tests.train.test_kill import finish, kill_when, start

Run = Callable[..., CompletedProcess[str]]


def test_a_diverged_training_is_an_error_and_leaves_no_checkpoint_of_it(run: Run, tmp_path: Path) -> None:
    wild = (
        "train.learning_rate=1",
        "train.max_grad_norm=1e9",
        "train.warmup=2",  # the first step has no rate at all, so its checkpoint is good
        "lora.alpha=1e13",
        "data.train_size=2",
    )
    steps = ("train.max_steps=12", "train.save_steps=1", "train.keep_checkpoints=20")
    changes = [part for change in (*wild, *steps) for part in ("--set", change)]
    done = run("train", "--recipe", "tiny", *changes, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: training diverged" in done.stderr
    assert "learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs/tiny/adapter").exists()
    good = done.stderr.partition("the last good checkpoint is ")[2].split()[0]
    assert (tmp_path / good / "manifest.json").is_file()
    assert f"ggufy export {good}" in done.stderr
    for weights in tmp_path.glob("runs/tiny/checkpoints/*/adapter_model.safetensors"):
        assert all(abs(tensor).max() < float("inf") for tensor in load_file(weights).values()), weights


def test_an_eval_loss_that_is_no_number_ends_a_training(run: Run, tmp_path: Path) -> None:
    """Also where the training's own is not looked at in between; and what it would have been the best of is no best."""
    wild = (
        "train.learning_rate=1",
        "train.max_grad_norm=1e9",
        "train.warmup=2",
        "lora.alpha=1e13",
        "data.train_size=2",
    )
    held = ("data.eval_size=2", "eval.steps=1", "train.keep_best=true", "tracking.log_steps=50", "train.max_steps=12")
    changes = [part for change in (*wild, *held) for part in ("--set", change)]
    done = run("train", "--recipe", "tiny", *changes, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: training diverged: the eval loss became nan at step " in done.stderr
    assert "NaN" not in (tmp_path / "runs/tiny/metrics.jsonl").read_text()
    assert not (tmp_path / "runs/tiny/adapter").exists()


def test_no_loss_because_nothing_is_labelled_is_not_called_divergence(run: Run, tmp_path: Path) -> None:
    """As rows of one token, which an earlier version made of a text's last one, in prepared data that is used again."""
    changes = ("--set", "data.train_size=2", "--set", "train.max_steps=2", "--set", "train.batch_size=1")
    words = ("train", "--recipe", "tiny", *changes, "--set", "train.gradient_accumulation=1")
    assert run(*words, cwd=tmp_path).returncode == 0
    made = tmp_path / "runs/tiny"
    path, stamp = made / "data/train.arrow", made / "stamps/data.json"
    with pa.OSFile(path.as_posix()) as file:
        rows = pa.ipc.open_stream(file).read_all()
    alone = pa.table({name: [[9], rows[name][0].as_py()] for name in ("input_ids", "labels")}, schema=rows.schema)
    with pa.OSFile(path.as_posix(), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(alone)
    facts = json.loads(stamp.read_text())
    size, content = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    [(name, held)] = [(name, held) for name, held in facts["files"].items() if name.endswith("train.arrow")]
    facts["files"][name] = {**held, "size": size, "sha256": content, "mtime_ns": path.stat().st_mtime_ns}
    stamp.write_text(json.dumps(facts))
    done = run(*words, "--fresh", cwd=tmp_path)
    assert done.returncode == 1
    assert "diverged" not in done.stderr
    assert "1 prepared rows have nothing to predict" in done.stderr
    assert "hint: remove runs/tiny/data/, so that they are prepared again" in done.stderr


def test_prepared_data_that_has_changed_is_not_trained_on(run: Run, tmp_path: Path) -> None:
    """A byte of it, and neither its size nor its time."""
    words = ("train", "--recipe", "tiny", "--set", "data.train_size=8", "--set", "train.save_steps=1")
    assert run(*words, "--set", "train.max_steps=2", cwd=tmp_path).returncode == 0
    path = tmp_path / "runs/tiny/data/train.arrow"
    good, state = path.read_bytes(), path.stat()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    path.write_bytes(bad)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    # What is trained does not look at it again; what goes on does.
    assert run(*words, "--set", "train.max_steps=2", cwd=tmp_path).returncode == 0
    done = run(*words, "--set", "train.max_steps=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "runs/tiny/data/train.arrow has been changed since it was prepared; preparing it again" in done.stderr
    assert "resuming from step 2" in done.stderr
    assert path.read_bytes() == good


def test_starting_over_loses_nothing_if_it_cannot_start(quick: Path, run: Run, quick_again: tuple[str, ...]) -> None:
    (quick / "empty.jsonl").write_text("")
    before = snapshot(quick / "runs/quick")
    for change in ("data.source=empty.jsonl", "lora.target_modules=[no_such]", "model.max_length=8", "lora.r=0"):
        done = run("train", *quick_again, "--fresh", "--set", change, cwd=quick)
        assert done.returncode == 1, change
        assert snapshot(quick / "runs/quick") == before, change


def test_starting_over_gives_a_new_run(quick: Path, run: Run, quick_again: tuple[str, ...]) -> None:
    (quick / "runs/quick/mine.txt").write_text("not ggufy's")
    done = run("train", *quick_again, "--fresh", "--set", "train.seed=1", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert json.loads((quick / "runs/quick/run.json").read_text())["recipe"]["train"]["seed"] == 1
    assert not (quick / "runs/quick/export").exists()
    assert (quick / "runs/quick/mine.txt").read_text() == "not ggufy's"


def test_a_folder_that_is_no_run_is_left_alone(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "runs/notes/data"
    mine.mkdir(parents=True)
    (mine / "mine.txt").write_text("x")
    for extra in ((), ("--fresh",)):
        done = run("train", "--recipe", "tiny", "--run", "notes", *extra, cwd=tmp_path)
        assert done.returncode == 1
        assert "already exists, and is not a ggufy run" in done.stderr
    assert (mine / "mine.txt").read_text() == "x"


def test_harmless_changes_are_taken(quick: Path, run: Run, quick_again: tuple[str, ...]) -> None:
    adapter = (quick / "runs/quick/adapter/adapter_model.safetensors").stat()
    changes = ("--set", "train.save_steps=1", "--set", "export.quants=[f16]", "--backend", "hf")
    done = run("train", *quick_again, *changes, cwd=quick)
    assert done.returncode == 0, done.stderr
    assert "is up to date" in done.stderr
    assert (quick / "runs/quick/adapter/adapter_model.safetensors").stat().st_mtime_ns == adapter.st_mtime_ns
    assert json.loads((quick / "runs/quick/run.json").read_text())["recipe"]["export"]["quants"] == ["f16"]


def test_going_on_with_other_libraries_is_said_and_recorded(
    quick: Path, run: Run, quick_again: tuple[str, ...]
) -> None:
    record = quick / "runs/quick/run.json"
    values = json.loads(record.read_text())
    values["versions"]["torch"] = "2.0.0"
    record.write_text(json.dumps(values))
    (quick / "runs/quick/stamps/adapter.json").unlink()
    done = run("train", *quick_again, cwd=quick)
    assert done.returncode == 0, done.stderr
    assert "continuing with other versions than before: torch 2.0.0 ->" in done.stderr
    assert json.loads(record.read_text())["versions"]["torch"] == "2.0.0"
    assert json.loads(record.read_text())["continued_with"]["torch"] != "2.0.0"


@pytest.mark.parametrize("lost", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight"])
def test_a_base_with_a_missing_tensor_is_refused_before_training(
    lost: str, local: Path, run: Run, local_again: tuple[str, ...]
) -> None:
    path = local / "base/model.safetensors"
    weights = safetensors.torch.load_file(path)
    del weights[lost]
    safetensors.torch.save_file(weights, path)
    done = run("train", *local_again, "--run", "other", cwd=local)
    assert done.returncode == 1
    assert lost in done.stderr
    assert not (local / "runs/other").exists()


def test_an_embedding_that_does_not_fit_is_refused(quick: Path, base: Path, tmp_path: Path) -> None:
    """peft saves a whole embedding where tokens were added; one of another size must not be cut to fit."""
    path = quick / "runs/quick/adapter/adapter_model.safetensors"
    embedding = {"base_model.model.model.embed_tokens.weight": np.zeros((776, 256), np.float32)}
    save_file(load_file(path) | embedding, path)
    with pytest.raises(ExportError, match=r"model\.embed_tokens\.weight is \[768, 256\] .* one of \[776, 256\]"):
        engine.export(Request(base, path.parent, {"f16": tmp_path / "x.gguf"}, {"name": "x"}))


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_a_quantized_base_trains_on_the_cpu_and_survives_a_kill(
    load_in: str, tmp_path: Path, env: dict[str, str]
) -> None:
    changes = ("--set", f"model.load_in={load_in}", "--set", "train.optimizer=adamw_8bit")
    train = ("train", "--recipe", "tiny", "--set", "train.max_steps=6", "--set", "train.save_steps=2", *changes)
    folders = [tmp_path / name for name in ("through", "killed")]
    for folder in folders:
        folder.mkdir()
    finish(folders[0], env, *train)
    process = start(folders[1], env, *train)
    sealed = folders[1] / "runs/tiny/checkpoints/checkpoint-4/manifest.json"
    kill_when(process, sealed.exists)
    finish(folders[1], env, *train)
    through, killed = (folder / "runs/tiny/adapter/adapter_model.safetensors" for folder in folders)
    assert through.read_bytes() == killed.read_bytes()
    shutil.rmtree(tmp_path / "through")
