"""Which checkpoint is resumed from, with every kind of damage in the newest one."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ggufy.errors import TrainError
from ggufy.train import checkpoints

HERE = {"device": "cpu", "dtype": "float32"}
FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth")


def save(folder: Path, step: int, *, keep: int = 2, identity: str = "one") -> Path:
    """A checkpoint folder as the trainer leaves it, sealed."""
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    for name in FILES:
        (made / name).write_bytes(f"{name} at {step}".encode() * 50)
    checkpoints.seal(made, identity, HERE, keep)
    return made


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit in the weights": lambda folder: flip(folder / "adapter_model.safetensors"),
    "a flipped bit in the optimizer": lambda folder: flip(folder / "optimizer.pt"),
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "no random state": lambda folder: (folder / "rng_state.pth").unlink(),
    "a file cut short": lambda folder: (folder / "scheduler.pt").write_bytes(b"short"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a manifest cut short": lambda folder: (folder / "manifest.json").write_text('{"identity": "one", "fil'),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir())[0],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(tmp_path, 90), save(tmp_path, 100)
    DAMAGE[damage](newer)
    with caplog.at_level(logging.INFO, "ggufy"):
        assert checkpoints.newest(tmp_path, "one", HERE) == older
    assert "skipping" in caplog.text
    assert "checkpoint-100" in caplog.text


def test_the_newest_by_number_not_by_name_or_time(tmp_path: Path) -> None:
    newest = save(tmp_path, 1000, keep=9)
    save(tmp_path, 999, keep=9)
    assert checkpoints.newest(tmp_path, "one", HERE) == newest


@pytest.mark.parametrize(
    ("identity", "device", "said"),
    [
        ("another recipe", "cpu", "belongs to another recipe"),
        ("one", "cuda", "trained on cuda in float32, and this is cpu"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_and_kept(
    identity: str, device: str, said: str, tmp_path: Path
) -> None:
    made = save(tmp_path, 10, identity=identity)
    manifest = (made / "manifest.json").read_text().replace('"device": "cpu"', f'"device": "{device}"')
    (made / "manifest.json").write_text(manifest)
    with pytest.raises(TrainError, match=said):
        checkpoints.newest(tmp_path, "one", HERE)
    assert sorted(path.name for path in made.iterdir()) == sorted([*FILES, "manifest.json"])


def test_old_ones_go_only_once_newer_ones_are_sealed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    # The trainer has begun to write the next one; both sealed ones stay.
    (tmp_path / "checkpoint-4").mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-3", "checkpoint-4"}
    assert checkpoints.newest(tmp_path, "one", HERE) == tmp_path / "checkpoint-3"


def test_the_best_one_stays_however_old(tmp_path: Path) -> None:
    save(tmp_path, 1, keep=1)
    for step in (2, 3):
        made = tmp_path / f"checkpoint-{step}"
        made.mkdir()
        for name in FILES:
            (made / name).write_bytes(name.encode())
        checkpoints.seal(made, "one", HERE, 1, always={1})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3"}
    assert checkpoints.damage(tmp_path / "checkpoint-1") is None


def test_the_only_good_one_stays_until_a_newer_one_is_good(tmp_path: Path) -> None:
    good = save(tmp_path, 1, keep=1)
    flip(save(tmp_path, 2, keep=2) / "optimizer.pt")
    assert checkpoints.newest(tmp_path, "one", HERE) == good
    half = tmp_path / "checkpoint-3"
    half.mkdir()
    with pytest.raises(TrainError, match="did not write"):
        checkpoints.seal(half, "one", HERE, 1)
    assert checkpoints.newest(tmp_path, "one", HERE) == good


def test_another_backend_would_go_on_differently(tmp_path: Path) -> None:
    save(tmp_path, 10)
    assert checkpoints.begun_with(tmp_path) == "hf"
    with pytest.raises(TrainError, match=r"on cpu in float32 by hf, and this is cpu in float32 by unsloth") as caught:
        checkpoints.newest(tmp_path, "one", HERE | {"backend": "unsloth"})
    assert "--backend hf" in str(caught.value.hint)
    assert checkpoints.newest(tmp_path, "one", HERE | {"backend": "hf"}) is not None


def test_a_manifest_that_lists_no_optimizer_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = save(tmp_path, 10)
    said = checkpoints.manifest(made)
    del said["files"]["optimizer.pt"]
    (made / "manifest.json").write_text(json.dumps(said))
    with caplog.at_level(logging.INFO, "ggufy"):
        assert checkpoints.newest(tmp_path, "one", HERE) is None
    assert "its manifest does not list optimizer.pt" in caplog.text


def test_a_save_without_its_optimizer_is_never_sealed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    for name in set(FILES) - {"optimizer.pt"}:
        (folder / name).write_bytes(b"x")
    with pytest.raises(TrainError, match=r"optimizer\.pt"):
        checkpoints.seal(folder, "one", HERE, 2)
    assert checkpoints.newest(tmp_path, "one", HERE) is None
