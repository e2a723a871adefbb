"""A judge on this machine for each test."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ggufy.evaluate.judge import judge
from ggufy.evaluate.judge.cache import Cache
from ggufy.evaluate.judge.endpoint import endpoint
from ggufy.evaluate.judge.judge import Replies, Settings
from ggufy.evaluate.judge.plan import Item, Plan

ROOT = Path(__file__).parents[3]


@dataclass
class Judge:
    """The server, seen by a test."""

    folder: Path
    address: str

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def set(self, **state: Any) -> None:
        request = urllib.request.Request(f"{self.address}/_/set", json.dumps(state).encode(), method="POST")
        urllib.request.urlopen(request).close()

    def asked(self) -> list[dict[str, Any]]:
        log = self.folder / "asked.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def graded(self) -> list[str]:
        """The questions that were answered with grades, as often as they were."""
        return [row["body"] for row in self.asked() if row["came"] == "graded"]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    folder = tmp_path_factory.mktemp("judge")
    command = [sys.executable, "-m", "tests.evaluate.judge.server", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        yield Judge(folder, started.stdout.readline().strip())
        started.kill()


@pytest.fixture
def server(process: Judge, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """As it is before it is told anything."""
    process.set()
    (process.folder / "asked.jsonl").unlink(missing_ok=True)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return process


@pytest.fixture
def items() -> list[Item]:
    """Eight questions; to each the tuned answer has two stars more than base's. The words tell the calls apart."""

    def item(number: int) -> Item:
        stars = 1 + number % 2
        return Item(
            f"q{number}",
            "tuned-q8_0",
            [{"role": "user", "content": f"Question number {number}?"}],
            tuned=f"good answer {number} {'*' * (stars + 2)}",
            base=f"plain answer {number} {'*' * stars}",
        )

    return [item(number) for number in range(8)]


@pytest.fixture
def ask(server: Judge, tmp_path: Path) -> Callable[..., tuple[Plan, Replies]]:
    """ask(items, parallel=1) puts them to the server, with a cache of this test's."""

    def ask(items: list[Item], afresh: bool = False, **settings: Any) -> tuple[Plan, Replies]:
        plan = Plan(items, endpoint("stars", server.url), Cache(tmp_path / "judge.jsonl"), afresh=afresh)
        return plan, judge.ask(plan, Settings(**{"timeout": 20.0, "pause": 0.02, **settings}))

    return ask
