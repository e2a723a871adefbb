"""Errors around the Hub whose message has to name the cause, and whose hint has to be something that can be done."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from tests.hub.conftest import ANN, Hub

REPO = "ann/Llama-quick"
PUSH = ("push", "quick", "--repo", REPO)
READS = {
    "pull": ("pull", "ann/nosuch"),
    "chat": ("chat", "ann/nosuch", "--prompt", "Hello"),
    "train": ("train", "--from-hub", "ann/nosuch"),
}


@pytest.mark.parametrize("what", READS)
def test_without_a_token_what_is_not_there_may_be_private(hub: Hub, tmp_path: Path, what: str) -> None:
    said = hub.fails(*READS[what], cwd=tmp_path, token="")
    assert "ann/nosuch: no such repository, or it is private" in said
    assert "check the name" in said
    assert "does not accept" in hub.fails(*READS[what], cwd=tmp_path, token="hf_" + "q" * 34)


def test_a_token_that_may_not_read(hub: Hub, quick: Path, tmp_path: Path) -> None:
    hub.works(*PUSH, cwd=quick)
    for path in ("/revision/main", "/tree/", "/resolve/"):
        hub.control("faults", [{"method": "*", "path": path, "status": 403}])
        said = hub.fails("pull", REPO, cwd=tmp_path)
        assert f"this token may not read {REPO}" in said
        assert "--repo" not in said


def test_branches_and_runs_that_are_not_there(hub: Hub, tmp_path: Path) -> None:
    hub.control("state", {"repos": [{"kind": "model", "name": "ann/other", "files": {"README.md": "mine"}}]})
    assert "holds no run that ggufy pushed" in hub.fails("pull", "ann/other", cwd=tmp_path)
    assert "ann/other@typo: no such branch" in hub.fails("pull", "ann/other", "--branch", "typo", cwd=tmp_path)
    assert "holds no checkpoints" in hub.fails("train", "--from-hub", "ann/other", cwd=tmp_path)


def test_a_run_that_came_without_its_adapter_is_verified(hub: Hub, quick: Path, tmp_path: Path) -> None:
    hub.works(*PUSH, "--what", "gguf", cwd=quick)
    hub.works("pull", REPO, cwd=tmp_path)
    said = hub.works("verify", "quick", cwd=tmp_path)
    assert "the adapter is not here, so nothing is compared" in said
    assert "quick-q8_0.gguf: 39 tensors valid" in said


def test_a_finished_run_is_said_to_be_finished(hub: Hub, quick: Path, tmp_path: Path) -> None:
    hub.works(*PUSH, cwd=quick)
    hub.works("pull", REPO, cwd=tmp_path)
    said = hub.works("train", "--from-hub", REPO, cwd=tmp_path)
    assert "is here already, and its training has ended" in said
    assert "at step" not in said


def test_what_makes_the_files_that_are_missing(hub: Hub, quick: Path) -> None:
    record, stamp = (quick / "runs/quick" / name for name in ("run.json", "stamps/adapter.json"))
    frozen = json.loads(record.read_text())
    frozen["recipe"]["hub"]["what"] = ["adapter", "gguf", "merged"]
    record.write_text(json.dumps(frozen))
    stamp.unlink()
    said = hub.works(*PUSH, cwd=quick)
    assert "no adapter files yet, so none are sent; the end of the training makes them" in said
    assert "no merged files yet, so none are sent; `ggufy export quick --merged` makes them" in said


def test_two_pushes_at_once(hub: Hub, quick: Path) -> None:
    with (quick / "runs/quick/lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = hub.fails(*PUSH, cwd=quick)
        assert "in use by another ggufy" in said
        assert "--run" not in said


@pytest.mark.parametrize("option", ["--tag", "--branch", "--message", "--repo"])
def test_a_token_in_a_name(hub: Hub, quick: Path, option: str) -> None:
    value = f"ann/{ANN}" if option == "--repo" else ANN
    said = hub.fails(*PUSH, option, value, cwd=quick)
    assert "holds a Hugging Face token" in said
    assert ANN not in said
    assert not hub.requests()


def test_a_space_says_what_is_missing_and_what_was_sent(hub: Hub, quick: Path) -> None:
    space = ("space", "quick", "--repo", "ann/talk")
    assert "hint: `ggufy push quick --repo user/name` first" in hub.fails(*space, cwd=quick)
    hub.works(*PUSH, cwd=quick)
    said = hub.fails(*space, "--quant", "q4_k_m", cwd=quick)
    assert f"`ggufy export quick --quant q4_k_m`, then `ggufy push quick --repo {REPO}`" in said
    sent = hub.works(*space, "--push", cwd=quick)
    count = len([path for path in (quick / "spaces/talk").rglob("*") if path.is_file()])
    assert f"{count} new" in sent, sent
    assert "nothing was sent" in hub.works(*space, "--push", cwd=quick)
    edit = {"kind": "space", "name": "ann/talk", "branch": "main", "path": "app.py", "text": "theirs"}
    hub.control("edit", edit)
    said = hub.fails(*space, "--push", cwd=quick)
    assert "--branch" not in said
    assert "choose another --repo to keep both" in said
