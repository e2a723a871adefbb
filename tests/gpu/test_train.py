"""What only a GPU can prove: skipped, with the reason, where there is none.

Unproven until this has run on one: QLoRA (4-bit NF4) and 16-bit LoRA of the real 1B and 3B shapes with both backends,
bf16 there, 8-bit optimizers, packing with Unsloth, and resume on CUDA. tests/train/unsloth_signatures.py shows, without
a GPU, only that Unsloth has what is called.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ggufy.model import random_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: training on one is unproven"),
]
VOCABULARY = Path(__file__).parents[2] / "vendor" / "llama.cpp" / "models" / "ggml-vocab-llama-bpe.gguf"
BACKENDS = [
    "hf",
    pytest.param(
        "unsloth",
        marks=pytest.mark.skipif(
            find_spec("unsloth") is None, reason="unsloth is not installed: pip install '.[unsloth]'"
        ),
    ),
]
COMMON = {
    "model.max_length": 1024,
    "data.source": "builtin:samples",
    "data.train_size": 200,
    "data.eval_size": 20,
    "train.max_steps": 60,
    "train.save_steps": 20,
    # Random weights learn little from a small rate in 60 steps.
    "train.learning_rate": 1e-3,
}


@dataclass
class Base:
    name: str
    path: Path
    weights: int
    """Bytes of the 16-bit weights."""


@pytest.fixture(scope="module", params=["1b", "3b"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp(request.param)
    random_llama.write(folder, random_llama.SHAPES[request.param], VOCABULARY)
    return Base(request.param, folder, (folder / "model.safetensors").stat().st_size)


def command(base: Base, backend: str, load_in: str, run: str, **more: Any) -> list[str]:
    settings = COMMON | {"model.base": base.path, "model.load_in": load_in} | more
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    train = [sys.executable, "-m", "ggufy", "train", "--recipe", "1b_qlora", "--backend", backend, "--run", run]
    return train + changes


def finished(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return done.stderr


def losses(run: Path) -> list[float]:
    figures = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in figures if "loss" in entry]


@pytest.fixture(scope="module")
def trained(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The run of 60 steps with a backend and a precision; made once."""
    folder = tmp_path_factory.mktemp("trained")

    def run(backend: str, load_in: str) -> Path:
        made = folder / "runs" / f"{backend}-{load_in}"
        if not (made / "stamps/adapter.json").exists():
            said = finished(command(base, backend, load_in, made.name), folder)
            assert f"backend: {backend}, as asked" in said
            assert re.search(r"GPU [\d.]+ GiB, [\d.]+ reserved, 0\.[1-9]\d for LoRA", said)
        return made

    return run


@pytest.mark.parametrize("load_in", ["4bit", "16bit"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sixty_steps_then_export(trained: Callable[[str, str], Path], base: Base, backend: str, load_in: str) -> None:
    run = trained(backend, load_in)
    curve = losses(run)
    assert len(curve) == 60
    assert fmean(curve[-10:]) < 0.95 * fmean(curve[:10])
    weights = load_file(run / "adapter/adapter_model.safetensors")
    # B begins as zeros: every one must have moved.
    assert all(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["backend"] == backend
    # The base is the most of it; beside it are the adapter, its optimizer, activations and logits.
    held = base.weights * (0.4 if load_in == "4bit" else 1.0)
    assert held < summary["peak_gpu_bytes"] < held + 12e9
    own = summary["lora_memory"]
    assert own["weights"] == own["gradients"] == 4 * summary["trainable_parameters"]
    assert own["weights"] / 2 < own["optimizer"] < own["total"] < summary["peak_gpu_bytes"]
    print(base.name, backend, load_in, f"{summary['peak_gpu_bytes'] / 2**30:.2f} GiB", summary["tokens_per_second"])
    finished([sys.executable, "-m", "ggufy", "export", run.name, "--quant", "q4_k_m"], run.parents[1])


@pytest.mark.parametrize("load_in", ["4bit", "16bit"])
@pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed: pip install '.[unsloth]'")
def test_both_backends_learn_alike(trained: Callable[[str, str], Path], load_in: str) -> None:
    """The same seed, rows and order: the same curve, within the noise of other kernels and other first weights."""
    hf, unsloth = (losses(trained(backend, load_in)) for backend in ("hf", "unsloth"))
    # Before anything is learnt the adapter is zero, so only the kernels differ.
    assert unsloth[0] == pytest.approx(hf[0], rel=0.01)
    for at in range(0, 60, 10):
        assert fmean(unsloth[at : at + 10]) == pytest.approx(fmean(hf[at : at + 10]), rel=0.1), at


@pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed: pip install '.[unsloth]'")
def test_both_adapters_have_the_same_layout_and_plain_peft_loads_them(
    trained: Callable[[str, str], Path], base: Base
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    runs = [trained(backend, "16bit") for backend in ("hf", "unsloth")]
    files = [load_file(run / "adapter/adapter_model.safetensors") for run in runs]
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in file.items()} for file in files]
    assert shapes[0] == shapes[1]
    configs = [json.loads((run / "adapter/adapter_config.json").read_text()) for run in runs]
    differ = {key for key in configs[0] if configs[0][key] != configs[1].get(key)}
    assert not differ
    for run, file in zip(runs, files, strict=True):
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.bfloat16)
        loaded = PeftModel.from_pretrained(model, run / "adapter")
        named = dict(loaded.named_parameters())
        for name, tensor in file.items():
            held = named[name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")]
            assert torch.equal(held.float(), tensor.float()), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_rows_give_the_loss_of_unpacked_ones(base: Base, backend: str, tmp_path: Path) -> None:
    """The first step's loss of the same sixteen conversations; in bf16 the order of additions is what differs."""
    whole = {"data.train_size": 16, "train.batch_size": 16, "train.gradient_accumulation": 1, "train.max_steps": 2}
    curves = []
    for run, packing in (("unpacked", "false"), ("packed", "true")):
        finished(command(base, backend, "16bit", run, **whole, **{"train.packing": packing}), tmp_path)
        curves.append(losses(tmp_path / "runs" / run))
    assert curves[1] == pytest.approx(curves[0], rel=5e-3)


@pytest.fixture
def killed(base: Base, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A training that was killed with -9 after its checkpoint of step 20."""
    started: list[subprocess.Popen[bytes]] = []

    def start(backend: str) -> Path:
        with (tmp_path / "said.txt").open("w") as sink:
            process = subprocess.Popen(command(base, backend, "4bit", "killed"), cwd=tmp_path, stderr=sink, stdout=sink)
        started.append(process)
        sealed = tmp_path / "runs/killed/checkpoints/checkpoint-20/manifest.json"
        while not sealed.exists():
            assert process.poll() is None, (tmp_path / "said.txt").read_text()
            time.sleep(0.05)
        process.kill()
        process.wait()
        return tmp_path

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_and_resumed(
    killed: Callable[[str], Path], trained: Callable[[str, str], Path], base: Base, backend: str
) -> None:
    """On a GPU additions come in any order, so the curve is the same within noise, not byte for byte."""
    folder = killed(backend)
    said = finished(command(base, backend, "4bit", "killed"), folder)
    assert "resuming from step" in said
    again, through = losses(folder / "runs/killed"), losses(trained(backend, "4bit"))
    assert len(again) == 60
    assert fmean(again[-10:]) == pytest.approx(fmean(through[-10:]), rel=0.05)
