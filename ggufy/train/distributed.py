"""Train with several processes, one for each GPU: started, watched and stopped together.

They meet the way torchrun's do, by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Each is ggufy.train.worker; the first
writes what is written. What ends one of them ends all, with one error, the one that explains the others.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ggufy import errors
from ggufy.errors import GgufyError, Interrupted, TrainError
from ggufy.recipe.recipe import from_values
from ggufy.recipe.schema import Recipe, Train
from ggufy.train import checkpoints
from ggufy.train import job as jobs
from ggufy.train.job import Job

log = logging.getLogger("ggufy")

_PATIENCE = 30.0  # seconds for the others to end by themselves once one has


def fit(job: Job, out: Path) -> None:
    """Train here, or in as many processes as the recipe asks for, and write the adapter to `out`."""
    count = job.recipe.train.gpus
    if count == 1:
        jobs.fit(job, out)
        return
    order = out.with_name("job.json")
    order.write_text(json.dumps(_plain(job)), encoding="utf-8")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "ggufy.train.worker", str(order), str(out)]
    started: list[subprocess.Popen[bytes]] = []
    # Only the main thread may say what a signal does.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, _forward(started)) for number in numbers}
    try:
        for rank in range(count):
            _answer(out, rank).unlink(missing_ok=True)
            own = meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A session of their own: what is typed at the terminal comes to them once, through this process.
            process = subprocess.Popen(command, env=os.environ | own, stdout=sys.stderr, start_new_session=True)
            started.append(process)
        _wait(job, out, started)
    finally:
        for process in started:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def check(recipe: Recipe) -> None:
    """Raise TrainError where a step cannot be shared by so many, or there are not so many GPUs."""
    count = recipe.train.gpus
    if count == 1:
        return
    share(recipe.train, count)
    import torch

    have = torch.cuda.device_count()
    if have == 0 and recipe.train.backend == "hf":
        log.info("there is no GPU here: %d processes share this CPU", count)
    elif have < count:
        raise TrainError(f"train.gpus is {count}, but there are {have} GPUs here", f"--gpus {max(1, have)}")


def share(train: Train, count: int) -> tuple[int, int]:
    """Batch size and accumulation of each process, so that all together make a step of as many rows as one would."""
    rows = train.batch_size * train.gradient_accumulation
    if rows % count:
        raise TrainError(
            f"a step has {rows} rows (train.batch_size x train.gradient_accumulation), which {count} GPUs cannot share",
            "choose a number of GPUs that divides them, or another batch",
        )
    each = rows // count
    batch = max(size for size in range(1, train.batch_size + 1) if each % size == 0)
    return batch, each // batch


def place() -> tuple[int, int]:
    """The number of this process among those that train together, and how many they are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def read(order: Path) -> Job:
    """The job that `fit` has written down."""
    values = json.loads(order.read_text(encoding="utf-8"))
    paths = {name: Path(values[name]) for name in ("base", "data", "checkpoints", "metrics")}
    lists = {name: tuple(values[name]) for name in ("modules", "other_parts")}
    rest = {"recipe": from_values(values["recipe"]), **lists}
    return Job(**{**values, **paths, **rest})


def answer(out: Path, error: BaseException) -> int:
    """Leave word of what ended this process; returns its exit code."""
    shown = errors.from_lower(error)
    code = shown.code if isinstance(shown, Interrupted) else 1
    said = {"kind": type(shown).__name__, "message": shown.message, "hint": shown.hint, "code": code}
    _answer(out, place()[0]).write_text(json.dumps(said), encoding="utf-8")
    return code


def _wait(job: Job, out: Path, started: list[subprocess.Popen[bytes]]) -> None:
    while any(process.poll() is None for process in started):
        if any(process.poll() for process in started):
            until = time.monotonic() + _PATIENCE
            asked = any(_said(out, rank).get("kind") == "Interrupted" for rank in range(len(started)))
            while asked and time.monotonic() < until and any(process.poll() is None for process in started):
                time.sleep(0.05)
            time.sleep(0.5)
            break
        time.sleep(0.05)
    codes = [process.poll() for process in started]
    if any(codes):
        raise _error(job, out, codes)


def _error(job: Job, out: Path, codes: list[int | None]) -> GgufyError:
    """The one error of all: of a process that was killed, else of the first that knows what it was."""
    last = checkpoints.last_sealed(job.checkpoints)
    again = "run the same command again" + (f": it continues from step {checkpoints.step_of(last)}" if last else "")
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return TrainError(f"process {rank} of {len(codes)} was killed ({name}), which ended the training", again)
    said = [found for rank in range(len(codes)) if (found := _said(out, rank))]
    # That another one has gone is what a process says that was left alone.
    said.sort(key=lambda found: "unexpected" in found["message"])
    if not said:
        return TrainError(
            f"one of {len(codes)} processes ended without an error message (exit code {max(filter(None, codes))})",
            again,
        )
    kind, message, hint = said[0]["kind"], said[0]["message"], said[0]["hint"]
    if kind == "Interrupted":
        return Interrupted(message, hint, code=said[0]["code"])
    made: GgufyError = GgufyError.__new__(getattr(errors, kind, GgufyError))
    GgufyError.__init__(made, message, hint)
    return made


def _forward(started: list[subprocess.Popen[bytes]]) -> Any:
    def handler(number: int, frame: Any) -> None:
        del frame
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    return handler


def _plain(job: Job) -> dict[str, Any]:
    values = asdict(job) | {"recipe": job.recipe.model_dump(mode="json")}
    return {name: str(Path(value).absolute()) if isinstance(value, Path) else value for name, value in values.items()}


def _answer(out: Path, rank: int) -> Path:
    return out.with_name(f"error-{rank}.json")


def _said(out: Path, rank: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_answer(out, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
