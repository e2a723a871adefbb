"""Merge base and adapter of another architecture into a 16-bit folder, which llama.cpp's converter reads.

Slower than the one pass and with copies on the disk, but the same command, names, stamps and checks.
"""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from ggufy.errors import ExportError
from ggufy.export import stream
from ggufy.export.adapter.adapter import EMBEDDING, HEAD, Adapter
from ggufy.export.converter import conversion
from ggufy.export.families.family import Planned
from ggufy.export.kernel_agreement import agreed
from ggufy.export.planned import resized
from ggufy.export.request import ADAPTER, Request, merged_sinks
from ggufy.export.sinks import MergedSink
from ggufy.model import architecture, config_files
from ggufy.model.safetensors import FOUR_BIT, Checkpoint
from ggufy.system import progress

log = logging.getLogger("ggufy")

_SCRATCH = "a merged copy, removed again"


@dataclass(frozen=True)
class Detour:
    """Other architectures: merged into a 16-bit folder, then llama.cpp's converter and its quantizer."""

    request: Request
    planned: list[Planned]
    sinks: dict[str, MergedSink]
    weights: Checkpoint
    adapter: Adapter
    scratch: Path
    changed: bool

    @property
    def sizes(self) -> dict[str, int]:
        quants = conversion.sizes(self.weights, self.request.quants) if self.request.quants else {}
        return {name: sink.size for name, sink in self.sinks.items()} | quants

    def describe(self, threads: int) -> list[str]:
        lines = [f"{len(self.planned)} tensors; sizes are upper limits"]
        lines += [f"{name:<10} {size / 1e6:>10,.1f} MB" for name, size in self.sizes.items()]
        return [*lines, f"on {threads} threads"]

    @property
    def notes(self) -> list[str]:
        # The converter has the last word on which tensors there are.
        return []

    def write(self, threads: int) -> None:
        total = sum(math.prod(tensor.shape) for tensor in self.planned)
        if self.sinks:
            merge = agreed(self.planned, self.weights, self.adapter, self.request.kernels)
            with progress.bar("merging", total) as bar:
                stream.run(self.planned, list(self.sinks.values()), merge, threads, bar)
        quants = {name: self.request.outputs[name] for name in self.request.quants}
        if not quants:
            return
        if self.request.kernels == "native":
            log.info("by this way llama.cpp's quantizer makes the quants; ggufy's kernels only merge")
        merged = self.sinks.get("merged") or self.sinks.get(_SCRATCH)
        folder = merged.folder if merged and self.changed else self.request.base
        try:
            request = self.request
            conversion.write(folder, quants, request.general, self.scratch, threads, request.imatrix, request.types)
        finally:
            if folder == self.scratch / "merged":
                shutil.rmtree(folder)


def plan(request: Request, weights: Checkpoint, adapter: Adapter, scratch: Path) -> Detour:
    """Plan a request for a base of no family that ggufy knows. Raises ExportError or ModelError."""
    conversion.check(request.base)
    planned = conversion.plan(request.base, weights)
    tied = HEAD not in weights
    if adapter.unties(tied):
        raise ExportError(
            f"{adapter.where}: it trains embedding and output separately, and llama.cpp's converter treats them as one",
            "merge it with peft, and export the merged checkpoint",
        )
    # The vocabulary may have another size than the base's: that of the embedding which the adapter brings.
    resizes = request.tokenizer is not None and EMBEDDING in weights
    if request.tokenizer is not None and not resizes:
        _refuse_other_rows(weights, adapter)
    adapter.check(weights, (tensor.source for tensor in planned if tensor.source), resizes=resizes)
    if resizes:
        planned = resized(planned, adapter.vocabulary(weights))
    if ADAPTER in request.outputs:
        raise ExportError(
            f"{request.base.as_posix()}: --adapter-gguf is only for the families that ggufy exports in one pass",
            "export merged files with --quant",
        )
    if request.split:
        raise ExportError(
            f"{request.base.as_posix()}: --split-max-size is only for the families that ggufy exports in one pass",
            "llama.cpp's gguf-split cuts a file",
        )
    if request.quants:
        log.info(
            "%s is none of the families that ggufy exports in one pass, so it goes by way of llama.cpp's converter: "
            "that needs %s, and on the disk a 16-bit copy",
            architecture.of(config_files.read(request.base / "config.json")),
            ", ".join(conversion.PACKAGES.values()),
        )
    sinks = merged_sinks(request, planned)
    changed = bool(adapter.deltas or adapter.whole) or any(t.dtype == FOUR_BIT for t in weights.tensors.values())
    # The converter would not know the names that a trainer's wrapper wrote.
    config = config_files.read(request.base / "config.json")
    changed = (
        changed
        or weights.wrapped
        or request.tokenizer is not None
        or architecture.of(config) not in config.get("architectures", [])
    )
    # Always from F16, whatever else is asked for: the bytes of a quant may not depend on it.
    if request.quants and changed and "merged" not in sinks:
        sinks[_SCRATCH] = MergedSink(scratch / "merged", request.base, planned, "F16", request.tokenizer)
    return Detour(request, planned, sinks, weights, adapter, scratch, changed)


def _refuse_other_rows(weights: Checkpoint, adapter: Adapter) -> None:
    """Raise ExportError for a vocabulary of another size where the embedding is not called as most are."""
    for name, stored in adapter.whole.items():
        brought = adapter.weights[stored].shape if adapter.weights else ()
        held = weights[name].shape if name in weights else brought
        if brought != held and brought[1:] == held[1:]:
            raise ExportError(
                f"{adapter.where}: it brings {name} with {brought[0]:,} rows, and the base has {held[0]:,}; of an "
                f"architecture that ggufy does not know it takes those only as {EMBEDDING}",
                "save the base with as many rows (resize_token_embeddings in transformers), and name it with --base",
            )
