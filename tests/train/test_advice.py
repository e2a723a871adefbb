"""What is said about a training's losses, memory, backend and curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ggufy.errors import RecipeError, TrainError
from ggufy.recipe import recipe
from ggufy.train import job, loss_curve, memory, summary

TINY = recipe.load("tiny")
BIG = recipe.load("3b_qlora", ["train.batch_size=3", "train.gradient_accumulation=4"])


def history(train: list[float], eval_losses: dict[int, float] | None = None) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"step": step, "loss": loss} for step, loss in enumerate(train, 1)]
    return steps + [{"step": step, "eval_loss": loss} for step, loss in (eval_losses or {}).items()]


FALLING = [3.0 - 0.1 * step for step in range(20)]


def test_undertrained_only_below_an_epoch_and_while_the_loss_falls() -> None:
    [line] = summary.advice(TINY, history(FALLING), 0.4)
    assert line.startswith("undertrained: 0.40 of an epoch")
    assert "train.max_steps=50 " in line
    assert summary.advice(TINY, history(FALLING), 1.0) == []
    assert summary.advice(TINY, history([1.0] * 20), 0.4) == []
    assert summary.advice(TINY, history(FALLING[:5]), 0.4) == []


def test_overfitting_names_the_step_to_stop_at() -> None:
    risen = {5: 2.0, 10: 1.5, 15: 1.7, 20: 1.9}
    [line] = summary.advice(TINY, history(FALLING, risen), 3.0)
    assert line.startswith("overfitting: the eval loss rose from 1.5000 at step 10 to 1.9000 (+27%)")
    assert "train.max_steps=10" in line
    assert "train.keep_best=true" in line
    assert summary.advice(TINY, history(FALLING, {5: 2.0, 10: 1.5, 20: 1.4}), 3.0) == []
    # Where the training loss rises too it is no overfitting.
    assert summary.advice(TINY, history(FALLING[::-1], risen), 3.0) == []


def test_out_of_memory_gives_the_settings_in_order_with_values() -> None:
    said = "CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 14.56 GiB"
    error = memory.out_of_memory(BIG, said, gpu=True)
    assert error.message.startswith("out of GPU memory (1.96 GiB more was needed)")
    knobs = [line.split("  ")[1] for line in error.message.replace("  1.", " 1.").splitlines()[1:] if "--set" in line]
    order = [line.partition("--set ")[2].partition("=")[0] for line in error.message.splitlines() if "--set" in line]
    expected = ["train.batch_size", "train.optimizer", "model.max_length", "lora.r", "lora.target_modules"]
    assert [key for key in order if key in expected] == expected
    assert knobs
    assert "--set train.batch_size=1 --set train.gradient_accumulation=12  the same step" in error.message
    assert "model.load_in" not in error.message  # it is 4bit already


@pytest.mark.parametrize("backend_gpu", [True, False])
def test_every_advised_setting_is_one(backend_gpu: bool) -> None:
    for wanted in (TINY, BIG):
        for knob in memory.advice(wanted, gpu=backend_gpu):
            settings = [part.split()[0] for part in knob.split("--set ")[1:]]
            assert settings
            smaller = recipe.load("tiny" if wanted is TINY else "3b_qlora", settings)
            assert smaller.differences(wanted)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_one: bool) -> None:
    with pytest.raises(TrainError if is_one else RuntimeError), memory.explained(TINY, gpu=False):
        raise error


@pytest.mark.parametrize(
    ("losses", "patience", "stalled"),
    [
        ([3.0, 2.0, 1.0], 2, False),
        ([3.0, 2.0, 2.0, 2.5], 2, True),
        ([3.0, 2.0, 2.5, 1.9], 2, False),
        ([3.0, 3.1], 2, False),
        ([3.0, 3.1], None, False),
    ],
)
def test_when_evaluations_have_stalled(losses: list[float], patience: int | None, stalled: bool) -> None:
    assert loss_curve.has_stalled(list(enumerate(losses)), patience) is stalled


def test_an_eval_loss_that_is_no_number_is_never_the_best() -> None:
    log = [{"step": step, "eval_loss": loss} for step, loss in ((2, math.nan), (4, 0.5), (6, 0.6), (8, 0.7))]
    assert loss_curve.best(loss_curve.logged(log)) == (4, 0.5)
    assert loss_curve.has_stalled(loss_curve.logged(log), 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.keep_best=true"], "set eval.steps"),
        (["train.early_stopping=3"], "set eval.steps"),
        (["train.packing=true", "train.group_by_length=true"], "leave one of the two out"),
        (["train.early_stopping=0"], "train.early_stopping"),
    ],
)
def test_settings_that_do_not_fit_together(settings: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe.load("tiny", settings)


def test_unsloth_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainError, match="needs a CUDA GPU"):
        job.check_device(recipe.load("tiny", ["train.backend=unsloth"]))
    job.check_device(TINY)
    assert job.choose(TINY, None) == ("hf", "because there is no CUDA GPU here")
    assert job.choose(recipe.load("tiny", ["train.backend=hf"]), None) == ("hf", "as asked")


def test_a_run_goes_on_with_the_backend_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(job, "find_spec", lambda _: object())
    assert job.choose(BIG, None) == ("unsloth", "the faster one on a GPU")
    assert job.choose(BIG, "hf") == ("hf", "because this run began with it")
    assert job.choose(recipe.load("3b_qlora", ["model.load_in=8bit"]), None)[0] == "hf"
    monkeypatch.setattr(job, "find_spec", lambda _: None)
    assert job.choose(BIG, None)[0] == "hf"


def test_the_smoothed_curve_begins_at_the_first_loss_and_follows() -> None:
    assert loss_curve.smoothed([(1, 4.0)]) == [(1, pytest.approx(4.0))]
    flat = loss_curve.smoothed([(step, 2.0) for step in range(50)])
    assert all(loss == pytest.approx(2.0) for _, loss in flat)
    jump = dict(loss_curve.smoothed([(step, 2.0 if step < 30 else 1.0) for step in range(100)]))
    assert 1.8 < jump[31] < 2.0
    assert jump[99] == pytest.approx(1.0, abs=0.01)


def test_the_picture_is_made_from_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = history(FALLING, {10: 1.5, 20: 1.9})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "loss.png"
    assert loss_curve.draw(tmp_path / "metrics.jsonl", out, "a run")
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG")
    width, height = (int.from_bytes(first[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (960, 540)
    # Other losses, another picture.
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-2]))
    loss_curve.draw(tmp_path / "metrics.jsonl", out, "a run")
    assert out.read_bytes() != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_nothing_was_logged_no_picture(tmp_path: Path) -> None:
    assert not loss_curve.draw(tmp_path / "metrics.jsonl", tmp_path / "loss.png", "a run")
    assert not list(tmp_path.iterdir())


def test_the_line_of_progress_tells_loras_own_share() -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(100, 50, bias=False), torch.nn.Linear(50, 10, bias=False))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([model[1].weight])
    # Before its first step an optimizer holds nothing.
    assert memory.of_adapter(model, optimizer) == (2000, 2000, 0)
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    assert memory.of_adapter(model, optimizer).values() == {
        "weights": 2000,
        "gradients": 2000,
        "optimizer": 4000,
        "total": 8000,
    }
    own = memory.Adapter(100 * 2**20, 100 * 2**20, 56 * 2**20)
    assert memory.shown(5 * 2**30, 6 * 2**30, own) == "GPU 5.0 GiB, 6.0 reserved, 0.25 for LoRA"
