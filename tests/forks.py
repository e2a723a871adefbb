"""Runs commands of ggufy in processes that begin with the libraries imported: `python -m tests.forks MODULE...`.

Importing torch and transformers takes most of a small command's time. Each command is a fork of a process that has
only imported them: nothing of ggufy but its entry, so that every command still finds what it needs by itself. With
GGUFY_TESTS_COLD=1 every command is a Python of its own, as a user's is.

A line of JSON asks for one: {args, cwd, env, out, err}; the answers are its process id, and its exit code when it
ended. What libraries read when they are imported (HF_ENDPOINT, HF_HOME) is the same for all of them.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

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


class Forks:
    """The process that has the libraries, seen by a test; one command at a time."""

    def __init__(self, env: Mapping[str, str], folder: Path, modules: Sequence[str] = HEAVY) -> None:
        self.env, self.folder, self.modules = dict(env), folder, modules
        self._lock = threading.Lock()

    @cached_property
    def process(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.forks", *self.modules]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, *args: str, cwd: Path, env: Mapping[str, str], out: Path, err: Path) -> int:
        """Start a command; gives its process id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        wanted = {"args": args, "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Wait for the command that was begun; gives its exit code."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def run(self, *args: str, cwd: Path, env: Mapping[str, str], timeout: float) -> CompletedProcess[str] | None:
        """A command as subprocess.run would run it; None while another one runs."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            out, err = self.folder / "stdout", self.folder / "stderr"
            process = self.begin(*args, cwd=cwd, env=env, out=out, err=err)
            late = threading.Event()
            timer = threading.Timer(timeout, lambda: (late.set(), _kill(process)))
            timer.start()
            code = self.end()
            timer.cancel()
            if late.is_set():
                raise subprocess.TimeoutExpired(args, timeout, out.read_bytes(), err.read_bytes())
            return CompletedProcess(args, code, out.read_text("utf-8"), err.read_text("utf-8"))
        finally:
            self._lock.release()

    def fits(self, env: Mapping[str, str]) -> bool:
        """Whether a command with this environment may have the libraries as they are."""
        both = self.env.keys() | env.keys()
        return all(self.env.get(key) == env.get(key) for key in both if key.startswith(_READ_EARLY))

    def stop(self) -> None:
        if "process" not in self.__dict__:
            return
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, 9)


def _child(wanted: dict[str, Any]) -> int:
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    # As `python -m` has it.
    sys.path[0] = wanted["cwd"]
    for number, path in ((0, os.devnull), (1, wanted["out"]), (2, wanted["err"])):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
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


def main(modules: Sequence[str]) -> None:
    for module in modules:
        # Where one is missing, as on a machine without torch, the command says so.
        with suppress(ImportError):
            import_module(module)
    for line in sys.stdin:
        wanted = json.loads(line)
        process = os.fork()
        if process == 0:
            code = 1
            try:
                code = _child(wanted)
            except BaseException:  # noqa: BLE001 - as Python itself shows it
                sys.excepthook(*sys.exc_info())
            finally:
                _ended(code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
