"""kill -9 at any moment of an export: no final name on a partial file, and the same command ends with the same bytes.

Some moments are drawn from the time an export takes. The others are its steps, one by one: a small program runs the
command and kills itself right before the n-th rename, removal, new folder, opened file or, halfway through it, write.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from tests import conftest
from tests.conftest import snapshot

Run = Callable[..., CompletedProcess[str]]

SEED = 20260102
MOMENTS = 20
SHARES = [(n + random.Random(SEED + n).random()) / MOMENTS for n in range(MOMENTS)]

FOLDER = ("export", "adapter", "--base", "model", "--out", "out", "--adapter-gguf", "--merged")
FOLDER = (*FOLDER, "--quant", "q4_k_m", "--quant", "q8_0", "--quant", "f16")
RUN = ("export", "quick", "--quant", "q4_k_m", "--merged")

# argv: the step, its number, and the command.
KILLED_AT = """
import os, runpy, signal, sys

step, left, sys.argv = sys.argv[1], int(sys.argv[2]), ["ggufy", *sys.argv[3:]]
here = os.path.realpath(os.getcwd())
steps = {
    "rename": ("os.rename",), "remove": ("os.remove", "os.rmdir"), "folder": ("os.mkdir",), "open": ("open",),
}.get(step, ())

def count():
    global left
    left -= 1
    return left == 0

def inside(path):
    return isinstance(path, (str, bytes, os.PathLike)) and os.path.realpath(os.fsdecode(path)).startswith(here + "/")

def hook(event, args):
    if event not in steps or not inside(args[0]):
        return
    if event == "open" and not ((args[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
        return
    if event == "os.mkdir" and os.path.exists(args[0]):
        return
    if count():
        os.kill(os.getpid(), 9)

def torn(write):
    def wrapped(fd, data, *rest):
        if inside(f"/proc/self/fd/{fd}") and count():
            view = memoryview(data).cast("B")
            write(fd, view[: len(view) // 2], *rest)
            os.kill(os.getpid(), 9)
        return write(fd, data, *rest)
    return wrapped

sys.addaudithook(hook)
if step == "write":
    os.write, os.pwrite = torn(os.write), torn(os.pwrite)
runpy.run_module("ggufy", run_name="__main__", alter_sys=True)
"""


# A checkpoint that takes long enough to be killed in the middle of everything


def tensors(path: Path, made: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, array in made.items():
        kind = {"float16": "F16", "float32": "F32"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in made.values()))


@pytest.fixture(scope="module")
def bigger(base: Path, quick_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, 9 million random weights, and adapter/ on all its linear layers; to be read, not to be written."""
    folder = tmp_path_factory.mktemp("bigger")
    model, adapter = folder / "model", folder / "adapter"
    shutil.copytree(base, model, ignore=shutil.ignore_patterns("stamp.json", "model.safetensors"))
    adapter.mkdir()
    config = json.loads((model / "config.json").read_text("utf-8"))
    wide, inner, layers, rank = 512, 1536, 3, 8
    config |= {"hidden_size": wide, "intermediate_size": inner, "num_hidden_layers": layers, "torch_dtype": "float16"}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    numbers = np.random.default_rng(SEED)

    def noise(*shape: int) -> np.ndarray:
        return numbers.standard_normal(shape, np.float32) / 32

    shapes = {"self_attn.q_proj": (wide, wide), "self_attn.k_proj": (128, wide), "self_attn.v_proj": (128, wide)}
    shapes |= {"self_attn.o_proj": (wide, wide), "mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide)}
    shapes |= {"mlp.down_proj": (wide, inner)}
    weights = {"model.embed_tokens.weight": noise(config["vocab_size"], wide)}
    pairs = {}
    for layer in range(layers):
        for module, (rows, columns) in shapes.items():
            name = f"model.layers.{layer}.{module}"
            weights[f"{name}.weight"] = noise(rows, columns)
            pairs[f"base_model.model.{name}.lora_A.weight"] = noise(rank, columns)
            pairs[f"base_model.model.{name}.lora_B.weight"] = noise(rows, rank)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = 1 + noise(wide)
    weights["model.norm.weight"] = 1 + noise(wide)
    tensors(model / "model.safetensors", {name: array.astype(np.float16) for name, array in weights.items()})
    tensors(adapter / "adapter_model.safetensors", pairs)
    trained = json.loads((quick_made / "runs/quick/adapter/adapter_config.json").read_text("utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(trained | {"r": rank, "lora_alpha": 2 * rank}), "utf-8")
    return folder


# What an export leaves


def tidy(folder: Path) -> dict[str, Any]:
    """What the folder holds; of a stamp, what does not say when."""

    def timeless(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: timeless(one) for key, one in content.items() if key not in ("finished", "mtime_ns")}
        return content

    held: dict[str, Any] = snapshot(folder)
    for name in held:
        if "/stamps/" in name and held[name] != "folder":
            held[name] = timeless(json.loads((folder / name).read_text("utf-8")))
    return held


def no_partial_file(folder: Path, undisturbed: dict[str, Any], before: dict[str, Any]) -> None:
    """Whatever has a name that the undisturbed export gives is what it gives, and what was there before is there."""
    now = snapshot(folder)
    for name, held in now.items():
        if name in before:
            assert held == before[name] or name.endswith("/lock"), f"{name} changed"
        elif "/partial" not in name and not name.endswith("/lock"):
            assert name in undisturbed, f"a stray file: {name}"
            if "/stamps/" in name and held != "folder":
                assert json.loads((folder / name).read_text("utf-8")), f"{name} is half there"
            else:
                assert held == undisturbed[name], f"{name} is not complete"
    assert before.keys() <= now.keys()


# Random moments


@pytest.fixture(scope="module")
def quickest() -> list[float]:
    """The seconds of the quickest export from start to end so far."""
    return [10.0]


@pytest.fixture(scope="module")
def folder_exported(
    bigger: Path, light_run: Run, quickest: list[float], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the undisturbed export leaves."""
    folder = Path(shutil.copytree(bigger, tmp_path_factory.mktemp("undisturbed") / "here"))
    begun = time.monotonic()
    done = light_run(*FOLDER, cwd=folder)
    assert done.returncode == 0, done.stderr
    quickest[0] = time.monotonic() - begun
    held = tidy(folder)
    assert len([name for name in held if name.endswith(".gguf")]) == 4
    return held


@pytest.mark.parametrize("share", SHARES, ids=lambda share: f"at {share:.3f} of its time")
def test_killed_at_a_random_moment(
    share: float,
    bigger: Path,
    folder_exported: dict[str, Any],
    quickest: list[float],
    light_env: dict[str, str],
    light_run: Run,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "here"
    killed = False
    while not killed:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bigger, folder, copy_function=os.link)
        before = snapshot(folder)
        begun = time.monotonic()
        process = conftest.begun(*FOLDER, cwd=folder, env=light_env)
        try:
            process.wait(share * quickest[0])
            quickest[0] = min(quickest[0], time.monotonic() - begun)
        except subprocess.TimeoutExpired:
            process.kill()
        killed = process.wait() == -signal.SIGKILL
    no_partial_file(folder, folder_exported, before)
    done = light_run(*FOLDER, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert tidy(folder) == folder_exported


# Every step


@pytest.fixture(scope="module")
def run_exported(quick_made: Path, light_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = Path(shutil.copytree(quick_made, tmp_path_factory.mktemp("undisturbed") / "here"))
    done = light_run(*RUN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return tidy(folder)


def steps(step: str) -> list[int]:
    """All of them; of the many writes and opened files, some."""
    return [1, 2, 3, 8, 21, 55] if step == "write" else list(range(1, 100, 2 if step == "open" else 1))


@pytest.mark.parametrize("step", ["folder", "open", "write", "rename", "remove"])
def test_killed_at_each_step(
    step: str, quick_made: Path, run_exported: dict[str, Any], light_env: dict[str, str], light_run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    kills = 0
    for number in steps(step):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(quick_made, folder, ignore=shutil.ignore_patterns("checkpoints"))
        before = snapshot(folder)
        undisturbed = {name: held for name, held in run_exported.items() if "checkpoints" not in name}
        killed = subprocess.run(
            [sys.executable, "-c", KILLED_AT, step, str(number), *RUN],
            cwd=folder,
            env=light_env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        where = f"killed at {step} {number}"
        if killed.returncode != -signal.SIGKILL:
            assert killed.returncode == 0, killed.stderr
            assert tidy(folder) == undisturbed
            break
        kills += 1
        no_partial_file(folder, undisturbed, before)
        done = light_run(*RUN, cwd=folder)
        assert done.returncode == 0, f"{where}: {done.stderr}"
        assert tidy(folder) == undisturbed, where
    assert kills >= 3, f"{step}: no such step was seen"
