"""A judge that is a GGUF of one's own, behind `ggufy serve`."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufy.evaluate.judge import judge
from ggufy.evaluate.judge.cache import Cache
from ggufy.evaluate.judge.endpoint import endpoint
from ggufy.evaluate.judge.judge import Settings
from ggufy.evaluate.judge.plan import Item, Plan
from ggufy.evaluate.judge.verdict import verdicts

pytest.importorskip("llama_cpp.server.app", reason="needs the extra serve: pip install 'ggufy-tune[serve]'")


@pytest.fixture(scope="module")
def served(quick_made: Path, env: dict[str, str]) -> Iterator[str]:
    """Its address. Two requests at a time, so that a third is told to come again."""
    command = [sys.executable, "-m", "ggufy", "serve", "quick", "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--max-requests", "2"],
        cwd=quick_made,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+/v1", line)
        assert found, line
        yield found[0]
        process.kill()


def test_a_model_of_ones_own_judges(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    questions = [[{"role": "user", "content": f"What is {number} and {number}?"}] for number in range(2)]
    items = [Item(f"q{n}", "tuned", asked, f"It is {2 * n}.", "I do not know.") for n, asked in enumerate(questions)]
    where = endpoint("quick-q8_0", served)
    plan = Plan(items, where, Cache(tmp_path / "judge.jsonl"))
    replies = judge.ask(plan, Settings(parallel=4, timeout=120, most_tokens=1000, pause=0.1))
    assert replies.stopped is None
    [verdict] = verdicts(plan, replies)
    # It knows nothing, and yet every reply has the form asked for: the server holds it to the schema.
    assert not verdict.failed, verdict.failed
    assert len(verdict.rows) == 2
    assert replies.notes == []
    assert all(1 <= grades.mean <= 5 for given in replies.grades.values() for grades in given)
    kept = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text("utf-8").splitlines()]
    assert len(kept) == 4
    assert all(row["tokens_in"] > 0 and row["tokens_out"] > 0 for row in kept)
    assert Plan(items, where, Cache(tmp_path / "judge.jsonl")).open == {}
