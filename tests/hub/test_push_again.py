"""Pushes to a branch that holds something already: of this run, of another machine, of an earlier training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.hub.conftest import Hub

REPO = "ann/Llama-quick"
PUSH = ("push", "quick", "--repo", REPO)
GGUF = {"quick-q8_0.gguf", "quick-q8_0.Modelfile"}
COMMIT = {"method": "POST", "path": "/commit/"}


def edit(hub: Hub, path: str, text: str | None) -> None:
    """Somebody changes a file on the Hub, or removes it."""
    hub.control("edit", {"kind": "model", "name": REPO, "branch": "main", "path": path, "text": text})


def change(path: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    how(values)
    path.write_text(json.dumps(values))


def test_what_others_wrote_is_not_a_pulled_runs_own(hub: Hub, there: Path) -> None:
    edit(hub, "README.md", "By hand.")
    hub.works("pull", REPO, cwd=there)
    assert "has a README.md that this run did not put there" in hub.fails(*PUSH, cwd=there)
    assert hub.read(REPO, "README.md") == b"By hand."
    hub.works(*PUSH, "--force", cwd=there)
    assert hub.read(REPO, "README.md") != b"By hand."


def test_what_ggufy_wrote_is_a_pulled_runs_own(hub: Hub, there: Path) -> None:
    hub.works("pull", REPO, cwd=there)
    change(there / "runs/quick/run.json", lambda values: values["recipe"]["hub"].update(language=["de"]))
    hub.works(*PUSH, cwd=there)
    assert "language:\n- de" in hub.read(REPO, "README.md").decode()


def test_a_run_keeps_its_name_on_the_hub(hub: Hub, quick: Path, there: Path) -> None:
    """Two machines that hold the same under two names agree on what is there."""
    hub.works("pull", REPO, "--run", "back", cwd=there)
    assert "nothing was sent" in hub.works("push", "back", "--repo", REPO, cwd=there)
    assert "nothing was sent" in hub.works(*PUSH, cwd=quick)
    assert json.loads(hub.read(REPO, "ggufy/manifest.json"))["run"] == "quick"


def test_files_of_an_earlier_training_go(hub: Hub, quick: Path, quick_again: tuple[str, ...], there: Path) -> None:
    edit(hub, "theirs.gguf", "theirs")
    hub.works("train", *quick_again, "--set", "train.learning_rate=0.001", "--fresh", cwd=quick)
    hub.fails(*PUSH, cwd=quick)
    assert hub.files(REPO).keys() >= GGUF
    said = hub.works(*PUSH, "--force", cwd=quick)
    assert "removed quick-q8_0.gguf, which came from an earlier training" in said
    assert "also has theirs.gguf, which is not part of this push" in said
    assert not hub.files(REPO).keys() & GGUF
    assert "theirs.gguf" in hub.files(REPO)
    hub.works("pull", REPO, cwd=there)


def test_files_of_a_shorter_training_go(hub: Hub, quick: Path) -> None:
    """Without --force, where this run has put them there; and what was not exported again stays here."""
    hub.works(*PUSH, cwd=quick)
    change(quick / "runs/quick/stamps/adapter.json", lambda stamp: stamp.update(sha256="f" * 64))
    said = hub.works(*PUSH, cwd=quick)
    assert "quick-q8_0.gguf comes from an earlier training, so it is not sent" in said
    assert "removed quick-q8_0.gguf" in said
    assert not hub.files(REPO).keys() & GGUF
    assert not json.loads((quick / "runs/quick/hub.json").read_text())["pushes"][f"{REPO}@main"]["files"].keys() & GGUF
    assert "no gguf files of the last training yet" in hub.fails(*PUSH, "--what", "gguf", cwd=quick)


def test_of_the_same_adapter_they_stay(hub: Hub, quick: Path) -> None:
    hub.works(*PUSH, cwd=quick)
    for name in GGUF:
        (quick / "runs/quick/export" / name).unlink()
        (quick / f"runs/quick/stamps/export--{name}.json").unlink()
    hub.works(*PUSH, "--what", "adapter", cwd=quick)
    assert hub.files(REPO).keys() >= GGUF


def test_what_was_removed_there_is_not_sent_again(hub: Hub, quick: Path) -> None:
    hub.works(*PUSH, cwd=quick)
    for name in GGUF:
        edit(hub, name, None)
    hub.works(*PUSH, "--what", "adapter", cwd=quick)
    assert not hub.files(REPO).keys() & GGUF
    assert "quick-q8_0.gguf" not in hub.read(REPO, "README.md").decode()
    hub.works(*PUSH, "--what", "gguf", cwd=quick)
    assert hub.files(REPO).keys() >= {*GGUF, "adapter_model.safetensors"}


BEGIN_LIKE_PATHS = {"prompt": "/ask {prompt}", "example": "~ what is this?", "system": "C:\\answer"}


def test_texts_that_begin_like_paths_stay(hub: Hub, quick: Path) -> None:
    """Only places are shortened, also those of a mix."""

    def begin(values: dict[str, Any]) -> None:
        wanted = values["recipe"]
        wanted["data"] |= {"prompt": BEGIN_LIKE_PATHS["prompt"], "source": "/some/where/a.jsonl"}
        wanted["data"]["more"] = [{"source": "~/b.jsonl", "prompt": BEGIN_LIKE_PATHS["prompt"]}]
        wanted["hub"]["examples"] = [BEGIN_LIKE_PATHS["example"]]
        wanted["space"]["system"] = BEGIN_LIKE_PATHS["system"]
        values["data"] |= {"name": "/some/where/a.jsonl", "more": [["/some/where/b.jsonl", None]]}

    change(quick / "runs/quick/run.json", begin)
    hub.works(*PUSH, cwd=quick)
    record, card = (hub.read(REPO, path).decode() for path in ("ggufy/run.json", "README.md"))
    wanted = json.loads(record)["recipe"]
    assert wanted["data"]["prompt"] == wanted["data"]["more"][0]["prompt"] == BEGIN_LIKE_PATHS["prompt"]
    assert wanted["hub"]["examples"] == [BEGIN_LIKE_PATHS["example"]]
    assert wanted["space"]["system"] == BEGIN_LIKE_PATHS["system"]
    assert (wanted["data"]["source"], wanted["data"]["more"][0]["source"]) == ("a.jsonl", "b.jsonl")
    for text in (BEGIN_LIKE_PATHS["prompt"], BEGIN_LIKE_PATHS["example"]):
        assert text in card
    assert "/some/where" not in record + card
    assert "~/" not in record + card


def test_what_had_arrived_is_not_said_to_be_sent(hub: Hub, quick: Path) -> None:
    assert hub.kill_when_held(*PUSH, cwd=quick, fault={**COMMIT, "hold": "before"})
    begun = len(hub.requests())
    said = hub.works(*PUSH, cwd=quick)
    assert not [request for request in hub.requests()[begun:] if request["method"] == "PUT"]
    assert "sent quick" not in said
    assert "quick-q8_0.gguf has arrived" in said


def test_each_file_is_named_once(hub: Hub, quick: Path) -> None:
    busy = {"status": 429, "headers": {"Retry-After": "1"}}
    hub.control("faults", [{**COMMIT, "status": 412}, {**COMMIT, **busy}])
    said = hub.works(*PUSH, cwd=quick)
    assert said.count("quick-q8_0.gguf has arrived") == 1
    assert "the Hub answered 429 to the commit; trying again in" in said
    assert "lost" not in said


@pytest.mark.parametrize(
    "receipt", ['{"pushes": [1]}', '{"pushes": {"REPO@main": 3}}', '{"pending": {"REPO@main": []}}', "[]"]
)
def test_a_damaged_receipt(hub: Hub, quick: Path, receipt: str) -> None:
    """As if nothing were known: what is there and the same is not sent, and what is not is not written over."""
    hub.works(*PUSH, cwd=quick)
    (quick / "runs/quick/hub.json").write_text(receipt.replace("REPO", REPO))
    assert "nothing was sent" in hub.works(*PUSH, cwd=quick)
    (quick / "runs/quick/hub.json").write_text(receipt.replace("REPO", REPO))
    assert "on the Hub yet" in hub.fails("space", "quick", "--repo", "ann/talk", cwd=quick)


def test_a_name_that_is_taken_by_nothing(hub: Hub, quick: Path) -> None:
    hub.control("faults", [{"method": "POST", "path": "repos/create", "status": 409}])
    done = hub.run(*PUSH, cwd=quick)
    assert done.returncode == 1
    assert "made http" not in done.stderr
    assert "the Hub says that the name is taken" in done.stderr
    hub.works(*PUSH, cwd=quick)


def test_the_card_says_how_the_merged_model_is_loaded(
    hub: Hub, quick: Path, run: Callable[..., CompletedProcess[str]]
) -> None:
    """As a reader would: what stands in the card is run. Beside an adapter, and alone."""
    done = run("export", "quick", "--merged", "--quant", "q8_0", "--no-logits", cwd=quick)
    assert done.returncode == 0, done.stderr
    for name, what in (("alone", "merged"), ("beside", "merged,adapter")):
        hub.works("push", "quick", "--repo", f"ann/Llama-{name}", "--what", what, cwd=quick)
        card = hub.read(f"ann/Llama-{name}", "README.md").decode()
        [block] = [text for text in card.split("```python\n")[1:] if "merged" in text.partition("```")[0]]
        code = block.partition("```")[0] + "\nprint(model.num_parameters(), tokenizer('Hello').input_ids)"
        place = quick / name
        place.mkdir()
        (place / "card.py").write_text(code)
        shown = _python(hub, place / "card.py")
        assert shown.returncode == 0, shown.stderr
        parameters, ids = shown.stdout.split(maxsplit=1)
        assert int(parameters) > 1_000_000
        assert len(json.loads(ids)) > 1


def _python(hub: Hub, script: Path) -> CompletedProcess[str]:
    env = {**hub.env, "HF_HOME": str(script.parent / "hf")}
    return subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=180)
