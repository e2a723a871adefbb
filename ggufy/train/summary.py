"""summary.json: figures, hardware and versions of a training, and advice from its losses."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from statistics import fmean
from typing import Any

from ggufy.recipe.schema import Recipe
from ggufy.system import machine
from ggufy.train import loss_curve
from ggufy.train.loss_curve import Loss

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth", "unsloth_zoo")
# Below this share the training loss counts as no longer falling, and the eval loss as not rising.
_NOTICEABLE = 0.02
_ENOUGH = 9  # logged losses, before anything is said about where they go


def losses(history: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Final and best losses, of training and of evaluation, with their steps."""
    history = list(history)
    train, evaluated = loss_curve.logged(history, "loss"), loss_curve.logged(history)
    lowest, lowest_eval = loss_curve.best(train), loss_curve.best(evaluated)
    return {
        "final_loss": train[-1][1] if train else None,
        "best_loss": lowest[1] if lowest else None,
        "best_loss_step": lowest[0] if lowest else None,
        "eval_loss": evaluated[-1][1] if evaluated else None,
        "best_eval_loss": lowest_eval[1] if lowest_eval else None,
        "best_eval_step": lowest_eval[0] if lowest_eval else None,
    }


def advice(recipe: Recipe, history: Iterable[Mapping[str, Any]], epochs: float) -> list[str]:
    """What the losses say to do differently next time, in lines for people."""
    history = list(history)
    train, evaluated = loss_curve.logged(history, "loss"), loss_curve.logged(history)
    said = []
    if epochs < 1 and (fall := _falls(train)) is not None:
        more = f"train.max_steps={round(train[-1][0] / epochs)}" if recipe.train.max_steps else "train.epochs=1"
        said.append(
            f"undertrained: {epochs:.2f} of an epoch was seen, and the loss was still falling (by {fall:.0%} over the "
            f"last third); the same command with --set {more} goes on to one whole epoch"
        )
    lowest = loss_curve.best(evaluated)
    if lowest is not None and (rise := _overfits(train, evaluated, lowest)) is not None:
        step, loss = lowest
        keep = "" if recipe.train.keep_best else "train.keep_best=true keeps the best step; "
        said.append(
            f"overfitting: the eval loss rose from {loss:.4f} at step {step} to {evaluated[-1][1]:.4f} ({rise:+.0%}) "
            f"while the training loss fell; {keep}train.max_steps={step} stops there; else more data, "
            f"lora.dropout={max(0.05, recipe.lora.dropout * 2):g}, or train.learning_rate="
            f"{recipe.train.learning_rate / 2:g}"
        )
    return said


def _falls(train: list[Loss]) -> float | None:
    """By what share the mean loss of the last third is below that of the third before; None where it is not."""
    if len(train) < _ENOUGH:
        return None
    third = len(train) // 3
    before, last = (fmean(loss for _, loss in part) for part in (train[-2 * third : -third], train[-third:]))
    fall = 1 - last / before if before > 0 else 0.0
    return fall if fall > _NOTICEABLE else None


def _overfits(train: list[Loss], evaluated: list[Loss], lowest: Loss) -> float | None:
    """By what share the eval loss ends above its lowest, where the training loss fell meanwhile; else None."""
    step, loss = lowest
    since = [value for at, value in train if at > step]
    until = [value for at, value in train if at <= step]
    if not since or not until or loss <= 0:
        return None
    rise = evaluated[-1][1] / loss - 1
    half = max(1, len(since) // 2)
    fell = fmean(since[-half:]) < fmean(until[-half:])
    return rise if rise > _NOTICEABLE and fell else None


def versions() -> dict[str, str]:
    """Of the libraries that trained."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """What it was trained on."""
    import torch

    found: dict[str, Any] = {
        "device": "cpu",
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": machine.cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {
            "device": gpu.name,
            "gpu_memory_bytes": gpu.total_memory,
            "compute_capability": f"{gpu.major}.{gpu.minor}",
            "cuda": torch.version.cuda,
        }
    return found


def peak_memory() -> dict[str, int | None]:
    """The most memory this process had, and the most of the GPU's: held by tensors, and taken from the system."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    gpu = torch.cuda.is_available()
    return {
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if gpu else None,
        "peak_gpu_reserved_bytes": torch.cuda.max_memory_reserved() if gpu else None,
    }
