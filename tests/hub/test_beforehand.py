"""What is checked before a training whose results, or checkpoints, are to go to the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.conftest import ANN, Hub

TRAIN = ("train", "--recipe", "tiny", "--set", "train.max_steps=2")
# How many conversations there are is known when they were prepared.
COUNTED = (*TRAIN, "--set", "data.train_size=null", "--set", "train.batch_size=4", "--run", "n1")


def test_checkpoints_and_push_have_one_name(hub: Hub, tmp_path: Path) -> None:
    """Also with {n}, where the recipe does not say how many conversations there will be."""
    names = ("--set", "hub.repo=ann/n-{n}", "--set", "hub.branch=b{n}", "--set", "hub.checkpoints=end")
    hub.works(*COUNTED, *names, cwd=tmp_path)
    hub.works("push", "n1", cwd=tmp_path)
    [(name, state)] = hub.control("look")["repos"].items()
    n = name.removeprefix("model:ann/n-")
    assert int(n) > 1
    assert state["branches"].keys() == {"main", f"b{n}", f"b{n}-checkpoints"}


def test_whose_a_name_is_is_known_before_it_is_whole(hub: Hub, tmp_path: Path) -> None:
    assert "the token belongs to ann, who may not write to bob" in hub.fails(
        *COUNTED, "--set", "hub.repo=bob/n-{n}", cwd=tmp_path
    )
    assert not (tmp_path / "runs").exists()


def test_a_whole_name_is_checked_before_the_training(hub: Hub, tmp_path: Path) -> None:
    hub.control("state", {"repos": [{"kind": "model", "name": f"ann/n-{n}"} for n in range(150, 300)]})
    said = hub.fails(*COUNTED, "--set", "hub.repo=ann/n-{n}", "--set", "hub.private=true", cwd=tmp_path)
    assert "is public" in said
    assert not (tmp_path / "runs" / "n1" / "checkpoints").exists()


BAD = {
    "hub.branch=a..b": "'a..b' cannot be the name of a branch",
    "hub.branch=b{n}..": "cannot be the name of a branch",
    "hub.tag=v 1": "'v 1' cannot be the name of a tag",
    "hub.repo=x": "'x' has no user name",
}


@pytest.mark.parametrize("value", BAD)
def test_a_name_that_cannot_be_one(hub: Hub, tmp_path: Path, value: str) -> None:
    for command in (("train", "--recipe"), ("recipes", "check")):
        said = hub.fails(*command, "tiny", "--set", "hub.repo=ann/x", "--set", value, cwd=tmp_path)
        assert f"{value.partition('=')[0]}: " in said
        assert BAD[value] in said
    assert not hub.requests()
    assert not (tmp_path / "runs").exists()


def test_a_token_for_a_name(hub: Hub, tmp_path: Path) -> None:
    said = hub.fails(*TRAIN, "--set", "hub.repo=ann/x", "--set", f"hub.tag={ANN}", cwd=tmp_path)
    assert "holds a Hugging Face token" in said
    assert ANN not in said
    assert not hub.requests()
