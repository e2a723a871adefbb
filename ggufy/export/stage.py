"""The export stage: base folder and adapter folder in, GGUF files out."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufy import ggml, progress
from ggufy.errors import ExportError
from ggufy.export import adapter_gguf, layout, llama, stream, vocab
from ggufy.export.adapter import Adapter
from ggufy.export.llama import Planned
from ggufy.export.sinks import GgufSink, MergedSink
from ggufy.weights import Checkpoint

# Outputs that are no quants.
MERGED = {"merged": "F16", "merged-bf16": "BF16"}
ADAPTER = "adapter"


def check_base(base: Path, modules: Sequence[str] = ()) -> None:
    """Whether a base can be exported at all, and has these modules: known before hours of training, not after."""
    config = llama.read_config(base)
    planned = llama.plan(config, Checkpoint.open(base))
    vocab.check(base, config["vocab_size"])
    have = {tensor.source.split(".")[-2] for tensor in planned if tensor.source and len(tensor.shape) == 2}
    if missing := [module for module in modules if module not in have]:
        raise ExportError(
            f"the base has no module named {missing[0]}; it has {', '.join(sorted(have))}", "check lora.target_modules"
        )


@dataclass(frozen=True)
class Plan:
    """An export before its first byte: what will be written, and how large it will be, exactly."""

    planned: list[Planned]
    sinks: dict[str, GgufSink | MergedSink]
    adapter_gguf: Path | None
    weights: Checkpoint
    adapter: Adapter
    general: dict[str, str]

    @property
    def total(self) -> int:
        """How many weights there are."""
        return sum(math.prod(tensor.shape) for tensor in self.planned)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by output; the adapter's own GGUF, which is small, is not counted."""
        return {name: sink.size for name, sink in self.sinks.items()}

    def write(self, threads: int | None = None) -> None:
        """Write everything. Complete only when this returns. Raises ExportError."""
        if self.adapter_gguf:
            adapter_gguf.write(self.adapter_gguf, self.adapter, self.planned, self.general)
        if self.sinks:
            with progress.bar(f"exporting {', '.join(self.sinks)}", self.total) as bar:
                sinks = list(self.sinks.values())
                stream.run(self.planned, sinks, self.weights, self.adapter, threads or cores(), bar)

    def describe(self, threads: int | None = None) -> list[str]:
        """The plan for people: for each file its size, bits a weight, and how many tensors of each type."""
        changed = len(self.adapter.pairs) + len(self.adapter.whole)
        lines = [f"{len(self.planned)} tensors, {self.total:,} weights; the adapter changes {changed} of the tensors"]
        for name, sink in self.sinks.items():
            kinds = (
                Counter(ggml.type_name(slot.type) for slot in sink.layout.slots) if isinstance(sink, GgufSink) else {}
            )
            counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            size = f"{sink.size / 1e6:>10,.1f} MB  {8 * sink.size / self.total:.2f} bits a weight"
            lines.append(f"{name:<10} {size}  {counted}".rstrip())
        lines.append(f"about {self.seconds(threads or cores()):.0f} s on {threads or cores()} threads")
        return lines

    def seconds(self, threads: int) -> float:
        """An estimate from a short run of each kernel that will be used."""
        work: Counter[int] = Counter()
        for sink in self.sinks.values():
            if isinstance(sink, GgufSink):
                for slot in sink.layout.slots:
                    work[slot.type] += math.prod(slot.tensor.shape)
        return sum(count / ggml.speed(kind) for kind, count in work.items()) / threads + self.total / 5e8 / threads


def plan(base: Path, adapter: Path | None, outputs: Mapping[str, Path], general: dict[str, str], scratch: Path) -> Plan:
    """Plan the outputs: quants by their names, `merged` and `merged-bf16` (folders), and `adapter` (a GGUF).

    `scratch` is a folder for llama.cpp's skeletons. Raises ExportError or ModelError for what cannot be exported.
    """
    config = llama.read_config(base)
    weights = Checkpoint.open(base)
    merged = Adapter.open(adapter) if adapter else Adapter.none()
    planned = llama.plan(config, weights)
    merged.check(weights, (tensor.source for tensor in planned if tensor.source))
    quants = [name for name in outputs if name not in (*MERGED, ADAPTER)]
    layouts = layout.make(quants, config, base, planned, general, scratch) if quants else {}
    sinks: dict[str, GgufSink | MergedSink] = {name: GgufSink(outputs[name], layouts[name]) for name in quants}
    for name, dtype in MERGED.items():
        if name in outputs:
            sinks[name] = MergedSink(outputs[name], base, planned, dtype)
    return Plan(planned, sinks, outputs.get(ADAPTER), weights, merged, general)


def export(
    base: Path, adapter: Path | None, outputs: Mapping[str, Path], general: dict[str, str], threads: int | None = None
) -> None:
    """Plan and write the outputs, in place; callers move them to their final names."""
    folder = next(iter(outputs.values())).parent
    ready = plan(base, adapter, outputs, general, folder)
    _check_space(outputs, ready.sizes)
    ready.write(threads)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_space(outputs: Mapping[str, Path], sizes: Mapping[str, int]) -> None:
    folder = next(iter(outputs.values())).parent
    needed = sum(sizes.values())
    # What an interrupted attempt already wrote is written over.
    needed -= sum(path.stat().st_blocks * 512 for path in outputs.values() if path.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportError(
            f"{folder.as_posix()}: {needed / 1e9:.2f} GB needed for {', '.join(sizes)}, {free / 1e9:.2f} GB free",
            "free some space, or export fewer or smaller quants",
        )
