"""How long a training would take on this CPU, before anything is downloaded."""

from __future__ import annotations

import re
import time

from ggufy.errors import TrainError
from ggufy.recipe import Recipe

_LIMIT_HOURS = 12
_TOKENS_A_CONVERSATION = 500  # FineTome's are about that long
# Forward, and backward through the activations; once more forward with gradient checkpointing.
_FLOPS_A_WEIGHT = {False: 4, True: 6}


def parameters(base: str) -> float | None:
    """The size in a model's name, such as 3e9 for Llama-3.2-3B-Instruct."""
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z0-9])", base.lower())
    return float(found[1]) * (1e9 if found[2] == "b" else 1e6) if found else None


def cpu_hours(recipe: Recipe) -> float | None:
    """Estimated hours on this CPU from a quick measurement of it; None where the model's size is not known."""
    size = parameters(recipe.model.base)
    if size is None:
        return None
    train = recipe.train
    rows = train.batch_size * train.gradient_accumulation
    steps = train.max_steps or (recipe.data.train_size or 1000) * train.epochs / rows
    tokens = steps * rows * min(recipe.model.max_length, _TOKENS_A_CONVERSATION)
    return tokens * size * _FLOPS_A_WEIGHT[train.gradient_checkpointing] / _flops() / 3600


def refuse_hopeless(recipe: Recipe) -> None:
    """Raise TrainError where `auto` would mean days on a CPU."""
    hours = cpu_hours(recipe)
    if hours is None or hours <= _LIMIT_HOURS:
        return
    time_text = f"{hours / 24:.0f} days" if hours > 72 else f"{hours:.0f} hours"
    raise TrainError(
        f"there is no GPU here, and {recipe.name} would take about {time_text} on this CPU",
        "use a machine with a GPU, such as a free Colab T4, or try the line with `ggufy demo`; --backend hf insists",
    )


def _flops() -> float:
    import numpy as np

    n = 1024
    a = np.ones((n, n), np.float32)
    a @ a
    start = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * n**3 / (time.perf_counter() - start)
