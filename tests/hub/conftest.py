"""A Hub on this machine for each test, and the command line talking to it."""

import json
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
        own = {**self.env, "HF_TOKEN": token, **env}
        command = [sys.executable, "-m", "ggufy", *args]
        return subprocess.run(
            command, cwd=cwd, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
        )

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

    def kill_when_held(self, *args: str, cwd: Path, fault: dict[str, Any]) -> bool:
        """Run a command until the server holds one of its requests, and kill it there; False if none was held."""
        self.control("faults", [fault])
        command = [sys.executable, "-m", "ggufy", *args]
        process = subprocess.Popen(
            command, cwd=cwd, env={**self.env, "HF_TOKEN": ANN}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        held = self.folder / "held"
        while not held.exists() and process.poll() is None:
            time.sleep(0.01)
        killed = process.poll() is None
        process.kill()
        process.wait()
        self.control("faults")
        return killed


@pytest.fixture
def start_hub(env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> Hub:
        folder = tmp_path / f"hub{len(started)}"
        command = [sys.executable, "-m", "tests.hub.server", str(folder), *options]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        own = {**env, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
        del own["HF_HUB_OFFLINE"]
        if "--xet" not in options:
            own["HF_HUB_DISABLE_XET"] = "1"
        hub = Hub(folder, url, own)
        hub.control("state", {"people": PEOPLE})
        return hub

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def hub(start_hub: Callable[..., Hub]) -> Hub:
    return start_hub()
