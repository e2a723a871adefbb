"""The export stage: base folder and adapter folder in, GGUF files out."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ggufy import progress
from ggufy.errors import ExportError
from ggufy.export import layout, llama, stream
from ggufy.export.adapter import Adapter
from ggufy.weights import Checkpoint


def export(
    base: Path, adapter: Path | None, outputs: Mapping[str, Path], general: dict[str, str], threads: int | None = None
) -> dict[str, float]:
    """Write one GGUF for each quant of `outputs` (quant -> path). Returns bits per weight by quant.

    The outputs are written in place and complete only when this returns; callers move them to their final names.
    Raises ExportError or ModelError.
    """
    config = llama.read_config(base)
    weights = Checkpoint.open(base)
    merged = Adapter.open(adapter) if adapter else Adapter.none()
    planned = llama.plan(config, weights)
    merged.check(weights, (tensor.source for tensor in planned if tensor.source))
    scratch = next(iter(outputs.values())).parent
    layouts = layout.make(list(outputs), config, base, planned, general, scratch)
    _check_space(outputs, layouts)
    total = sum(math.prod(tensor.shape) for tensor in planned)
    with progress.bar(f"exporting {', '.join(outputs)}", total) as bar:
        files = {outputs[quant]: layouts[quant] for quant in outputs}
        stream.write(planned, files, weights, merged, threads or cores(), bar)
    return {quant: one.bits_per_weight for quant, one in layouts.items()}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_space(outputs: Mapping[str, Path], layouts: Mapping[str, layout.Layout]) -> None:
    folder = next(iter(outputs.values())).parent
    needed = sum(one.size for one in layouts.values())
    # What an interrupted attempt already wrote is written over.
    needed -= sum(path.stat().st_blocks * 512 for path in outputs.values() if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportError(
            f"{folder.as_posix()}: {needed / 1e9:.2f} GB needed for {', '.join(outputs)}, {free / 1e9:.2f} GB free",
            "free some space, or export fewer or smaller quants",
        )
