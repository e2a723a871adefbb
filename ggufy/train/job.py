"""The job for a training backend, the table of backends, and the choice of one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ggufy import installed
from ggufy.errors import MissingExtra, TrainError
from ggufy.recipe.schema import Recipe
from ggufy.train import checkpoints

log = logging.getLogger("ggufy")


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
    """metrics.jsonl; summary.json and loss.png are written beside it."""
    identity: str
    """Digest of recipe, base and data: a checkpoint of another identity is never resumed."""
    change_gpus: bool = False
    """Whether a checkpoint that another number of GPUs made will do."""
    modules: tuple[str, ...] = ()
    """The modules of the base that get an adapter; if not given, those that the recipe names."""
    other_parts: tuple[str, ...] = ()
    """Modules of the base that read no text: they get no adapter, and are not kept in memory."""

    @property
    def targets(self) -> tuple[str, ...]:
        return self.modules or self.recipe.lora.modules


# name -> module with `fit(job, out)`, which writes a PEFT adapter to the folder `out`
BACKENDS = {"hf": "ggufy.train.backends.hf", "unsloth": "ggufy.train.backends.unsloth"}
# In the run's folder: the code that Unsloth writes for itself.
COMPILED = "compiled"
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


def check_installed(recipe: Recipe) -> None:
    """Raise MissingExtra where training cannot work, without importing anything."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra("training", "train", package)
    if recipe.train.backend == "unsloth":
        if find_spec("unsloth") is None:
            raise MissingExtra("train.backend: unsloth", "unsloth", "unsloth")
        if recipe.model.load_in == "8bit":
            raise TrainError(
                "the unsloth backend trains 4-bit and 16-bit bases, but model.load_in is 8bit",
                "use --backend hf for 8bit",
            )
    for tracker in recipe.tracking.report_to:
        if find_spec(tracker) is None:
            raise TrainError(
                f"tracking.report_to names {tracker}, which is not installed", installed.command_for(tracker)
            )


def check_device(recipe: Recipe) -> None:
    """Raise TrainError where the backend that was asked for cannot train here."""
    if recipe.train.backend == "unsloth":
        import torch

        if not torch.cuda.is_available():
            raise TrainError(
                "the unsloth backend needs a CUDA GPU, but there is none here", "use --backend hf to train on a CPU"
            )


def fit(job: Job, out: Path) -> None:
    """Train with the backend the recipe asks for, and write the adapter to `out`. Importing one takes seconds."""
    name, why = choose(job.recipe, checkpoints.begun_with(job.checkpoints))
    log.info("backend: %s, %s", name, why)
    _calm(job)
    # Unsloth greets on standard output, which belongs to the command's answer.
    with redirect_stdout(sys.stderr):
        run: Callable[[Job, Path], None] = import_module(BACKENDS[name]).fit
    run(job, out)


def choose(recipe: Recipe, begun: str | None) -> tuple[str, str]:
    """The backend to use, and the reason. `begun` is the backend of the existing checkpoints."""
    import torch

    asked, gpu = recipe.train.backend, torch.cuda.is_available()
    if asked != "auto":
        return asked, "as asked"
    if begun is not None and (begun == "hf" or find_spec(begun) is not None):
        return begun, "because this run began with it"
    if not gpu:
        return "hf", "because there is no CUDA GPU here"
    if recipe.model.load_in == "8bit":
        return "hf", "because the base is loaded in 8 bits"
    if find_spec("unsloth") is None:
        return "hf", f"because unsloth is not installed ({installed.command('unsloth')})"
    return "unsloth", f"the faster one on {torch.cuda.get_device_name()}"


def _calm(job: Job) -> None:
    """Settings that the training libraries read when they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Unsloth would report every load to its makers, and write its code into the current folder.
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ["UNSLOTH_COMPILE_LOCATION"] = (job.metrics.parent / COMPILED).absolute().as_posix()
    # bitsandbytes and transformers name optional kernels they have not got; nothing here needs them.
    for name in ("bitsandbytes", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
