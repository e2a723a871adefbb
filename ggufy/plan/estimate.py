"""Estimate how long a training would take on this CPU, before anything is downloaded."""

from __future__ import annotations

import functools
import math
import re
import time

from ggufy.errors import TrainError
from ggufy.recipe.schema import Recipe

_LIMIT_HOURS = 12
_TOKENS_A_CONVERSATION = 500  # FineTome's are about that long
# Forward, and backward through the activations; once more forward with gradient checkpointing.
_FLOPS_A_WEIGHT = {False: 4, True: 6}
# What training reaches of the speed of a large matrix product; 0.32 was measured with the built-in model.
_EFFICIENCY = 0.33
_ROWS = 1000
"""Of a file whose rows nobody has counted."""


def parameters(base: str) -> float | None:
    """The size in a model's name, such as 3e9 for Llama-3.2-3B-Instruct."""
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z0-9])", base.lower())
    return float(found[1]) * (1e9 if found[2] == "b" else 1e6) if found else None


def cpu_hours(recipe: Recipe) -> float | None:
    """Estimated hours on this CPU from a quick measurement of it; None where the size of the model is not known."""
    size = parameters(recipe.model.base)
    if size is None:
        return None
    train = recipe.train
    steps, tokens_a_step = work(recipe)
    if steps is None:
        steps = max(1, round(_ROWS * train.epochs / (train.batch_size * train.gradient_accumulation)))
    tokens = steps * tokens_a_step
    return tokens * size * _FLOPS_A_WEIGHT[train.gradient_checkpointing] / (_EFFICIENCY * _flops()) / 3600


def work(recipe: Recipe) -> tuple[int | None, int]:
    """Steps, where the recipe says how many rows there are, and tokens a step.

    Conversations are taken to be as long as FineTome's, if no longer than the recipe takes; packed rows to be full.
    """
    train, longest = recipe.train, recipe.model.max_length
    conversation = min(longest, _TOKENS_A_CONVERSATION)
    rows = train.batch_size * train.gradient_accumulation
    tokens = rows * (longest if train.packing else conversation)
    if train.max_steps:
        return train.max_steps, tokens
    if recipe.data.train_size is None:
        return None, tokens
    have = recipe.data.train_size * conversation / longest if train.packing else recipe.data.train_size
    return max(1, math.ceil(math.ceil(have / rows) * train.epochs)), tokens


def is_hopeless(recipe: Recipe) -> bool:
    """Whether this recipe would take longer on this CPU than anybody waits, or is QLoRA of a real model on one."""
    size = parameters(recipe.model.base)
    if size is not None and size >= 1e9 and recipe.model.load_in != "16bit":
        return True
    hours = cpu_hours(recipe)
    return hours is not None and hours > _LIMIT_HOURS


def hopeless(recipe: Recipe) -> TrainError:
    """The error that says how slow it would be, and what to use instead."""
    hours = cpu_hours(recipe) or 0.0
    time_text = f"{hours / 24:.0f} days" if hours > 48 else "an hour" if hours < 1.5 else f"{hours:.0f} hours"
    rows = "" if work(recipe)[0] is not None else f" for {_ROWS:,} rows"
    return TrainError(
        f"there is no GPU here, and {recipe.name} would take about {time_text}{rows} on this CPU",
        "use a machine with a GPU, such as a free Colab T4, or try `ggufy demo`; --backend hf trains here anyway",
    )


@functools.cache
def _flops() -> float:
    """Floating-point operations a second of a large float32 matrix product."""
    import numpy as np

    n = 1024
    a = np.ones((n, n), np.float32)
    a @ a
    start = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * n**3 / (time.perf_counter() - start)
