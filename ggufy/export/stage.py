"""The export stage: base folder and adapter folder in, GGUF files out."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ggufy import progress
from ggufy.errors import ExportError
from ggufy.export import layout, llama, stream, vocab
from ggufy.export.adapter import Adapter
from ggufy.weights import Checkpoint


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


def export(
    base: Path, adapter: Path | None, outputs: Mapping[str, Path], general: dict[str, str], threads: int | None = None
) -> None:
    """Write one GGUF for each quant of `outputs` (quant -> path).

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
