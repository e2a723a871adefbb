"""What a backend is asked to do, and the table of backends."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ggufy.errors import MissingExtra, TrainError
from ggufy.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """One training: everything by path, so that it can be run in any process."""

    recipe: Recipe
    base: Path
    """The folder of the 16-bit base model."""
    data: Path
    """The folder with train.arrow and, if rows are held out, eval.arrow."""
    checkpoints: Path
    metrics: Path
    """metrics.jsonl; summary.json is written beside it."""
    identity: str
    """Digest of recipe, base and data: a checkpoint of another identity is never resumed."""


Fit = Callable[[Job, Path], None]

# name -> module with `fit(job, out)`, which writes a PEFT adapter to the folder `out`
BACKENDS = {"hf": "ggufy.train.hf"}
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


def check_installed(recipe: Recipe) -> None:
    """Raise MissingExtra where training cannot work, without importing anything."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra("training", "train", package)
    for tracker in recipe.tracking.report_to:
        if find_spec(tracker) is None:
            raise TrainError(f"tracking.report_to names {tracker}, which is not installed", f"pip install {tracker}")


def backend(name: str) -> Fit:
    """The function of a backend; `auto` is the best one that is installed. Importing it takes seconds."""
    _calm()
    fit: Fit = import_module(BACKENDS["hf" if name == "auto" else name]).fit
    return fit


def _calm() -> None:
    """Settings that the training libraries read when they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # bitsandbytes and transformers name optional kernels they have not got; nothing here needs them.
    for name in ("bitsandbytes", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
