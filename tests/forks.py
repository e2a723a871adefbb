"""Runs commands of ggufy in processes that begin with the libraries imported: `python -m tests.forks MODULE...`.

Importing torch and transformers takes most of a small command's time. Each command is a fork of a process that has
only imported them: nothing of ggufy but its entry, so that every command still finds what it needs by itself. With
GGUFY_TESTS_COLD=1 every command is a Python of its own, as a user's is.

A line of JSON asks for one: {args, cwd, env, out, err}; the answers are `begun PROCESS`, and `ended PROCESS CODE` when
it ended. What libraries read when they are imported (HF_ENDPOINT, HF_HOME) is the same for all of them.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import gc
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO, Any

ROOT = Path(__file__).parents[1]
HEAVY = (
    "transformers.trainer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "peft",
    "trl.trainer.sft_trainer",
    "torch.distributed",
    "datasets",
    "gguf",
    "jinja2",
    "pydantic",
    "llama_cpp",
    "huggingface_hub.file_download",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)
# What libraries read when they are imported: a command with another of these is a Python of its own.
_READ_EARLY = (
    "HF_",
    "PYTHON",
    "TRANSFORMERS_",
    "TORCH",
    "OMP_",
    "MKL_",
    "BNB_",
    "LLAMA_",
    "GGML_",
    "LD_",
    "TOKENIZERS_",
)


class Started:
    """A command that was begun, as subprocess.Popen would have it; what it says goes to files."""

    def __init__(self, args: Sequence[str], pid: int, ended: Future[int], out: Path, err: Path) -> None:
        self.args, self.pid, self._ended, self._out, self._err = args, pid, ended, out, err

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    def wait(self, timeout: float | None = None) -> int:
        try:
            return self._ended.result(timeout)
        except concurrent.futures.TimeoutError:
            raise subprocess.TimeoutExpired(self.args, timeout or 0, *self.said()) from None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = self.said()
        return out.decode("utf-8"), err.decode("utf-8")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def said(self) -> tuple[bytes, bytes]:
        """What it has said so far, on stdout and on stderr."""
        return self._out.read_bytes(), self._err.read_bytes()


class Forks:
    """The process that has the libraries, seen by a test."""

    def __init__(self, env: Mapping[str, str], folder: Path, modules: Sequence[str] = HEAVY) -> None:
        self.env, self.folder, self.modules = dict(env), folder, modules
        self._lock, self._count = threading.Lock(), 0
        self._begun: queue.Queue[tuple[int, Future[int]]] = queue.Queue()

    @cached_property
    def process(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.forks", *self.modules]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        self._listening = threading.Thread(target=self._listen, args=(process.stdout,), daemon=True)
        self._listening.start()
        return process

    def _listen(self, lines: IO[str]) -> None:
        running: dict[str, Future[int]] = {}
        for line in lines:
            what, pid, *code = line.split()
            if what == "begun":
                running[pid] = Future()
                self._begun.put((int(pid), running[pid]))
            else:
                running.pop(pid).set_result(int(code[0]))
        lines.close()
        # It is gone, and with it what was running.
        self._begun.put((0, Future()))
        for ended in running.values():
            ended.set_exception(RuntimeError("the process that runs the tests' commands has gone"))

    def begin(self, *args: str, cwd: Path, env: Mapping[str, str], log: Path | None = None) -> Started:
        """Start a command, both of whose outputs go to the `log` where there is one."""
        with self._lock:
            self._count += 1
            out, err = (log or self.folder / f"{name}-{self._count}" for name in ("stdout", "stderr"))
            out.touch()
            err.touch()
            wanted = {"args": args, "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(wanted) + "\n")
            self.process.stdin.flush()
            pid, ended = self._begun.get()
            assert pid, "the process that runs the tests' commands has gone"
            return Started(args, pid, ended, out, err)

    def run(self, *args: str, cwd: Path, env: Mapping[str, str], timeout: float) -> CompletedProcess[str]:
        """A command as subprocess.run would run it."""
        started = self.begin(*args, cwd=cwd, env=env)
        try:
            return CompletedProcess(args, started.wait(timeout), *started.communicate())
        except subprocess.TimeoutExpired:
            started.kill()
            raise

    def fits(self, env: Mapping[str, str]) -> bool:
        """Whether a command with this environment may have the libraries as they are."""
        both = self.env.keys() | env.keys()
        return all(self.env.get(key) == env.get(key) for key in both if key.startswith(_READ_EARLY))

    def stop(self) -> None:
        if "process" not in self.__dict__:
            return
        self.process.kill()
        self.process.wait()
        self._listening.join()
        assert self.process.stdin is not None
        self.process.stdin.close()


def _child(wanted: dict[str, Any]) -> int:
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As `python -m` has it.
    sys.path[0] = wanted["cwd"]
    for number, path in ((0, os.devnull), (1, wanted["out"]), (2, wanted["err"])):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    sys.argv = ["ggufy", *wanted["args"]]
    from ggufy.cli import entry

    try:
        entry()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _ended(code: int) -> None:
    """What Python does when it ends."""
    with suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _begin(wanted: dict[str, Any]) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        code = _child(wanted)
    except BaseException:  # noqa: BLE001 - as Python itself shows it
        sys.excepthook(*sys.exc_info())
    finally:
        _ended(code)
    raise AssertionError


def main(modules: Sequence[str]) -> None:
    for module in modules:
        # Where one is missing, as on a machine without torch, the command says so.
        with suppress(ImportError):
            import_module(module)
    # Else each child's first collection of garbage would copy all of it.
    gc.collect()
    gc.freeze()
    # Without threads, of which a fork would lose all but one: what ends is heard of through a pipe.
    heard, told = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    asked = b""
    while True:
        ready, _, _ = select.select([0, heard], [], [])
        if heard in ready:
            os.read(heard, 4096)
            for process, status in iter(_reaped, None):
                print("ended", process, os.waitstatus_to_exitcode(status), flush=True)
        if 0 in ready:
            more = os.read(0, 65536)
            if not more:
                return
            *lines, asked = (asked + more).split(b"\n")
            for line in lines:
                print("begun", _begin(json.loads(line)), flush=True)


def _reaped() -> tuple[int, int] | None:
    try:
        process, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (process, status) if process else None


if __name__ == "__main__":
    main(sys.argv[1:])
