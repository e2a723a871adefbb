"""A plan: what a recipe needs on a device, as values and in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ggufy.plan.footprint import Parts

_PATIENCE = 12 * 3600


@dataclass(frozen=True)
class Plan:
    """Everything `ggufy plan` says. Bytes throughout; None where it cannot be known."""

    recipe: str
    base: str
    parameters: int
    trainable: int
    load_in: str
    optimizer: str
    batch: int
    length: int
    layers_kept: str
    device: str
    device_bytes: int
    parts: Parts
    fits: bool
    largest_batch: int
    largest_length: int
    logits_at_once: int
    checkpoint_bytes: int
    checkpoints: int
    adapter_bytes: int
    export_bytes: dict[str, int]
    export_exact: bool
    export_within: int
    """How far off the sizes of the exports may be."""
    download_bytes: int
    steps: int | None
    tokens_a_step: int
    seconds: float | None
    how: str
    remedy: list[str]
    """What to --set so that it fits, where it does not."""
    notes: tuple[str, ...] = ()
    """What the recipe asks for that the plan leaves out."""

    @property
    def tokens_a_batch(self) -> int:
        return self.batch * self.length

    @property
    def disk_bytes(self) -> int:
        return self.checkpoint_bytes * self.checkpoints + self.adapter_bytes + sum(self.export_bytes.values())

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def values(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "memory_bytes": self.parts.total, "disk_bytes": self.disk_bytes}

    def lines(self) -> Iterator[str]:
        """Everything about it."""
        share = 100 * self.trainable / self.parameters
        yield f"{self.recipe}: {self.base}, on {self.device}"
        yield f"  trained      {self.trainable:,} of {self.parameters:,} parameters ({share:.2f}%)"
        parts = self.parts
        at_once = f"256 tokens at a time; all {self.tokens_a_batch:,} at once would need {_gb(self.logits_at_once)}"
        rows = {
            "base": (parts.weights, f"loaded in {self.load_in}"),
            "LoRA": (parts.lora, ""),
            "gradients": (parts.gradients, ""),
            "optimizer": (parts.optimizer, self.optimizer),
            "activations": (parts.activations, self.layers_kept),
            "logits": (parts.logits, at_once),
            "overhead": (parts.overhead, "assumed: CUDA, unpacking, fragments" if parts.overhead else ""),
        }
        label = "memory"
        for name, (size, note) in rows.items():
            yield f"  {label:<12} {name:<12} {_gb(size):>10}  {note}".rstrip()
            label = ""
        yield f"  {'':<12} {'together':<12} {_gb(parts.total):>10}  of {_gb(self.device_bytes)}: {_fits(self)}"
        if self.largest_batch:
            yield f"  largest      batch {self.largest_batch:,} at {self.length:,} tokens"
        if self.largest_length:
            label = "" if self.largest_batch else "largest"
            yield f"  {label:<12} {self.largest_length:,} tokens at batch {self.batch}"
        exact = {0: "exact", 10_000: "to 10 kB"}.get(self.export_within, "to a few MB")
        exports = [f"{quant} {_gb(size)}" for quant, size in self.export_bytes.items()]
        kept = f"{self.checkpoints} checkpoints of {_gb(self.checkpoint_bytes)}"
        yield f"  disk         {_gb(self.disk_bytes)}: {kept}, adapter {_gb(self.adapter_bytes)}"
        yield f"  export       {', '.join(exports) or 'sizes depend on an importance matrix'} ({exact})"
        if self.download_bytes:
            yield f"  download     {_gb(self.download_bytes)}, if the base is not in the cache yet"
        steps = f"{self.steps:,} steps" if self.steps is not None else "steps unknown"
        yield f"  work         {steps}, about {self.tokens_a_step:,} tokens a step"
        yield f"  time         {duration(self.seconds)}: {self.how}"
        for note in self.notes:
            yield f"  note         {note}"

    def verdict(self) -> str:
        """One line of why it does not fit."""
        return f"{self.recipe} needs {_gb(self.parts.total)}, and {self.device} has {_gb(self.device_bytes)}"

    def hint(self) -> str:
        """What to do about it."""
        if self.remedy:
            return "it fits with " + " ".join(f"--set {change}" for change in self.remedy)
        return "choose a smaller base or a larger GPU"


def table(plans: Sequence[Plan]) -> Iterator[str]:
    """Plans for one device, one a line; the first that fits is recommended."""
    yield f"on {plans[0].device}, {_gb(plans[0].device_bytes)}:"
    for plan in plans:
        slow = plan.device == "CPU" and (plan.seconds or 0) > _PATIENCE
        verdict = "too slow" if slow else _fits(plan)
        largest = f"batch up to {plan.largest_batch:,}" if plan.fits and not slow else ""
        line = f"  {plan.recipe:<16} {_gb(plan.parts.total):>9}  {verdict:<12} {largest:<18} {duration(plan.seconds)}"
        yield line.rstrip()
    for how in dict.fromkeys(plan.how for plan in plans if plan.seconds is not None):
        yield f"times are {how}"


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
