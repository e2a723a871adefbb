"""Training that meets a limit: a full disk during a save, no more memory; and what is imported before Unsloth."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.export.test_disk_full import Disk, mounted, said

# argv: what is to be made when another file takes the rest of the disk, one after the other; each a run of its own.
FILLED_FROM = """
import os, shutil, sys
from ggufy import pipeline
from ggufy.system.progress import show_progress
from ggufy.errors import GgufyError

RECIPE = dict(overrides=["train.max_steps=4", "train.save_steps=2"])
waiting = None

def hook(event, args):
    global waiting
    made = event == "os.mkdir" or (event == "open" and (args[2] or 0) & os.O_CREAT)
    if not waiting or not made or not isinstance(args[0], (str, bytes, os.PathLike)):
        return
    if waiting not in os.fsdecode(args[0]) + "|":
        return
    waiting = None
    fd = os.open("filler", os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 1 << 12):
        try:
            while True:
                os.write(fd, bytes(size))
        except OSError:
            pass
    os.close(fd)

show_progress()
sys.addaudithook(hook)
for number, waiting in enumerate(sys.argv[1:]):
    print(f"== {waiting}", file=sys.stderr)
    try:
        pipeline.train("tiny", run_name=f"full{number}", **RECIPE)
    except GgufyError as error:
        kept = ", ".join(sorted(path for path in os.listdir(f"runs/full{number}/checkpoints")))
        print(f"{error.message}; hint: {error.hint}; there is {kept}", file=sys.stderr)
    os.remove("filler")
    pipeline.train("tiny", run_name=f"full{number}", **RECIPE)
    os.rename(f"runs/full{number}/adapter/adapter_model.safetensors", f"{number}.safetensors")
    shutil.rmtree(f"runs/full{number}")
"""
# argv: bytes of address space beyond what importing torch took, and the command.
LIMITED = """
import resource, sys
import datasets, peft, torch, transformers, trl
from ggufy import cli

taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]),) * 2)
sys.exit(cli._run(sys.argv[2:]))
"""
# Says which of what Unsloth changes was there before the backend is imported.
IMPORTED = """
import sys
from ggufy import cli
from ggufy.train import job

def importing(name):
    print(name, sorted({"transformers", "trl", "peft", "accelerate", "unsloth"} & sys.modules.keys()))
    sys.exit(0)

job.import_module = importing
cli._run(["train", "--recipe", "tiny"])
"""


@pytest.fixture
def small(quick_made: Path, tmp_path: Path, env: dict[str, str]) -> Iterator[Disk]:
    """A small disk with nothing on it. The built-in model is made already, elsewhere."""
    assert (quick_made / "runs").is_dir()
    at = tmp_path / "disk"
    at.mkdir()
    keeper = mounted(at) if shutil.which("unshare") and shutil.which("nsenter") else None
    if keeper is None:
        pytest.skip("a small disk needs a mount namespace, and this process may not have one")
    yield Disk(keeper, at, env)
    keeper.kill()
    keeper.wait()
    assert keeper.stdout
    keeper.stdout.close()


def test_a_disk_full_during_a_save_keeps_the_checkpoint_before(small: Disk, quick_made: Path) -> None:
    saves = ("checkpoint-4|", "checkpoint-4/trainer_state.json", "checkpoint-4/.manifest")
    done = small.command(sys.executable, "-c", FILLED_FROM, *saves, "/adapter|")
    assert done.returncode == 0, done.stderr
    parts = done.stderr.split("== ")[1:]
    assert len(parts) == 4
    for number, part in enumerate(parts[:3]):
        assert "checkpoint-4: no space left on the disk while the checkpoint was written" in part
        assert f"runs/full{number}/checkpoints/checkpoint-2 is kept" in part
        assert "run the same command again to continue from step 2; there is checkpoint-2\n" in part
        assert "resuming from step 2" in part
    assert "no space left on the disk while the adapter was written; the checkpoints are kept" in parts[3]
    assert "there is checkpoint-2, checkpoint-4\n" in parts[3]
    assert "resuming from step 4" in parts[3]
    whole = (quick_made / "runs/quick/adapter/adapter_model.safetensors").read_bytes()
    assert [(small.seen / f"{number}.safetensors").read_bytes() == whole for number in range(4)] == [True] * 4


def test_out_of_memory_says_what_to_turn(tmp_path: Path, env: dict[str, str]) -> None:
    train = ("train", "--recipe", "tiny", "--set", "lora.r=1000000", "--set", "lora.alpha=1000000")
    command = [sys.executable, "-c", LIMITED, str(600 << 20), *train]
    done = subprocess.run(command, cwd=tmp_path, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    message, hint = said(done)
    assert re.match(r"error: out of memory \([\d.]+ GiB more was needed\); settings that need less memory", message)
    assert "  1. --set train.batch_size=10 --set train.gradient_accumulation=2  the same step" in message
    assert "--set lora.r=500000" in message
    assert "--fresh" in hint
    assert not (tmp_path / "runs/tiny/adapter").exists()


def test_nothing_that_unsloth_changes_is_imported_before_the_backend(tmp_path: Path, env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=tmp_path, env=env, capture_output=True, text=True)
    # The import is where libraries print, which goes to standard error.
    assert done.stderr.splitlines()[-1] == "ggufy.train.backends.hf []", done.stderr
    assert done.stdout == ""
