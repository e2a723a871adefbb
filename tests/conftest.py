"""The real command in a subprocess, the contract every failure keeps, and a few trained runs to copy."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests import tools_run
from tests.forks import Forks, Started

# Several processes of tests share the cores. Threads that wait for each other by spinning would stop them all.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# A shell ignores Ctrl-C for what it runs in the background, and so would everything the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

QUICK = ("--recipe", "tiny", "--set", "train.max_steps=4", "--set", "train.save_steps=2", "--run", "quick")
# Every run of the tests is of 2 January 2026, also across midnight.
DAY = "1767312000"
TAUGHT = (
    *("--recipe", "tiny", "--run", "taught", "--set", "train.max_steps=30", "--set", "train.save_steps=30"),
    *("--set", "data.eval_source=builtin:rephrased"),
)
LOCAL = (
    *("--recipe", "tiny", "--run", "local", "--set", "train.max_steps=2", "--set", "model.base=./base"),
    *("--set", "data.source=data.jsonl", "--set", "data.train_size=null", "--set", "data.on_bad_row=skip"),
)
# Not found, rather than None among the modules: scipy looks there, and takes what it finds for torch.
_NO_TORCH = """
from importlib.machinery import PathFinder as finder
find = finder.find_spec
finder.find_spec = lambda name, path=None, target=None: None if name == "torch" else find(name, path, target)
"""

# The files that take longest, so that none of them is begun last, when the other processes have nothing left to do.
_LONG = (
    "test_chaos",
    "test_facts",
    "test_gemma3",
    "test_full_vocabulary",
    "test_earlier_runs",
    "test_demo",
    "test_kernels",
    "test_pull",
    "test_imatrix",
    "test_kill",
    "test_sweep",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in _LONG)


def snapshot(folder: Path) -> dict[str, str]:
    """What every file in the folder holds, and which folders there are."""
    held = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        held[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return held


def among_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one process makes, copied for this one. What fails is made again by the next that asks."""
    shared, own = among_all(tmp_path_factory) / f"shared-{name}", tmp_path_factory.mktemp(name)
    with shared.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = shared.with_suffix(".made")
        if not done.exists():
            shutil.rmtree(shared, ignore_errors=True)
            shared.mkdir()
            make(shared)
            done.touch()
        return Path(shutil.copytree(shared, own, dirs_exist_ok=True))


Process = Started | subprocess.Popen[str]

_FORKS: list[Forks] = []


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For what the tests call in their own process."""
    os.environ["GGUFY_CACHE"] = str(among_all(tmp_path_factory) / "ggufy-in-tests")


@contextmanager
def _forked(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Have a process with the libraries imported, for the commands of this environment."""
    if os.environ.get("GGUFY_TESTS_COLD"):
        yield env
        return
    forks = Forks(env, tmp_path_factory.mktemp("forks"))
    _FORKS.append(forks)
    yield env
    _FORKS.remove(forks)
    forks.stop()


@pytest.fixture(scope="session")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The tests' own caches, no network and no GPU. The built-in model is the same in every process."""
    home = tmp_path_factory.mktemp("home")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GGUFY_", "HF_"))}
    own = {
        "SOURCE_DATE_EPOCH": DAY,
        "GGUFY_CACHE": str(among_all(tmp_path_factory) / "ggufy"),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    # What a CI's own terminal would say about a width and colours that the tests choose themselves.
    # And where Python may keep no bytecode, each of a thousand commands would compile the whole package again.
    for key in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONDONTWRITEBYTECODE"):
        kept.pop(key, None)
    with _forked(kept | own | {"CUDA_VISIBLE_DEVICES": ""}, tmp_path_factory) as made:
        yield made


def begun(*args: str, cwd: Path, env: dict[str, str], log: Path | None = None) -> Process:
    """A command in the background: `communicate` gives what it said, but where that goes to a log."""
    for forks in _FORKS:
        if forks.fits(env):
            return forks.begin(*args, cwd=cwd, env=env, log=log)
    command = ["env", "--default-signal=INT", sys.executable, "-m", "ggufy", *args]
    with log.open("w", encoding="utf-8") if log else nullcontext(subprocess.PIPE) as sink:
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, text=True
        )


def runner(env: dict[str, str]) -> Callable[..., CompletedProcess[str]]:
    def run(*args: str, cwd: Path, python: Sequence[str] = (), timeout: float = 180) -> CompletedProcess[str]:
        fitting = [] if python else [forks for forks in _FORKS if forks.fits(env)]
        if fitting:
            return fitting[0].run(*args, cwd=cwd, env=env, timeout=timeout)
        command = [sys.executable, *python, "-m", "ggufy", *args]
        return subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )

    return run


@pytest.fixture(scope="session")
def run(env: dict[str, str]) -> Callable[..., CompletedProcess[str]]:
    """run("recipes", "show", "tiny", cwd=tmp_path) is what a user types in that folder."""
    return runner(env)


@pytest.fixture(scope="session")
def light_env(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """As on a machine without it: an export then compares no logits, which takes ten times as long as the rest."""
    folder = tmp_path_factory.mktemp("without-torch")
    (folder / "sitecustomize.py").write_text(_NO_TORCH, "utf-8")
    path = os.pathsep.join(filter(None, [str(folder), env.get("PYTHONPATH")]))
    with _forked(env | {"PYTHONPATH": path}, tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="session")
def light_run(light_env: dict[str, str]) -> Callable[..., CompletedProcess[str]]:
    return runner(light_env)


@pytest.fixture(scope="session")
def fails(run: Callable[..., CompletedProcess[str]]) -> Callable[..., str]:
    """Runs a command that must fail as every failure should, and gives its whole stderr.

    `naming` is what the error says, `hinting` what the hint does. A command that `works` before it fails may have shown
    progress and may leave new files, but not change or remove one that was there; any other changes nothing at all.
    """

    def fails(*args: str, cwd: Path, naming: Sequence[str], hinting: Sequence[str] = (), works: bool = False) -> str:
        before = snapshot(cwd)
        done = run(*args, cwd=cwd)
        after = snapshot(cwd)
        text = done.stderr
        assert done.returncode == 1, f"exit code {done.returncode}\n{text}"
        assert "Traceback" not in done.stdout + text, text
        assert "bug in ggufy" not in text, text
        assert done.stdout == ""
        lines = text.splitlines()
        errors = [at for at, line in enumerate(lines) if line.lower().startswith("error:")]
        assert len(errors) == 1, text
        assert lines[errors[0]].startswith("error: "), text
        assert works or errors == [0], f"something else before the error:\n{text}"
        *message, hint = lines[errors[0] :]
        assert hint.startswith("hint: "), f"no hint:\n{text}"
        assert len(hint) > len("hint: "), text
        assert all(line.startswith("  ") for line in message[1:]), text
        for part in naming:
            assert part in "\n".join(message), f"{part!r} is not in the error:\n{text}"
        for part in hinting:
            assert part in hint, f"{part!r} is not in the hint:\n{text}"
        lost = {name for name in before if after.get(name) != before[name]}
        assert not lost, f"changed or gone: {sorted(lost)}"
        assert works or after == before, f"left behind: {sorted(after.keys() - before.keys())}"
        return text

    return fails


@pytest.fixture(scope="session")
def row() -> Callable[..., str]:
    """One line of a data file."""

    def row(question: str, answer: str = "fine") -> str:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return json.dumps({"conversations": turns}) + "\n"

    return row


@pytest.fixture(scope="session")
def quick_made(run: Callable[..., CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/quick in it, trained and exported; to be read, not to be written."""

    def make(cwd: Path) -> None:
        for command in (("train", *QUICK), ("export", "quick", "--quant", "q8_0")):
            done = run(*command, cwd=cwd)
            assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "quick", make)


@pytest.fixture
def quick(quick_made: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(quick_made, tmp_path / "quick"))


@pytest.fixture(scope="session")
def taught_made(
    light_run: Callable[..., CompletedProcess[str]],
    run: Callable[..., CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with runs/taught, which has learnt something and held out the same in other words, and its files.

    To be read, not to be written.
    """

    def make(cwd: Path) -> None:
        done = run("train", *TAUGHT, cwd=cwd)
        assert done.returncode == 0, done.stderr
        done = light_run("export", "taught", "--quant", "q4_k_m", "--quant", "q8_0", cwd=cwd)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "taught", make)


@pytest.fixture
def taught(taught_made: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(taught_made, tmp_path / "taught"))


@pytest.fixture(scope="session")
def tools_made(
    run: Callable[..., CompletedProcess[str]],
    light_run: Callable[..., CompletedProcess[str]],
    base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with base/, which has Llama 3.2's own template, and runs/tools, which has learnt to call two functions.

    Held out are four of the rows that were trained on, and two that say of an add what is wrong. To be read only.
    """
    template = Path(__file__).parents[1] / tools_run.LLAMA
    if not template.is_file():
        pytest.skip("`make vendor` brings Llama 3.2's own template")
    return made_once(tmp_path_factory, "tools", lambda cwd: tools_run.teach(cwd, base, template, run, light_run))


@pytest.fixture(scope="session")
def quick_again() -> tuple[str, ...]:
    """The arguments of `ggufy train` that made runs/quick."""
    return QUICK


@pytest.fixture(scope="session")
def base(quick_made: Path, env: dict[str, str]) -> Path:
    """The folder of the built-in model; to be read, not to be written."""
    assert (quick_made / "runs").is_dir()
    [config] = Path(env["GGUFY_CACHE"]).glob("*/config.json")
    return config.parent


@pytest.fixture(scope="session")
def local_made(
    run: Callable[..., CompletedProcess[str]],
    row: Callable[..., str],
    base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """A folder with base/, data.jsonl (its second row is unusable) and runs/local, and what training it said."""
    cwd = tmp_path_factory.mktemp("local")
    shutil.copytree(base, cwd / "base")
    (cwd / "data.jsonl").write_text(row("one") + row("two <|eot_id|>") + row("three") + row("four"), "utf-8")
    done = run("train", *LOCAL, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, done.stderr


@pytest.fixture
def local(local_made: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(local_made[0], tmp_path / "local"))


@pytest.fixture(scope="session")
def local_again() -> tuple[str, ...]:
    """The arguments of `ggufy train` that made runs/local."""
    return LOCAL


@pytest.fixture(scope="module")
def start(env: dict[str, str]) -> Iterator[Callable[..., Process]]:
    """Starts a command in the background; what still runs at the module's end is killed."""
    started: list[Process] = []

    def start(*args: str, cwd: Path, log: Path) -> Process:
        started.append(begun(*args, cwd=cwd, env=env, log=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
