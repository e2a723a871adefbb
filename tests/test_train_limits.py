"""Training that meets a limit: a full disk during a save, no more memory; and what is imported before Unsloth."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_export_disk_full import Disk, mounted, said

# argv: a name, and the command. As soon as something of that name is made, another file takes the rest of the disk.
FILLED_FROM = """
import os, runpy, sys

name, sys.argv = sys.argv[1], ["ggufy", *sys.argv[2:]]
done = False

def hook(event, args):
    global done
    made = event == "os.mkdir" or (event == "open" and (args[2] or 0) & os.O_CREAT)
    if done or not made or not isinstance(args[0], (str, bytes, os.PathLike)) or name not in os.fsdecode(args[0]):
        return
    done = True
    fd = os.open("filler", os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 1 << 12):
        try:
            while True:
                os.write(fd, bytes(size))
        except OSError:
            pass
    os.close(fd)

sys.addaudithook(hook)
runpy.run_module("ggufy", run_name="__main__", alter_sys=True)
"""
# argv: the address space in bytes, and the command. torch comes first, so that the limit meets only what it does.
LIMITED = """
import resource, sys
import datasets, peft, torch, transformers, trl
from ggufy import cli

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
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


@pytest.mark.parametrize("file", ["checkpoint-4", "checkpoint-4/trainer_state.json", "checkpoint-4/.manifest"])
def test_a_disk_full_during_a_save_keeps_the_checkpoint_before(
    file: str, small: Disk, quick_made: Path, quick_again: tuple[str, ...]
) -> None:
    done = small.command(sys.executable, "-c", FILLED_FROM, file, "train", *quick_again)
    message, hint = said(done)
    assert "checkpoint-4: no space left on the disk while the checkpoint was written" in message
    assert "checkpoint-2 is kept" in message
    assert "continues from step 2" in hint
    left = small.seen / "runs/quick/checkpoints"
    assert [path.name for path in left.glob("checkpoint-*")] == ["checkpoint-2"]
    small.clear()
    done = small.run("train", *quick_again)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 2" in done.stderr
    adapter = "runs/quick/adapter/adapter_model.safetensors"
    assert (small.seen / adapter).read_bytes() == (quick_made / adapter).read_bytes()


def test_out_of_memory_says_what_to_turn(tmp_path: Path, env: dict[str, str]) -> None:
    train = ("train", "--recipe", "tiny", "--set", "lora.r=40000", "--set", "lora.alpha=40000")
    command = [sys.executable, "-c", LIMITED, str(6 * 10**9), *train]
    done = subprocess.run(command, cwd=tmp_path, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    message, hint = said(done)
    assert message.startswith("error: out of memory (another ")
    assert "  1. --set train.batch_size=10 --set train.gradient_accumulation=2  the same step" in message
    assert "--set lora.r=20000" in message
    assert "--fresh" in hint
    assert not (tmp_path / "runs/tiny/adapter").exists()


def test_nothing_that_unsloth_changes_is_imported_before_the_backend(tmp_path: Path, env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "ggufy.train.hf []\n", done.stdout + done.stderr
