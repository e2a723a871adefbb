"""The request for an export, and the interface of a plan for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ggufy.export.families.family import Planned
from ggufy.export.imatrix import Imatrix
from ggufy.export.sinks import MergedSink

# Outputs that are no quants.
MERGED = {"merged": "F16", "merged-bf16": "BF16"}
ADAPTER = "adapter"


@dataclass(frozen=True)
class Request:
    """What to export: a base, perhaps an adapter on it, and each output by its name.

    Names are quants, `merged` and `merged-bf16` (folders), and `adapter` (a GGUF). `general` is noted in every GGUF.
    """

    base: Path
    adapter: Path | None
    outputs: Mapping[str, Path]
    general: Mapping[str, str]
    imatrix: Imatrix | None = None
    split: int | None = None
    """The most bytes of a file; each GGUF is then a folder of files."""
    kernels: str = "auto"
    """What quantizes: auto, native or llama.cpp. The bytes are the same."""

    @property
    def quants(self) -> list[str]:
        return [name for name in self.outputs if name not in (*MERGED, ADAPTER)]


class Plan(Protocol):
    """An export before its first byte: what will be written, and how large it will be."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by output, and of what lies on the disk meanwhile. The adapter's own GGUF is an estimate from above."""

    def describe(self, threads: int) -> list[str]:
        """The plan for people."""

    def write(self, threads: int) -> None:
        """Write everything. Complete only when this returns. Raises ExportError."""


def merged_sinks(request: Request, planned: list[Planned]) -> dict[str, MergedSink]:
    """The merged checkpoints that are asked for."""
    return {
        name: MergedSink(request.outputs[name], request.base, planned, dtype)
        for name, dtype in MERGED.items()
        if name in request.outputs
    }
