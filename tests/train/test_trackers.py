"""Trackers: their figures lie in the run, and what goes wrong in one does not end a training."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

from ggufy.recipe import recipe
from ggufy.train import trackers


class Broken(TrainerCallback):
    calls = 0

    def on_log(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        raise ConnectionError("no route\nto host")


def test_what_goes_wrong_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    guarded = trackers.Guarded("wandb", broken)
    with caplog.at_level(logging.WARNING, "ggufy"):
        guarded.on_train_begin(None, None, None)
        guarded.on_log(None, None, None, logs={"loss": 1.0})
        guarded.on_log(None, None, None, logs={"loss": 0.9})
    assert broken.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "wandb: ConnectionError: no route to host; training goes on without it"
    ]


@pytest.mark.parametrize("key", ["", "WANDB_API_KEY", "netrc"])
def test_wandb_without_a_login_stays_here(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_SILENT", "WANDB_CONSOLE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if key == "netrc":
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password abc\n", encoding="utf-8")
    elif key:
        monkeypatch.setenv(key, "abc")
    monkeypatch.setattr(trackers, "_make", lambda _: None)
    wanted = recipe.load("tiny", ["tracking.report_to=[wandb]"])
    job: Any = SimpleNamespace(recipe=wanted, metrics=tmp_path / "metrics.jsonl")
    with caplog.at_level(logging.INFO, "ggufy"):
        assert len(trackers.callbacks(job)) == 1
    assert os.environ.get("WANDB_MODE") == (None if key else "offline")
    assert Path(os.environ["WANDB_DIR"]) == tmp_path / "tracking"
    assert ("no login" in caplog.text) == (not key)
    assert "abc" not in caplog.text


def test_none_is_asked_for(tmp_path: Path) -> None:
    job: Any = SimpleNamespace(recipe=recipe.load("tiny"), metrics=tmp_path / "metrics.jsonl")
    assert trackers.callbacks(job) == []
    assert list(tmp_path.iterdir()) == []
