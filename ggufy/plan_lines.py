"""A plan in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggufy.planner import Plan

_PATIENCE = 12 * 3600


def of(plan: Plan) -> Iterator[str]:
    """Everything about one plan."""
    share = 100 * plan.trainable / plan.parameters
    yield f"{plan.recipe}: {plan.base}, on {plan.device}"
    yield f"  trained      {plan.trainable:,} of {plan.parameters:,} parameters ({share:.2f}%)"
    parts = plan.parts
    at_once = f"256 tokens at a time; of all {plan.tokens_a_batch:,} at once {_gb(plan.logits_at_once)}"
    rows = {
        "base": (parts.weights, f"loaded in {plan.load_in}"),
        "LoRA": (parts.lora, ""),
        "gradients": (parts.gradients, ""),
        "optimizer": (parts.optimizer, plan.optimizer),
        "activations": (parts.activations, plan.layers_kept),
        "logits": (parts.logits, at_once),
        "overhead": (parts.overhead, "assumed: CUDA, unpacking, fragments" if parts.overhead else ""),
    }
    label = "memory"
    for name, (size, note) in rows.items():
        yield f"  {label:<12} {name:<12} {_gb(size):>10}  {note}".rstrip()
        label = ""
    yield f"  {'':<12} {'together':<12} {_gb(parts.total):>10}  of {_gb(plan.device_bytes)}: {_fits(plan)}"
    if plan.largest_batch:
        yield f"  largest      batch {plan.largest_batch:,} at {plan.length:,} tokens"
    if plan.largest_length:
        yield f"  {'' if plan.largest_batch else 'largest':<12} {plan.largest_length:,} tokens at batch {plan.batch}"
    exact = "exact" if plan.export_exact else "to 10 kB"
    exports = [f"{quant} {_gb(size)}" for quant, size in plan.export_bytes.items()]
    kept = f"{plan.checkpoints} checkpoints of {_gb(plan.checkpoint_bytes)}"
    yield f"  disk         {_gb(plan.disk_bytes)}: {kept}, adapter {_gb(plan.adapter_bytes)}"
    yield f"  export       {', '.join(exports) or 'sizes depend on an importance matrix'} ({exact})"
    if plan.download_bytes:
        yield f"  download     {_gb(plan.download_bytes)}, where the base is not in the cache yet"
    steps = f"{plan.steps:,} steps" if plan.steps is not None else "steps unknown"
    yield f"  work         {steps}, about {plan.tokens_a_step:,} tokens a step"
    yield f"  time         {duration(plan.seconds)}: {plan.how}"
    for note in plan.notes:
        yield f"  note         {note}"


def table(plans: Sequence[Plan]) -> Iterator[str]:
    """Plans for one device, one a line; the first that fits is recommended."""
    yield f"on {plans[0].device}, {_gb(plans[0].device_bytes)}:"
    for plan in plans:
        slow = plan.device == "CPU" and (plan.seconds or 0) > _PATIENCE
        verdict = "too slow" if slow else _fits(plan)
        largest = f"batch up to {plan.largest_batch:,}" if plan.fits and not slow else ""
        line = f"  {plan.recipe:<14} {_gb(plan.parts.total):>9}  {verdict:<12} {largest:<18} {duration(plan.seconds)}"
        yield line.rstrip()
    for how in dict.fromkeys(plan.how for plan in plans if plan.seconds is not None):
        yield f"times are {how}"


def verdict(plan: Plan) -> str:
    """One line of why it does not fit."""
    return f"{plan.recipe} needs {_gb(plan.parts.total)}, and {plan.device} has {_gb(plan.device_bytes)}"


def hint(plan: Plan) -> str:
    """What to do about it."""
    if plan.remedy:
        return "it fits with " + " ".join(f"--set {change}" for change in plan.remedy)
    return "choose a smaller base or a larger GPU"


def _fits(plan: Plan) -> str:
    return "fits" if plan.fits else "does not fit"


def _gb(size: int) -> str:
    if size < 50_000_000:
        return f"{size / 1e6:,.1f} MB"
    return f"{size / 1e9:,.2f} GB"


def duration(seconds: float | None) -> str:
    """Seconds for people: about 3 min."""
    if seconds is None:
        return "not known"
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} s"
