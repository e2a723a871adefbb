"""A base whose special tokens were never trained is found before a training, by its own weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file, save_file

Run = Callable[..., CompletedProcess[str]]
TRAIN = ("train", "--recipe", "tiny", "--set", "model.base=./base", "--set", "train.max_steps=1")


@pytest.fixture
def own(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """own(change) is a folder with base/, whose embedding was changed in place."""

    def own(change: Callable[[torch.Tensor], None]) -> Path:
        folder = Path(shutil.copytree(base, tmp_path / "base"))
        [weights] = folder.glob("*.safetensors")
        tensors = load_file(weights)
        change(tensors["model.embed_tokens.weight"])
        save_file(tensors, weights, metadata={"format": "pt"})
        return tmp_path

    return own


def token(base: Path, content: str) -> int:
    from tokenizers import Tokenizer

    number = Tokenizer.from_file(str(base / "tokenizer.json")).token_to_id(content)
    assert number is not None
    return int(number)


@pytest.mark.parametrize("how", ["zero", "that of <|reserved_special_token_1|>"])
def test_an_end_that_was_never_trained_is_refused(how: str, own: Callable[..., Path], base: Path, run: Run) -> None:
    end, other = token(base, "<|eot_id|>"), token(base, "<|reserved_special_token_1|>")

    def change(rows: torch.Tensor) -> None:
        rows[end] = 0 if how == "zero" else rows[other]

    done = run(*TRAIN, cwd=own(change))
    assert done.returncode == 1
    assert f"error: base: <|eot_id|> ({end}), which answers end with, was never trained in this base" in done.stderr
    assert f"its row of model.embed_tokens.weight is {how}" in done.stderr
    assert "hint: take the Instruct model" in done.stderr


def test_a_header_that_was_never_trained_is_warned_of(own: Callable[..., Path], base: Path, run: Run) -> None:
    names = ("<|start_header_id|>", "<|end_header_id|>")
    start, stop = (token(base, name) for name in names)

    def change(rows: torch.Tensor) -> None:
        rows[stop] = rows[start]

    done = run(*TRAIN, cwd=own(change))
    assert done.returncode == 0, done.stderr
    for name, other in (names, names[::-1]):
        assert f"{name} ({token(base, name)}), which conversations are written with" in done.stderr
        assert f"its row of model.embed_tokens.weight is that of {other}" in done.stderr


def test_a_trained_base_is_not_spoken_of(own: Callable[..., Path], run: Run) -> None:
    """Zeros in the rows of tokens that nothing is written with are nobody's concern."""

    def change(rows: torch.Tensor) -> None:
        rows[-4:] = 0

    done = run(*TRAIN, cwd=own(change))
    assert done.returncode == 0, done.stderr
    assert "never trained" not in done.stderr
