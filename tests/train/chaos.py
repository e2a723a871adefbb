"""Kill a training at chosen moments, with SIGKILL, and see whether it ends with the same adapter each time.

    python tests/train/chaos.py FOLDER [MOMENTS] [SEED] [KIND]...

MOMENTS is how many (20), or `all`: then every boundary of every file that a training writes. The KINDs of training are
all of KINDS where none is named. A moment is one of
  - a boundary: right before a file is opened for writing, removed, renamed or synced, or a folder made;
  - a half: a file of torch or safetensors that is half written;
  - a time: after a random part of an undisturbed training's time.
torch is imported once; each training, and each that takes it up again, is a fork. test_train_chaos.py runs it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Without threads there is nothing that a fork could lose.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "SOURCE_DATE_EPOCH": "1767312000"}

SHORT = ("train.max_steps=4", "train.save_steps=2", "lora.dropout=0.1", "train.batch_size=3", "lora.r=4")
# What a careless resume gets wrong: random order, dropout, several gradient steps a step, the best of several.
KINDS = {
    "plain": (*SHORT, "train.gradient_accumulation=2", "data.eval_size=4", "eval.steps=1", "train.keep_best=true"),
    "packed": (*SHORT, "train.packing=true", "model.max_length=256", "train.keep_checkpoints=1"),
    "quantized": (*SHORT, "model.load_in=4bit", "train.optimizer=adamw_8bit"),
    "grouped": (*SHORT, "train.group_by_length=true", "train.max_steps=5"),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename": 0, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0, "os.truncate": 0}


class Faults:
    """Counts the moments of this process at which the run's folder changes, and kills it at the one asked for."""

    def __init__(self, run: Path, at: int | None) -> None:
        self.run, self.at, self.seen = run.absolute().as_posix() + "/", at, []
        self.busy = False

    def install(self) -> None:
        import peft.peft_model
        import torch

        sys.addaudithook(self.heard)
        sync = os.fsync
        os.fsync = lambda handle: (self.moment(f"fsync {Path(f'/proc/self/fd/{handle}').readlink()}"), sync(handle))[1]
        torch.save = self.halved(torch.save, 1)
        peft.peft_model.safe_save_file = self.halved(peft.peft_model.safe_save_file, 1)

    def heard(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes) and (args[2] or 0) & WRITING:
            self.moment(f"open {os.fsdecode(args[0])}")
        elif event in CHANGES and isinstance(args[CHANGES[event]], str | bytes | os.PathLike):
            self.moment(f"{event} {os.fspath(args[CHANGES[event]])}")

    def halved(self, write: Callable[..., Any], at: int) -> Callable[..., Any]:
        def written(*args: Any, **named: Any) -> Any:
            path = os.fspath(args[at])
            self.moment(f"begin {path}")
            done = write(*args, **named)
            self.moment(f"half {path}", half=path)
            self.moment(f"end {path}")
            return done

        return written

    def moment(self, what: str, half: str | None = None) -> None:
        name = Path(what.partition(" ")[2]).absolute().as_posix()
        if self.busy or not name.startswith(self.run):
            return
        self.seen.append(f"{what.partition(' ')[0]} {name.removeprefix(self.run)}")
        if self.at is not None and len(self.seen) == self.at + 1:
            self.busy = True
            if half is not None:
                os.truncate(half, Path(half).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, kind: str, at: int | None = None, after: float | None = None, *, count: bool = False) -> int:
    """Train in a fork; returns its wait status. Killed at a moment, or after so many seconds, if asked."""
    pid = os.fork()
    if pid:
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
    try:
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        from ggufy import cli, pipeline

        cli.show_progress()
        faults = Faults(Path("runs/tiny"), at)
        if count or at is not None:
            faults.install()
        pipeline.train("tiny", overrides=KINDS[kind])
        if count:
            Path("moments.txt").write_text("\n".join(faults.seen), "utf-8")
    except BaseException:  # noqa: BLE001 - the fork must not go on as its parent
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def adapter(folder: Path) -> dict[str, bytes]:
    found = (folder / "runs/tiny/adapter").glob("*")
    return {path.name: path.read_bytes() for path in found}


def preload() -> None:
    """Import what a training imports, before the first fork."""
    import bitsandbytes  # noqa: F401
    import safetensors.torch  # noqa: F401

    from ggufy.train import trainer  # noqa: F401
    from ggufy.train.backends import hf  # noqa: F401


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    wanted = sys.argv[2] if len(sys.argv) > 2 else "20"
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    kinds = sys.argv[4:] or list(KINDS)
    preload()
    expected, cases, seconds = {}, [], {}
    for kind in kinds:
        begun = time.monotonic()
        if train(folder / kind, kind, count=True):
            sys.exit(f"{kind}: {(folder / kind / 'said.txt').read_text()}")
        seconds[kind] = time.monotonic() - begun
        expected[kind] = adapter(folder / kind)
        moments = (folder / kind / "moments.txt").read_text("utf-8").splitlines()
        cases += [(kind, number, what) for number, what in enumerate(moments)]
        saved = sum("checkpoint-" in what for what in moments)
        print(f"{kind}: {len(moments)} boundaries, {saved} of them of checkpoints")
    if wanted == "all":
        chosen: list[tuple[str, int | None, str]] = list(cases)
    else:
        saves = [case for case in cases if "checkpoint-" in case[2]]
        timed = int(wanted) // 4
        chosen = rng.sample(saves, int(wanted) - timed)
        chosen += [(rng.choice(kinds), None, "a time") for _ in range(timed)]
    wrong = 0
    for number, (kind, at, what) in enumerate(chosen):
        place = folder / f"{number}"
        after = rng.random() * seconds[kind] if at is None else None
        killed = train(place, kind, at=at, after=after)
        again = train(place, kind)
        right = os.WIFSIGNALED(killed) and again == 0 and adapter(place) == expected[kind]
        if not right and at is None and killed == 0:
            right = adapter(place) == expected[kind]  # it was over before its time came
        wrong += not right
        if not right:
            print(f"WRONG {kind}, killed at {what}: {(place / 'said.txt').read_text()}")
        shutil.rmtree(place)
    print(f"{len(chosen) - wrong} of {len(chosen)} ended with the same adapter")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
