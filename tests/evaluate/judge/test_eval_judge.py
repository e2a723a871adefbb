"""`ggufy eval --judge`: the command, a run, and a judge in another process."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.conftest import runner
from tests.evaluate.judge.conftest import Judge

KEY = "sk-canary-7b2d5c8e1f4a9b3c6d0e"
QUESTIONS = 4
ASK = ("eval", "quick", "--only", "prompts", "--prompts", "asked.jsonl", "--max-tokens", "6", "--threads", "1")
Evaluate = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def answered(quick_made: Path, tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Path:
    """A folder with runs/quick whose answers are there, so that only the judge is left to ask."""
    cwd = tmp_path_factory.mktemp("judged") / "cwd"
    subprocess.run(["cp", "-r", str(quick_made), str(cwd)], check=True)
    rows = [{"id": f"q{n}", "prompt": f"What is {n}?", "expected": f"It is {n}."} for n in range(QUESTIONS)]
    (cwd / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    done = runner(env)(*ASK, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture
def evaluate(env: dict[str, str], answered: Path, server: Judge, tmp_path: Path) -> Evaluate:
    """evaluate("--yes", key=KEY) asks the server, with a cache of this test's."""

    def evaluate(*args: str, key: str = "") -> CompletedProcess[str]:
        return runner(with_cache(env, tmp_path, key))(*judged(server), *args, cwd=answered)

    return evaluate


def judged(server: Judge) -> tuple[str, ...]:
    return (*ASK, "--judge", "stars", "--judge-url", server.address)


def with_cache(env: dict[str, str], folder: Path, key: str = "") -> dict[str, str]:
    """The session's environment and base model, and an empty cache of replies."""
    cache = folder / "cache"
    if not cache.exists():
        subprocess.run(["cp", "-r", env["GGUFY_CACHE"], str(cache)], check=True)
        (cache / "judge.jsonl").unlink(missing_ok=True)
    return {**env, "GGUFY_CACHE": str(cache), "OPENAI_API_KEY": key}


def section(cwd: Path) -> dict[str, Any]:
    report = json.loads((cwd / "runs" / "quick" / "eval" / "report.json").read_text("utf-8"))
    return dict(report["sections"]["judge"])


def test_the_verdict_is_in_the_report_and_the_key_is_nowhere(
    evaluate: Evaluate, server: Judge, answered: Path, tmp_path: Path
) -> None:
    server.set(key=KEY, faults=[{"kind": "key", "times": 2}, {"kind": "status", "status": 500, "text": "KEY"}])
    done = evaluate("--yes", "--judge-price", "1,2", key=KEY)
    assert done.returncode == 0, done.stderr
    assert "judge stars: 8 to ask; about" in done.stderr
    assert "by --judge-price" in done.stderr
    # No answer has stars, so all are graded alike.
    assert "What a judge says\n  tuned q8_0: base 2.67, tuned 2.67 of 5 over 4 answers" in done.stdout
    assert "too few to tell (4)" in done.stdout
    said = section(answered)
    assert (said["asked"], said["known_from_before"], said["tokens_in"]) == (8, 0, 800)
    [verdict] = said["verdicts"]
    assert (verdict["judged"], verdict["difference"]["mean"]["low"], verdict["says"]) == (4, 0, "too few to tell (4)")
    assert [row["id"] for row in verdict["rows"]] == ["q0", "q1", "q2", "q3"]
    # The judge sees what the user hopes for.
    assert all("It is" in body for body in server.graded())
    page = (answered / "runs" / "quick" / "eval" / "report.html").read_text("utf-8")
    assert "3 stars" in page
    places = [*(answered / "runs").rglob("*"), *(tmp_path / "cache").rglob("*.json*")]
    kept = "".join(path.read_text("utf-8", "replace") for path in places if path.is_file() and path.suffix != ".gguf")
    assert "[key]" in kept
    for place in (kept, done.stdout, done.stderr):
        assert "canary" not in place
    again = evaluate("--judge-price", "1,2", "--yes", key=KEY)
    assert again.returncode == 0, again.stderr
    assert "0 to ask, 8 known from before" in again.stderr
    assert len(server.graded()) == 6


def test_held_out_questions_are_judged_too(evaluate: Evaluate, server: Judge, answered: Path) -> None:
    rows = [{"prompt": f"Say {word}.", "completion": word} for word in ("yes", "no", "maybe")]
    (answered / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    done = evaluate("--yes", "--judge-rows", "2", "--data", "held.jsonl")
    assert done.returncode == 0, done.stderr
    [verdict] = section(answered)["verdicts"]
    assert [row["id"] for row in verdict["rows"]] == ["q0", "q1", "q2", "q3", "held out 1", "held out 2"]
    assert sum("Say no." in body for body in server.graded()) == 2
    assert not any("Say maybe." in body for body in server.graded())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_was_judged_before_a_kill_is_not_asked_again(
    how: signal.Signals, evaluate: Evaluate, env: dict[str, str], server: Judge, answered: Path, tmp_path: Path
) -> None:
    server.set(slow=0.3)
    command = ["env", "--default-signal=INT", sys.executable, "-m", "ggufy", *judged(server), "--yes"]
    command += ["--judge-parallel", "1"]
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=answered, env=with_cache(env, tmp_path), stdout=log, stderr=log)
        while len(server.graded()) < 3 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(how)
        code = process.wait(60)
        log.seek(0)
        said = log.read()
    assert code == (130 if how == signal.SIGINT else -how), said
    assert "Traceback" not in said
    server.set()
    done = evaluate("--yes")
    assert done.returncode == 0, done.stderr
    asked = server.graded()
    assert len(set(asked)) == 8
    # Interrupted, the reply under way is waited for; killed, it alone is asked twice.
    assert len(asked) <= (8 if how == signal.SIGINT else 9)
    assert section(answered)["asked"] + section(answered)["known_from_before"] == 8


def test_a_judge_that_gives_up_leaves_a_report(evaluate: Evaluate, server: Judge, answered: Path) -> None:
    refused = {"kind": "status", "status": 403, "text": "no", "match": "What is 2"}
    malformed = {"kind": "say", "text": "Both are fine.", "match": "What is 1", "times": 6}
    server.set(faults=[refused, malformed])
    done = evaluate("--yes", "--judge-parallel", "1")
    assert done.returncode == 1
    assert "error: the judge at" in done.stderr
    assert "status 403" in done.stderr
    assert "Traceback" not in done.stderr
    assert "The judging ended early" in done.stdout
    [verdict] = section(answered)["verdicts"]
    assert (verdict["judged"], verdict["answers"]) == (1, 4)
    kinds = [failed["kind"] for failed in verdict["failed"]]
    assert kinds == ["malformed"] * 2 + ["not asked"] * 4
    server.set()
    done = evaluate("--yes")
    assert done.returncode == 0, done.stderr
    assert len(server.graded()) == 8
    assert section(answered)["verdicts"][0]["failed"] == []


@pytest.mark.parametrize(("typed", "asked"), [("n", 0), ("y", 8)])
def test_on_a_terminal_it_asks_first(
    typed: str, asked: int, env: dict[str, str], server: Judge, answered: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ggufy", *judged(server)]
    process = subprocess.Popen(
        command, cwd=answered, env=with_cache(env, tmp_path), stdin=theirs, stderr=theirs, stdout=subprocess.DEVNULL
    )
    os.close(theirs)
    shown = ""
    try:
        while True:
            shown += os.read(ours, 1000).decode("utf-8", "replace")
            if "Ask the judge? [y/N]" in shown and typed:
                os.write(ours, f"{typed}\n".encode())
                typed = ""
    except OSError:
        # The terminal's other end is closed.
        pass
    assert process.wait(60) == 0, shown
    os.close(ours)
    assert shown.index("8 to ask") < shown.index("Ask the judge?")
    assert ("the judge was not asked" in shown) is (asked == 0)
    assert len(server.graded()) == asked


def test_what_is_wrong_with_a_judge_is_said_before_anything_is_done(
    fails: Callable[..., str], run: Callable[..., CompletedProcess[str]], quick: Path, server: Judge
) -> None:
    judge = ("eval", "quick", "--judge", "gpt-4o-mini")
    fails(*judge, "--yes", cwd=quick, naming=["no key for the judge at api.openai.com"], hinting=["OPENAI_API_KEY"])
    here = (*judge, "--judge-url", server.url)
    fails(*here, cwd=quick, naming=["a judge may cost money"], hinting=["--yes"])
    gone = (*judge, "--yes", "--judge-url", "http://127.0.0.1:9/v1")
    fails(*gone, cwd=quick, naming=["no server answers at http://127.0.0.1:9/v1"], hinting=["--judge-url"])
    server.set(key=KEY)
    fails(*here, "--yes", cwd=quick, naming=["does not accept a request without a key", "401"], hinting=["key"])
    fails("eval", "quick", "--only", "judge", cwd=quick, naming=["no judge is named"], hinting=["--judge"])
    fails("eval", "quick", "--judge-url", server.url, cwd=quick, naming=["is not named"], hinting=["--judge MODEL"])
    (quick / ".env").write_text(f"OPENAI_API_KEY={KEY} canary\n", "utf-8")
    said = fails(*here, "--yes", cwd=quick, naming=["OPENAI_API_KEY holds characters"], hinting=["again"])
    assert "canary" not in said
    done = run(*here, "--judge-price", "cheap", cwd=quick)
    assert done.returncode == 2
    assert "is not two amounts" in done.stderr


def test_a_model_that_cannot_be_asked_is_named_before_anything_is_done(
    evaluate: Evaluate, answered: Path, server: Judge
) -> None:
    export = answered / "runs/quick/export/quick-q8_0.gguf"
    plain = answered / "plain.gguf"
    plain.write_bytes(export.read_bytes().replace(b"tokenizer.chat_temp", b"tokenizer.chat_tump"))
    done = evaluate("--yes", "--against", "plain.gguf")
    assert done.returncode == 1
    assert "error: a model of quick has no chat template" in done.stderr
    assert "making" not in done.stderr
    assert server.graded() == []
