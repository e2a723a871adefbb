"""Memory of a training: how much the adapter takes, and advice on settings when memory runs out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ggufy.errors import OutOfMemory
from ggufy.recipe.schema import Recipe

_SMALLEST_LENGTH = 512


class Adapter(NamedTuple):
    """Bytes that are there because of what is trained, whatever the base takes."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return sum(self)

    def values(self) -> dict[str, int]:
        """For summary.json."""
        return {**self._asdict(), "total": self.total}


def of_adapter(model: Any, optimizer: Any) -> Adapter:
    """What the trained parameters of a model take, with their gradients and their optimizer's state.

    Gradients are counted as they are during a step, though between steps they may be gone. A paged optimizer's state
    may lie in the computer's memory instead. Nothing but the state that the optimizer has by now is in `optimizer`.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    states = [] if optimizer is None else [value for state in optimizer.state.values() for value in state.values()]
    # bitsandbytes' parameters share their tables, and each of torch's counts its steps in a tensor without dimensions.
    held = {value.data_ptr(): value.nbytes for value in states if hasattr(value, "data_ptr") and value.dim()}
    return Adapter(weights, weights, sum(held.values()))


def shown(allocated: int, reserved: int, own: Adapter) -> str:
    """A GPU's memory for the line of progress."""
    return f"GPU {allocated / 2**30:.1f} GiB, {reserved / 2**30:.1f} reserved, {own.total / 2**30:.2f} for LoRA"


def unpaged(optimizer: str, *, gpu: bool) -> str | None:
    """What to say where an optimizer that pages its state has nothing to page it from."""
    if gpu or not optimizer.startswith("paged_"):
        return None
    return f"{optimizer} does not page here: without a CUDA GPU its state stays in memory; the steps are the same"


@contextmanager
def explained(recipe: Recipe, *, gpu: bool) -> Iterator[None]:
    """An error of torch or Python that means "out of memory" becomes one that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(recipe, str(error), gpu=gpu) from error


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "CUDA out of memory" in text
        or "can't allocate memory" in text
        or "CUBLAS_STATUS_ALLOC_FAILED" in text
    )


def out_of_memory(recipe: Recipe, said: str, *, gpu: bool) -> OutOfMemory:
    """The error for this recipe. `said` is torch's own message, which may tell how much was wanted."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ ?[KMGT]?i?[Bb](?:ytes)?)", said)
    bytes_wanted = re.search(r"tried to allocate (\d+) bytes", said)
    size = f"{int(bytes_wanted[1]) / 2**30:.2f} GiB" if bytes_wanted else wanted[1] if wanted else None
    tried = f" ({size} more was needed)" if size else ""
    where = "GPU memory" if gpu else "memory"
    knobs = advice(recipe, gpu=gpu)
    if not knobs:
        return OutOfMemory(
            f"out of {where}{tried}, and the recipe is as small as its settings make it",
            "use a smaller base, a machine with more memory, or close other programs that use it",
        )
    listed = "\n".join(f"  {number}. {knob}" for number, knob in enumerate(knobs, 1))
    return OutOfMemory(
        f"out of {where}{tried}; settings that need less memory, the mildest first:\n{listed}",
        "repeat the command with the first of these, and --fresh if it had begun; add the next ones as needed",
    )


def advice(recipe: Recipe, *, gpu: bool) -> list[str]:
    """The settings to change, the mildest first: what to type, and what it does."""
    model, lora, train = recipe.model, recipe.lora, recipe.train
    knobs = []
    if train.batch_size > 1:
        smaller = train.batch_size // 2
        more = -(-train.gradient_accumulation * train.batch_size // smaller)
        text = f"--set train.batch_size={smaller} --set train.gradient_accumulation={more}"
        same = more * smaller == train.gradient_accumulation * train.batch_size
        knobs.append(f"{text}  {'the same' if same else 'nearly the same'} step in smaller parts")
    if recipe.eval.batch_size > 1:
        knobs.append(f"--set eval.batch_size={recipe.eval.batch_size // 2}  evaluation in smaller parts")
    if not train.gradient_checkpointing:
        knobs.append("--set train.gradient_checkpointing=true  activations are computed again instead of kept; slower")
    if train.optimizer == "adamw":
        knobs.append("--set train.optimizer=adamw_8bit  the optimizer's state in a quarter of the memory")
    if gpu and train.optimizer in ("adamw", "adamw_8bit"):
        knobs.append("--set train.optimizer=paged_adamw_8bit  the optimizer's state moves to main memory when needed")
    if gpu and model.load_in != "4bit":
        knobs.append("--set model.load_in=4bit  QLoRA: the base in about a quarter of 16 bits")
    if model.max_length > _SMALLEST_LENGTH:
        shorter = max(_SMALLEST_LENGTH, model.max_length // 2)
        knobs.append(f"--set model.max_length={shorter}  longer conversations are then cut (data.overflow)")
    if lora.r > 8:
        knobs.append(
            f"--set lora.r={max(8, lora.r // 2)} --set lora.alpha={lora.alpha * max(8, lora.r // 2) / lora.r:g}"
            "  a smaller adapter, scaled the same"
        )
    if lora.target_modules == "all":
        knobs.append("--set lora.target_modules=attention  fewer matrices get an adapter")
    return knobs
