"""A full disk costs one line and a hint: what was there stays as it was, and the command works once there is room.

The disk is a real one, a small tmpfs in a mount namespace of its own that ends with its keeper. To fill it at a chosen
moment, after the space was found to be enough, a small program runs the command and lets another file take the rest
right before the n-th reservation, opened file, write or rename.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.conftest import snapshot
from tests.export.test_kill import KILLED_AT

Run = Callable[..., CompletedProcess[str]]

MIB = 1 << 20
SIZE = 32 * MIB
COMMAND = ("export", "quick", "--quant", "q4_k_m", "--merged")
UNIT = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

# argv: the step, its number, and the command.
FILLED_AT = """
import os, runpy, sys

step, left, sys.argv = sys.argv[1], int(sys.argv[2]), ["ggufy", *sys.argv[3:]]
here = os.path.realpath(os.getcwd())
write, busy = os.write, False

def fill():
    global busy
    busy = True
    fd = os.open("filler", os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 1 << 12):
        try:
            while True:
                write(fd, bytes(size))
        except OSError:
            pass
    os.close(fd)
    busy = False

def seen(path):
    global left
    if busy or not os.path.realpath(os.fsdecode(path)).startswith(here + "/"):
        return
    left -= 1
    if left == 0:
        fill()

def hook(event, args):
    if step == "rename" and event == "os.rename":
        seen(args[0])
    if step == "open" and event == "open" and isinstance(args[0], (str, bytes)):
        if (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            seen(args[0])

def wrapped(call):
    def made(fd, *rest):
        seen(f"/proc/self/fd/{fd}")
        return call(fd, *rest)
    return made

sys.addaudithook(hook)
if step == "reserve":
    os.posix_fallocate, os.ftruncate = wrapped(os.posix_fallocate), wrapped(os.ftruncate)
if step == "write":
    os.write, os.pwrite = wrapped(os.write), wrapped(os.pwrite)
runpy.run_module("ggufy", run_name="__main__", alter_sys=True)
"""

LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Disk:
    """A small disk with runs/quick on it. Commands run in its namespace; `seen` is where this process sees it."""

    def __init__(self, keeper: subprocess.Popen[str], at: Path, env: dict[str, str]) -> None:
        self.keeper, self.at, self.env = keeper, at, env
        self.seen = Path(f"/proc/{keeper.pid}/root{at}")

    def command(self, *command: str) -> CompletedProcess[str]:
        enter = ("nsenter", f"--target={self.keeper.pid}", "--user", "--mount", "--preserve-credentials")
        return subprocess.run(
            [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(self.at), *command],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def run(self, *args: str) -> CompletedProcess[str]:
        return self.command(sys.executable, "-m", "ggufy", *args)

    def run_filled(self, step: str, number: int, *args: str) -> CompletedProcess[str]:
        return self.command(sys.executable, "-c", FILLED_AT, step, str(number), *args)

    @property
    def free(self) -> int:
        state = os.statvfs(self.seen)
        return state.f_bavail * state.f_frsize

    def leave(self, free: int, name: str = "filler") -> None:
        """Fills it so far that this much is free."""
        with (self.seen / name).open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, self.free - free)

    def clear(self) -> None:
        (self.seen / "filler").unlink()


def mounted(at: Path) -> subprocess.Popen[str] | None:
    """The keeper of a namespace with the disk in it, if there may be one."""
    script = f'mount -t tmpfs -o size={SIZE} tmpfs "$0" && echo mounted && exec sleep 600'
    keeper = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(at)],
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert keeper.stdout
    if keeper.stdout.readline() == "mounted\n":
        return keeper
    keeper.wait()
    keeper.stdout.close()
    return None


@pytest.fixture
def disk(quick_made: Path, tmp_path: Path, light_env: dict[str, str]) -> Iterator[Disk]:
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        pytest.skip("a small disk needs unshare and nsenter")
    at = tmp_path / "disk"
    at.mkdir()
    keeper = mounted(at)
    if keeper is None:
        pytest.skip("a small disk needs a mount namespace, and this process may not have one")
    made = Disk(keeper, at, light_env)
    shutil.copytree(quick_made / "runs", made.seen / "runs", ignore=shutil.ignore_patterns("checkpoints"))
    yield made
    keeper.kill()
    keeper.wait()
    assert keeper.stdout
    keeper.stdout.close()


@pytest.fixture(scope="module")
def undisturbed_folder(quick_made: Path, light_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(quick_made, tmp_path_factory.mktemp("undisturbed") / "here"))
    done = light_run(*COMMAND, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def undisturbed(undisturbed_folder: Path) -> dict[str, str]:
    """What export/ and partial/ hold after the command."""
    return exported(undisturbed_folder)


def size_of(folder: Path) -> int:
    """The bytes of what the command makes."""
    made = (folder / "runs/quick/export").rglob("*")
    return sum(path.stat().st_size for path in made if path.is_file() and path.name != "quick-q8_0.gguf")


def exported(folder: Path) -> dict[str, str]:
    held = snapshot(folder / "runs/quick")
    return {name: held[name] for name in held if name.split("/")[0] in ("export", "partial")}


def said(done: CompletedProcess[str]) -> tuple[str, str]:
    """The error and its hint; it fails as every failure should."""
    assert done.returncode == 1, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    assert "bug in ggufy" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    errors = [at for at, line in enumerate(lines) if line.lower().startswith("error:")]
    assert len(errors) == 1, done.stderr
    *message, hint = lines[errors[0] :]
    assert hint.startswith("hint: "), f"no hint:\n{done.stderr}"
    return "\n".join(message), hint


def sizes(text: str) -> list[float]:
    found = re.findall(r"([\d.,]+) ([kMG]i?B)\b", text, re.IGNORECASE)
    return [float(number.replace(",", "")) * UNIT[unit] for number, unit in found]


def near(found: list[float], size: int) -> bool:
    return any(abs(one - size) < max(0.1 * size, 2e5) for one in found)


def without_locks(folder: Path) -> dict[str, str]:
    return {name: held for name, held in snapshot(folder).items() if not name.endswith("/lock")}


# Too small from the start


def test_too_small_for_a_run(disk: Disk, undisturbed_folder: Path, undisturbed: dict[str, str]) -> None:
    """Needed and free are named before a byte is written; with room made, the command works."""
    disk.leave(free=5 * MIB)
    before = without_locks(disk.seen)
    error, _ = said(disk.run(*COMMAND))
    assert re.search("disk|space|free", error), error
    assert near(sizes(error), 5 * MIB), f"the free space is not named: {error}"
    assert near(sizes(error), size_of(undisturbed_folder)), f"the needed space is not named: {error}"
    assert without_locks(disk.seen) == before
    disk.clear()
    done = disk.run(*COMMAND)
    assert done.returncode == 0, done.stderr
    assert exported(disk.seen) == undisturbed


def test_too_small_for_another_folder(disk: Disk, quick_made: Path, base: Path, tmp_path: Path) -> None:
    """The disk that counts is the one written to, whether --out exists or not, for every kind of output."""
    shutil.copytree(quick_made / "runs/quick/adapter", tmp_path / "adapter")
    source = ("export", str(tmp_path / "adapter"), "--base", str(base))
    big, small = 5 * MIB, 1 * MIB
    for outputs, free in ((["f16"], big), (["q8_0", "--adapter-gguf"], big), (["q4_k_m"], small)):
        disk.leave(free=free)
        before = snapshot(disk.seen)
        error, _ = said(disk.run(*source, "--quant", *outputs, "--out", "deep/out"))
        assert near(sizes(error), free), f"the free space is not named: {error}"
        left = {name for name in snapshot(disk.seen).keys() - before.keys() if not name.endswith("/lock")}
        assert left <= {"deep", "deep/out"}
        disk.clear()
    done = disk.run(*source, "--quant", "f16", "--out", "deep/out")
    assert done.returncode == 0, done.stderr


def test_room_for_the_outputs_is_enough(disk: Disk, undisturbed_folder: Path, undisturbed: dict[str, str]) -> None:
    """No second copy of anything: two megabytes more than the files themselves will do."""
    disk.leave(free=size_of(undisturbed_folder) + 2 * MIB)
    done = disk.run(*COMMAND)
    assert done.returncode == 0, done.stderr
    assert exported(disk.seen) == undisturbed


def test_no_room_at_all(disk: Disk) -> None:
    disk.leave(free=0)
    before = without_locks(disk.seen)
    said(disk.run(*COMMAND))
    assert without_locks(disk.seen) == before
    # What is there can still be read.
    done = disk.run("verify", "quick")
    assert done.returncode == 0, done.stderr


# Filled while it writes


@pytest.mark.parametrize(
    ("step", "numbers"),
    [("reserve", range(1, 20)), ("open", range(1, 40, 2)), ("write", (1, 4, 30)), ("rename", range(1, 40, 2))],
    ids=["reserve", "open", "write", "rename"],
)
def test_filled_meanwhile(
    step: str,
    numbers: range | tuple[int, ...],
    disk: Disk,
    undisturbed_folder: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
) -> None:
    """Either everything had its place already, or it fails and gives the room back; the disk holds one export."""
    kept = Path(shutil.copytree(disk.seen / "runs", tmp_path / "kept"))
    disk.leave(free=size_of(undisturbed_folder) + 2 * MIB, name="ballast")
    faults: list[str] = []
    filled = 0
    for number in numbers:
        shutil.rmtree(disk.seen / "runs")
        shutil.copytree(kept, disk.seen / "runs")
        done = disk.run_filled(step, number, *COMMAND)
        if not (disk.seen / "filler").exists():
            assert done.returncode == 0, done.stderr
            break
        filled += 1
        earlier, now = without_locks(kept), without_locks(disk.seen / "runs")
        found = ["something else was lost" for name in earlier if now.get(name) != earlier[name]]
        if done.returncode == 0:
            found += [] if exported(disk.seen) == undisturbed else ["it ended well, with other files"]
        else:
            found += after_the_refusal(done, disk, undisturbed)
        faults += [f"filled at {step} {number}: {one}" for one in found]
        (disk.seen / "filler").unlink(missing_ok=True)
    assert filled, f"{step}: no such step was seen"
    assert not faults, "\n".join(faults)


def after_the_refusal(done: CompletedProcess[str], disk: Disk, undisturbed: dict[str, str]) -> list[str]:
    """What is wrong with the refusal, with what it left, or with the same command once there is room."""
    found = []
    try:
        error, _ = said(done)
        assert re.search("disk|space|free", error), error
    except AssertionError as wrong:
        found.append(f"not said as it should be: {wrong}")
    left = exported(disk.seen)
    partial = [name for name, held in left.items() if name.startswith("partial/") and held != "folder"]
    found += [f"{len(partial)} files still take room, as {partial[0]}"] if partial else []
    half = [name for name, held in left.items() if name.startswith("export/") and held != undisturbed.get(name)]
    found += [f"{name} is not complete" for name in half]
    disk.clear()
    again = disk.run(*COMMAND)
    if again.returncode:
        found.append(f"then, with room again: {again.stderr}")
    elif exported(disk.seen) != undisturbed:
        found.append("then, with room again: other files")
    return found


def test_killed_on_a_disk_with_room_for_one_export(
    disk: Disk, undisturbed_folder: Path, undisturbed: dict[str, str]
) -> None:
    """What the killed one left makes way for the same command."""
    disk.leave(free=size_of(undisturbed_folder) + 2 * MIB)
    killed = disk.command(sys.executable, "-c", KILLED_AT, "rename", "1", *COMMAND)
    assert killed.returncode == -signal.SIGKILL
    assert disk.free < 4 * MIB
    done = disk.run(*COMMAND)
    assert done.returncode == 0, done.stderr
    assert exported(disk.seen) == undisturbed


# Other ways in which a disk refuses


def test_a_limit_on_the_size_of_files(quick: Path, light_run: Run, undisturbed: dict[str, str]) -> None:
    """As with `ulimit -f`: the merged file does not fit, and what was there stays."""
    before = without_locks(quick)
    error, _ = said(light_run(*COMMAND, cwd=quick, python=("-c", LIMITED)))
    assert re.search(r"large|limit|disk|space", error), error
    after = without_locks(quick)
    assert {name: after.get(name) for name in before} == before
    files = {name for name in after.keys() - before.keys() if after[name] != "folder"}
    assert not {name for name in files if "merged" in name or "partial" in name}, f"left behind: {sorted(files)}"
    done = light_run(*COMMAND, cwd=quick)
    assert done.returncode == 0, done.stderr
    assert exported(quick) == undisturbed


@pytest.mark.parametrize("out", [None, "out", "new/out"], ids=["a run", "out", "a new out"])
def test_a_read_only_disk(out: str | None, disk: Disk, base: Path) -> None:
    (disk.seen / "out").mkdir()
    done = disk.command("mount", "-o", "remount,ro", str(disk.at))
    assert done.returncode == 0, done.stderr
    before = snapshot(disk.seen)
    if out is None:
        error, _ = said(disk.run(*COMMAND))
        assert "runs/quick" in error
    else:
        error, _ = said(disk.run("export", str(base), "--quant", "q8_0", "--out", out))
        assert "out" in error or "new" in error
    assert "read-only" in error.lower()
    assert snapshot(disk.seen) == before
