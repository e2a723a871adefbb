"""`ggufy eval` as a user runs it: on a run, on files, twice, and after a kill."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import ggufy
from ggufy.evaluate.session import heldout
from ggufy.stages import model_source
from tests.conftest import Process, snapshot

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]

PROMPTS = [
    {"id": "one", "prompt": "What is the capital of France?", "expected": "The capital of France is Paris."},
    {"id": "two", "prompt": "<script>alert(1)</script> & more, please", "language": "en"},
    "A standard violin has how many strings?",
]
SHORT = ("--prompts", "prompts.jsonl", "--max-tokens", "24")
LIGHT = ("--no-adapter", *SHORT)


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "eval" / "report.json").read_text("utf-8")))


def losses(folder: Path) -> dict[str, float]:
    return {one["name"]: one["loss"] for one in report(folder)["sections"]["heldout"]["models"] if "loss" in one}


@pytest.fixture(scope="module")
def evaluated_made(run: Run, taught_made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with runs/taught, evaluated, and what was printed."""
    cwd = Path(shutil.copytree(taught_made, tmp_path_factory.mktemp("eval") / "taught"))
    (cwd / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in PROMPTS), "utf-8")
    done = run("eval", "taught", *SHORT, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, done.stdout


@pytest.fixture
def evaluated(evaluated_made: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(evaluated_made[0], tmp_path / "evaluated"))


def test_training_helped_and_quants_cost_what_they_save(evaluated_made: tuple[Path, str]) -> None:
    cwd, shown = evaluated_made
    found = losses(cwd / "runs" / "taught")
    assert set(found) == {"base f16", "adapter model", "f16", "q8_0", "q4_k_m"}
    assert all(loss < found["base f16"] - 1 for name, loss in found.items() if name != "base f16")
    # The same model by transformers and by llama.cpp.
    assert found["f16"] == pytest.approx(found["adapter model"], rel=0.01)
    sections = report(cwd / "runs" / "taught")["sections"]
    assert (sections["heldout"]["conversations"], sections["heldout"]["tokens"]) == (20, 384)
    [quants] = sections["quants"]["runs"]
    files = {one["name"]: one for one in quants["files"]}
    assert 0 < files["q8_0"]["kl"] < files["q4_k_m"]["kl"]
    assert files["q8_0"]["kl"] < files["q8_0"]["kl_99"]
    assert files["q8_0"]["same_top"] >= files["q4_k_m"]["same_top"]
    assert files["q4_k_m"]["bytes"] < files["q8_0"]["bytes"] < files["f16"]["bytes"]
    assert 4 < files["q4_k_m"]["bits_per_weight"] < 8.5 < files["q8_0"]["bits_per_weight"] < 9
    assert files["f16"]["bits_per_weight"] == pytest.approx(16, abs=0.2)
    assert all(one["tokens_per_second"] > 0 for one in files.values())
    for name in ("q8_0", "q4_k_m"):
        assert files[name]["perplexity_ratio"] == pytest.approx(files[name]["perplexity"] / files["f16"]["perplexity"])
        assert files[name]["bytes"] == (cwd / f"runs/taught/export/taught-{name}.gguf").stat().st_size
    assert quants["recommended"] in shown
    assert "runs/taught/eval/report.html" in shown
    # What was made for the comparison is gone.
    assert not list((cwd / "runs" / "taught").rglob("*f16*.gguf"))


def test_answers_are_side_by_side(evaluated_made: tuple[Path, str]) -> None:
    found = report(evaluated_made[0] / "runs" / "taught")["sections"]["prompts"]
    assert [one["name"] for one in found["models"]] == ["base q8_0", "tuned q8_0"]
    assert [one["id"] for one in found["questions"]] == ["one", "two", "3"]
    paris = found["questions"][0]["answers"]
    assert "Paris" in paris["tuned q8_0"]["text"]
    assert paris["tuned q8_0"]["ended"]
    # Random weights babble to the end.
    assert "endless" in paris["base q8_0"]["flags"]


class Page(HTMLParser):
    """What a page holds, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.said += data


def test_the_page_needs_nothing_and_runs_nothing(evaluated_made: tuple[Path, str]) -> None:
    text = (evaluated_made[0] / "runs/taught/eval/report.html").read_text("utf-8")
    page = Page(text)
    assert page.tags.count("section") == 4
    assert page.tags.count("svg") == 2
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert all(place.startswith("#") for place in page.loads)
    assert "url(" not in text
    assert "@import" not in text
    # What a question or an answer says is text.
    assert "<script>alert(1)</script> & more, please" in page.said
    assert "expected: The capital of France is Paris." in page.said


def test_a_second_time_nothing_is_done(run: Run, evaluated: Path) -> None:
    before = snapshot(evaluated)
    times = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*") if path.is_file()}
    done = run("eval", "taught", *SHORT, cwd=evaluated)
    assert done.returncode == 0, done.stderr
    assert "up to date: nothing was measured again" in done.stdout
    assert done.stderr == ""
    assert snapshot(evaluated) == before
    assert {path: path.stat().st_mtime_ns for path in times if path.name != "lock"} == {
        path: when for path, when in times.items() if path.name != "lock"
    }
    as_json = run("eval", "taught", *SHORT, "--json", cwd=evaluated)
    assert json.loads(as_json.stdout) == report(evaluated / "runs" / "taught")


def test_only_what_is_new_is_asked(run: Run, evaluated: Path) -> None:
    """One question more, another limit for KL, and fewer conversations: the rest is taken over."""
    with (evaluated / "prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "Who wrote the play Hamlet?"}\n')
    before = report(evaluated / "runs" / "taught")["sections"]
    done = run("eval", "taught", *SHORT, "--max-kl", "50", "--limit", "7", cwd=evaluated)
    assert done.returncode == 0, done.stderr
    after = report(evaluated / "runs" / "taught")["sections"]
    old, new = (one["prompts"]["questions"] for one in (before, after))
    # With the seconds that each answer took the first time.
    assert new[:3] == old
    assert "Shakespeare" in new[3]["answers"]["tuned q8_0"]["text"]
    assert after["quants"]["runs"][0]["recommended"] == "q4_k_m"
    assert (after["heldout"]["conversations"], after["heldout"]["of"]) == (7, 20)


def test_a_killed_evaluation_goes_on(start: Callable[..., Process], light_run: Run, taught: Path) -> None:
    place = taught / "runs" / "taught"
    process = start(
        "eval", "taught", "--no-adapter", "--max-tokens", "150", "--limit", "5", cwd=taught, log=taught / "log"
    )

    def written() -> list[str]:
        found = list(place.glob("partial/eval--answers--*/*.jsonl"))
        return [line for path in found for line in path.read_text("utf-8").splitlines() if line.endswith("}")]

    while process.poll() is None and len(written()) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [json.loads(line) for line in written()]
    assert 2 <= len(kept) < 14, (taught / "log").read_text("utf-8")
    done = light_run("eval", "taught", "--no-adapter", "--max-tokens", "150", "--limit", "5", cwd=taught)
    assert done.returncode == 0, done.stderr
    # The losses were measured, and the files for it made, before the kill.
    assert "making" not in done.stderr
    answers = list(place.glob("eval/answers/prompts-base-*.jsonl"))
    rows = [json.loads(line) for line in answers[0].read_text("utf-8").splitlines()]
    assert len(rows) == 14
    assert rows[: len(kept)] == kept
    assert not (place / "partial").exists()
    assert not list(place.glob("eval/*.gguf"))


def test_without_torch(light_run: Run, taught: Path) -> None:
    (taught / "prompts.jsonl").write_text('{"prompt": "Hello?"}\n', "utf-8")
    done = light_run("eval", "taught", *SHORT, "--only", "heldout", "--limit", "3", "--keep", cwd=taught)
    assert done.returncode == 0, done.stderr
    assert "The adapter model was not measured: torch is not installed." in done.stdout
    assert set(losses(taught / "runs" / "taught")) == {"base f16", "f16", "q8_0", "q4_k_m"}
    assert sorted(path.name for path in taught.glob("runs/taught/eval/*.gguf")) == ["base-f16.gguf", "tuned-f16.gguf"]
    # An export in f16 is another file, and is not mistaken for these.
    listed = light_run("runs", "show", "taught", cwd=taught)
    assert "f16" not in listed.stdout


def test_one_file_against_another(light_run: Run, taught: Path, row: Callable[..., str]) -> None:
    (taught / "data.jsonl").write_text(
        row("Which city is the capital of France?", "The capital of France is Paris.")
        + row("What is 12 x 12?", "12 x 12 = 144."),
        "utf-8",
    )
    (taught / "prompts.txt").write_text("What is 12 x 12?\n", "utf-8")
    files = [f"runs/taught/export/taught-{name}.gguf" for name in ("q4_k_m", "q8_0")]
    given = ("--data", "data.jsonl", "--prompts", "prompts.txt", "--max-tokens", "24")
    done = light_run("eval", files[0], "--against", files[1], *given, cwd=taught)
    assert done.returncode == 0, done.stderr
    [quants] = report(taught / "evals" / "taught-q4_k_m")["sections"]["quants"]["runs"]
    assert quants["reference"] == "taught-q8_0.gguf"
    assert [one.get("kl", 0) > 0 for one in quants["files"]] == [False, True]
    # The file reads the conversations as the run does, which knows the base.
    done = light_run("eval", "taught", "--no-adapter", *given, cwd=taught)
    assert done.returncode == 0, done.stderr
    alone, known = losses(taught / "evals" / "taught-q4_k_m"), losses(taught / "runs" / "taught")
    assert alone["taught-q4_k_m.gguf"] == pytest.approx(known["q4_k_m"], rel=1e-6)


def test_two_files_in_one_folder_against_a_third(light_run: Run, taught: Path, row: Callable[..., str]) -> None:
    """Files share the folder of --out, and that of a name that both have; each is measured and told apart."""
    (taught / "data.jsonl").write_text(row("What is 12 x 12?", "12 x 12 = 144."), "utf-8")
    q4, q8 = (taught / f"runs/taught/export/taught-{name}.gguf" for name in ("q4_k_m", "q8_0"))
    for folder, path in (("a", q4), ("b", q8)):
        (taught / folder).mkdir()
        shutil.copy(path, taught / folder / "model.gguf")
    given = ("--against", "runs/taught/export/taught-q8_0.gguf", "--data", "data.jsonl", "--only", "quants,heldout")
    done = light_run("eval", "a/model.gguf", "b/model.gguf", *given, "--out", "new", cwd=taught)
    assert done.returncode == 0, done.stderr
    four, eight = report(taught / "new")["sections"]["quants"]["runs"]
    assert four["files"][1]["kl"] > eight["files"][1]["kl"] == 0
    assert light_run("eval", "a/model.gguf", "b/model.gguf", *given, cwd=taught).returncode == 0
    again = report(taught / "evals" / "model-model")["sections"]["quants"]["runs"]
    assert [run["files"][1]["kl"] for run in again] == [four["files"][1]["kl"], 0]
    assert not list(taught.glob("**/lock.*"))


def test_a_file_may_be_compared_with_one_that_has_no_template(
    light_run: Run, taught: Path, row: Callable[..., str]
) -> None:
    q8, q4 = (f"runs/taught/export/taught-{name}.gguf" for name in ("q8_0", "q4_k_m"))
    (taught / "data.jsonl").write_text(row("Hello?"), "utf-8")
    (taught / "plain.gguf").write_bytes(
        (taught / q8).read_bytes().replace(b"tokenizer.chat_temp", b"tokenizer.chat_tump")
    )
    done = light_run("eval", q4, "--against", "plain.gguf", "--data", "data.jsonl", cwd=taught)
    assert done.returncode == 0, done.stderr
    assert "no prompts are asked: a model has no chat template" in done.stderr
    [quants] = report(taught / "evals" / "taught-q4_k_m")["sections"]["quants"]["runs"]
    assert all(one["tokens_per_second"] > 0 for one in quants["files"])


def test_what_was_measured_stays_when_something_else_is_asked_for(
    light_run: Run, taught: Path, row: Callable[..., str]
) -> None:
    """Other conversations, fewer, other prompts, a longer answer, another file beside: and then all as at first."""
    (taught / "data.jsonl").write_text(row("Hello?"), "utf-8")
    (taught / "prompts.txt").write_text("How are you?\n", "utf-8")
    # Of the names that ggufy's own files have.
    shutil.copy(taught / "data.jsonl", taught / "base.jsonl")
    (taught / "prompts.yaml").write_text("- Who are you?\n", "utf-8")
    first = ("--limit", "3", "--rows", "2", "--no-adapter", "--prompts", "prompts.txt", "--max-tokens", "4")
    others: list[tuple[str, ...]] = [
        ("--limit", "1"),
        ("--data", "data.jsonl"),
        ("--data", "base.jsonl"),
        ("--max-tokens", "6"),
        ("--prompts", "prompts.yaml"),
        ("--only", "quants", "--against", "runs/taught/export/taught-q4_k_m.gguf"),
    ]
    for given in ((), *others):
        done = light_run("eval", "taught", *first, *given, cwd=taught)
        assert done.returncode == 0, done.stderr
    done = light_run("eval", "taught", *first, cwd=taught)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if re.search("making|loss of|against|asking|answering", line)]


def test_two_runs_side_by_side(light_run: Run, evaluated: Path) -> None:
    shutil.copytree(evaluated / "runs" / "taught", evaluated / "runs" / "other")
    done = light_run("eval", "taught", "other", *LIGHT, cwd=evaluated)
    assert done.returncode == 0, done.stderr
    found = report(evaluated / "evals" / "taught-other")["sections"]
    names = [one["name"] for one in found["heldout"]["models"]]
    assert names == [f"{run}: {name}" for run in ("taught", "other") for name in ("base f16", "f16", "q8_0", "q4_k_m")]
    assert [one["name"] for one in found["quants"]["runs"]] == ["taught", "other"]
    assert len(found["prompts"]["questions"][0]["answers"]) == 4


def test_what_was_made_of_another_adapter_is_left_out(light_run: Run, taught: Path) -> None:
    stamp = taught / "runs/taught/stamps/export--taught-q8_0.gguf.json"
    values = json.loads(stamp.read_text("utf-8"))
    values["inputs"]["adapter"] = "0" * 64
    stamp.write_text(json.dumps(values), "utf-8")
    done = light_run("eval", "taught", "--only", "heldout", "--limit", "2", "--no-adapter", cwd=taught)
    assert done.returncode == 0, done.stderr
    assert "taught-q8_0.gguf is left out" in done.stderr
    assert set(losses(taught / "runs" / "taught")) == {"base f16", "f16", "q4_k_m"}


def test_bad_input(fails: Fails, taught: Path, row: Callable[..., str]) -> None:
    """Each in one line, before anything is written."""
    q8, q4 = (f"runs/taught/export/taught-{name}.gguf" for name in ("q8_0", "q4_k_m"))
    (taught / "odd.jsonl").write_text('{"prompt": "Hello"}\n{"question": "Hello"}\n', "utf-8")
    (taught / "empty.jsonl").write_text("", "utf-8")
    (taught / "data.jsonl").write_text(row("Hello?"), "utf-8")
    # One token written otherwise: the same size, another tokenizer.
    data = (taught / q8).read_bytes()
    (taught / "other.gguf").write_bytes(data.replace(b"the", b"teh", 1))
    (taught / "strange.gguf").write_bytes(data.replace(b"llama", b"llamb", 1))
    for arguments, naming, hinting in [
        (("taught", "--prompts", "odd.jsonl"), ["odd.jsonl:2", "unknown key 'question'"], ['{"prompt": "..."}']),
        (("taught", "--prompts", "none.txt"), ["none.txt"], []),
        (("taught", "--only", "heldout,judgement"), ["judgement"], ["heldout, quants, prompts"]),
        (("taught", "--context", "16"), ["what taught held out is", "--context holds 16"], ["--context"]),
        (("taught", "taught"), ["taught is named twice"], []),
        (("taught", "--data", "none.jsonl"), ["none.jsonl"], []),
        (("taught", "--data", "empty.jsonl"), ["empty.jsonl"], []),
        ((q8,), ["is not a run", "no held-out conversations"], ["--data"]),
        ((q8, "--data", "data.jsonl", "--only", "quants"), ["is one file"], ["--against"]),
        ((q8, "--data", "data.jsonl", "--against", q8), ["the file itself"], ["another"]),
        (("nothing",), ["no run 'nothing'"], ["taught"]),
        (("none.gguf",), ["no file none.gguf"], []),
        ((q4, "--against", "other.gguf", "--data", "data.jsonl"), ["different tokenizers"], ["--only prompts"]),
        (("strange.gguf", "--only", "prompts"), ["strange.gguf", "unknown model architecture: 'llamb'"], []),
    ]:
        fails("eval", *arguments, cwd=taught, naming=naming, hinting=hinting)


def test_what_a_run_held_out_is_asked_with_its_answers(taught_made: Path) -> None:
    found = heldout.questions(model_source.of_run(ggufy.Run(taught_made / "runs" / "taught")), None, 5)
    assert len(found) == 5
    assert found[3].conversation == [{"role": "user", "content": "Which city is the capital of France?"}]
    assert found[3].expected == "The capital of France is Paris."
