"""A Hub on this machine for each test, and the command line talking to it."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.forks import Forks, Started

ROOT = Path(__file__).parents[2]
ANN, READER, BOB = (f"hf_{letter * 34}" for letter in "arb")
PEOPLE = {
    ANN: {"name": "ann", "orgs": ["lab"]},
    READER: {"name": "ann", "role": "read"},
    BOB: {"name": "bob"},
}


@dataclass
class Hub:
    """The server, seen by a test."""

    folder: Path
    url: str
    env: dict[str, str]
    forks: Forks | None

    def control(self, what: str, wanted: Any = ()) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/_/{what}", json.dumps(wanted).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return dict(json.load(answer))

    def state(self, repo: str, kind: str = "model") -> dict[str, Any]:
        return dict(self.control("look")["repos"][f"{kind}:{repo}"])

    def files(self, repo: str, branch: str = "main", kind: str = "model") -> dict[str, list[Any]]:
        return dict(self.state(repo, kind)["files"][branch])

    def requests(self) -> list[dict[str, Any]]:
        log = self.folder / "requests.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def stored(self) -> list[str]:
        """The large files that arrived whole, as often as they did."""
        return [r["path"] for r in self.requests() if r["method"] == "PUT" and not r["cut"]]

    def read(self, repo: str, path: str, branch: str = "main", kind: str = "model") -> bytes:
        return (self.folder / "objects" / self.files(repo, branch, kind)[path][0]).read_bytes()

    def run(self, *args: str, cwd: Path, token: str = ANN, **env: str) -> CompletedProcess[str]:
        """A command; with other HF_ variables, which are read at import, in a process begun from nothing."""
        if env or self.forks is None:
            own = {**self.env, "HF_TOKEN": token, **env}
            command = [sys.executable, "-m", "ggufy", *args]
            return subprocess.run(
                command, cwd=cwd, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
            )
        return self.forks.run(*args, cwd=cwd, env={**self.env, "HF_TOKEN": token}, timeout=180)

    def begin(self, *args: str, cwd: Path, token: str = ANN) -> Started:
        """Start a command in a process that has everything imported."""
        assert self.forks is not None
        return self.forks.begin(*args, cwd=cwd, env={**self.env, "HF_TOKEN": token})

    def works(self, *args: str, cwd: Path, **how: str) -> str:
        done = self.run(*args, cwd=cwd, **how)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def fails(self, *args: str, cwd: Path, **how: str) -> str:
        """One line that says what, one that says what to do; maybe lines about retries before."""
        done = self.run(*args, cwd=cwd, **how)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "bug in ggufy" not in done.stderr
        error, hint = done.stderr.splitlines()[-2:]
        assert error.startswith("error: "), done.stderr
        assert hint.startswith("hint: "), done.stderr
        return f"{error}\n{hint}"

    def kill_when_held(
        self, *args: str, cwd: Path, fault: dict[str, Any], ready: Callable[[], bool] = lambda: True
    ) -> bool:
        """Run a command until the server holds one of its requests, and kill it there; False if none was held."""
        self.control("faults", [fault])
        process = self.begin(*args, cwd=cwd)
        held = self.folder / "held"
        while not (held.exists() and ready()) and process.poll() is None:
            time.sleep(0.005)
        killed = held.exists()
        if killed:
            process.kill()
        _, said = process.communicate()
        self.control("faults")
        assert process.returncode == (-signal.SIGKILL if killed else 0), said
        return killed


def _serve(folder: Path, env: dict[str, str], *options: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """A server, and the environment for commands that talk to it."""
    command = [sys.executable, "-m", "tests.hub.server", str(folder), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    own = {**env, "HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT)}
    del own["HF_HUB_OFFLINE"]
    if "--xet" not in options:
        own["HF_HUB_DISABLE_XET"] = "1"
    return process, own


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@pytest.fixture(scope="session")
def served(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Forks]]:
    server, own = _serve(tmp_path_factory.mktemp("hub"), env)
    forks = Forks(own, tmp_path_factory.mktemp("forks"))
    yield own, forks
    forks.stop()
    _stop(server)


@pytest.fixture
def hub(served: tuple[dict[str, str], Forks]) -> Hub:
    """An empty Hub with people."""
    return emptied(*served)


def emptied(env: dict[str, str], forks: Forks) -> Hub:
    """The server as a Hub that nobody has used yet."""
    hub = Hub(Path(), env["HF_ENDPOINT"], env, forks)
    hub.folder = Path(hub.control("reset")["folder"])
    hub.control("state", {"people": PEOPLE})
    return hub


@pytest.fixture
def xet_hub(env: dict[str, str], tmp_path: Path) -> Iterator[Hub]:
    """A Hub that takes large files through Xet."""
    server, own = _serve(tmp_path / "xet-hub", env, "--xet")
    hub = Hub(Path(), own["HF_ENDPOINT"], own, None)
    hub.folder = Path(hub.control("reset")["folder"])
    hub.control("state", {"people": PEOPLE})
    yield hub
    _stop(server)


@pytest.fixture
def there(hub: Hub, quick: Path) -> Path:
    """An empty folder on another machine, with quick on the Hub."""
    hub.works("push", "quick", "--repo", "ann/Llama-quick", cwd=quick)
    folder = quick.parent / "there"
    folder.mkdir()
    return folder
