"""What only a GPU can prove: skipped, with the reason, where there is none.

Unproven until this has run on one: QLoRA (4-bit NF4) and 16-bit LoRA of the real 1B and 3B shapes with the hf backend,
bf16 and fp16 there, paged and 8-bit optimizers, and resume on CUDA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ggufy.base import shaped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: training on one is unproven"),
]
VOCABULARY = Path(__file__).parents[2] / "vendor" / "llama.cpp" / "models" / "ggml-vocab-llama-bpe.gguf"


@pytest.fixture(scope="module", params=["1b", "3b"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    shaped.write(folder, shaped.SHAPES[request.param], VOCABULARY)
    return folder


@pytest.mark.parametrize("load_in", ["4bit", "16bit"])
def test_sixty_steps_then_export(base: Path, load_in: str, tmp_path: Path) -> None:
    settings = {
        "model.base": base,
        "model.load_in": load_in,
        "model.max_length": 1024,
        "data.source": "builtin:samples",
        "data.train_size": 200,
        "data.eval_size": 20,
        "train.max_steps": 60,
        "train.save_steps": 20,
    }
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "ggufy", "train", "--recipe", "1b_qlora", "--run", "gpu", *changes]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line) for line in (tmp_path / "runs/gpu/metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in figures if "loss" in entry]
    assert sum(losses[-10:]) < sum(losses[:10])
    export = [sys.executable, "-m", "ggufy", "export", "gpu", "--quant", "q4_k_m"]
    done = subprocess.run(export, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
