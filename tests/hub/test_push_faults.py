"""Everything that may go wrong between here and the Hub: the push arrives, or says in a line why not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import snapshot
from tests.hub.conftest import Hub

PUSH = ("push", "quick", "--repo", "ann/Llama-quick")
COMMIT = {"method": "POST", "path": "/commit/"}
PUT = {"method": "PUT", "path": "^/lfs/"}


def plain(folder: Path) -> dict[str, str]:
    """Everything but the receipt and the lock."""
    return {k: v for k, v in snapshot(folder).items() if not k.endswith(("hub.json", "lock"))}


def complete(hub: Hub, quick: Path) -> bool:
    """The branch holds the run, by one commit, and no large file arrived twice."""
    state, sent = hub.state("ann/Llama-quick"), hub.stored()
    assert len(sent) == len(set(sent)), "a file that had arrived was sent again"
    assert state["commits"] == 2
    gguf = (quick / "runs/quick/export/quick-q8_0.gguf").read_bytes()
    return hub.read("ann/Llama-quick", "quick-q8_0.gguf") == gguf and len(state["files"]["main"]) == 13


PASSING: dict[str, list[dict[str, Any]]] = {
    "dropped and broken uploads": [{**PUT, "drop": 500_000}, {**PUT, "status": 500}, {**PUT, "drop": 0}],
    "a Hub that is ill": [
        {"method": "GET", "path": "whoami", "status": 503},
        {"method": "POST", "path": "repos/create", "status": 500},
        {"method": "GET", "path": "/tree/", "status": 502},
        {"method": "POST", "path": "/preupload/", "status": 503},
        {"method": "POST", "path": "objects/batch", "status": 500},
        {"method": "POST", "path": "lfs-verify", "status": 504},
        {**COMMIT, "status": 500},
    ],
    "too many requests": [
        {"method": "GET", "path": "whoami", "status": 429, "headers": {"Retry-After": "1"}},
        {**PUT, "status": 429, "headers": {"Retry-After": "1"}},
        {**COMMIT, "status": 429, "headers": {"Retry-After": "1"}},
    ],
    "the answer to the commit is lost": [{**COMMIT, "lost": True}],
    "the answer to everything is lost once": [
        {"method": "POST", "path": "repos/create", "lost": True},
        {"method": "POST", "path": "objects/batch", "lost": True},
        {**COMMIT, "lost": True},
        {"method": "GET", "path": "/tree/", "lost": True, "after": 1},
    ],
    "conflicts": [
        {"method": "POST", "path": "repos/create", "status": 409},
        {**COMMIT, "status": 412},
        {**COMMIT, "status": 409},
    ],
    "a slow link": [{**PUT, "slow": 3_000_000}],
}


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_is_waited_for(hub: Hub, quick: Path, case: str) -> None:
    before = plain(quick)
    faults = PASSING[case]
    if case == "conflicts":
        hub.control("state", {"repos": [{"kind": "model", "name": "ann/Llama-quick"}]})
        hub.control("faults", faults[1:])
    else:
        hub.control("faults", faults)
    said = hub.works(*PUSH, cwd=quick)
    assert not hub.control("look")["faults_left"], "a fault did not happen"
    assert "Traceback" not in said
    # A repository made beforehand has its own two commits.
    assert hub.state("ann/Llama-quick")["commits"] == (3 if case == "conflicts" else 2)
    if case != "conflicts":
        assert complete(hub, quick)
    assert plain(quick) == before


STAYING = {
    "401": ({"method": "GET", "path": "whoami", "status": 401}, "does not accept this token"),
    "403 on the repository": ({"method": "POST", "path": "repos/create", "status": 403}, "may not write"),
    "403 on the file": ({**PUT, "status": 403}, "may not write"),
    "413": ({**PUT, "status": 413}, "not accept a file of that size"),
    "404 on the commit": ({**COMMIT, "status": 404}, "cannot commit"),
    "401 on the commit": ({**COMMIT, "status": 401}, "cannot commit"),
    "400": ({**COMMIT, "status": 400}, "refuses it (400)"),
    "500 for ever": ({"method": "POST", "path": "repos/create", "status": 500, "times": 99}, "still answers 500"),
}


@pytest.mark.parametrize("case", STAYING)
def test_what_stays_is_said_in_a_line(hub: Hub, quick: Path, case: str) -> None:
    before = plain(quick)
    fault, said = STAYING[case]
    hub.control("faults", [fault])
    assert said in hub.fails(*PUSH, cwd=quick)
    assert plain(quick) == before
    hub.control("faults")
    hub.works(*PUSH, cwd=quick)
    assert complete(hub, quick)


def test_the_branch_moves_while_files_are_sent(hub: Hub, quick: Path) -> None:
    """Somebody commits between the plan and the commit: their file stays, and ours is added."""
    hub.works(*PUSH, "--what", "adapter", cwd=quick)
    hub.control("faults", [{"method": "POST", "path": "/commit/", "status": 412}])
    edit = {"kind": "model", "name": "ann/Llama-quick", "branch": "main", "path": "NOTES.md", "text": "theirs"}
    hub.control("edit", edit)
    said = hub.works(*PUSH, cwd=quick)
    assert "looking again" in said
    assert hub.read("ann/Llama-quick", "NOTES.md") == b"theirs"
    assert "quick-q8_0.gguf" in hub.files("ann/Llama-quick")


def _points() -> list[dict[str, Any]]:
    """Twenty moments of a push: before or after one of its requests, or in the middle of a large file."""
    dice = random.Random(6)
    whole = dice.sample([(n, where) for n in range(20) for where in ("before", "after")], 16)
    points = [{"method": "*", "path": ".", "after": n, "hold": where} for n, where in sorted(whole)]
    return points + [{**PUT, "after": n, "hold": dice.random()} for n in (0, 0, 1, 1)]


@pytest.mark.parametrize("fault", _points(), ids=lambda fault: f"{fault['method']}{fault['after']}-{fault['hold']}")
def test_killed(hub: Hub, quick: Path, fault: dict[str, Any]) -> None:
    before = plain(quick)
    assert hub.kill_when_held(*PUSH, cwd=quick, fault=fault), "the push had ended before it could be killed"
    assert plain(quick) == before
    hub.works(*PUSH, cwd=quick)
    assert complete(hub, quick)
    assert plain(quick) == before
