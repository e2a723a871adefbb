"""The options of `ggufy export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ggufy.export.request import ADAPTER
from ggufy.stages import calibration


@dataclass(frozen=True)
class ExportOptions:
    """The options of one export."""

    quants: Sequence[str] | None = None
    merged: str | None = None
    adapter_gguf: bool = False
    imatrix: bool = False
    imatrix_data: Path | None = None
    imatrix_file: Path | None = None
    imatrix_tokens: int | None = None
    split_max_size: int | None = None
    ollama: str | None = None
    kernels: str = "auto"
    threads: int | None = None
    force: bool = False
    check_files: bool = True
    check_logits: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.quants, str):
            object.__setattr__(self, "quants", (self.quants,))

    @property
    def calibration_tokens(self) -> int:
        return self.imatrix_tokens or calibration.TOKENS

    @property
    def extras(self) -> list[str]:
        names = {"f16": "merged", "bf16": "merged-bf16"}
        return [*([names[self.merged]] if self.merged else []), *([ADAPTER] if self.adapter_gguf else [])]


class ExportArguments(TypedDict, total=False):
    """The fields of ExportOptions, as keyword arguments."""

    quants: Sequence[str] | None
    merged: str | None
    adapter_gguf: bool
    imatrix: bool
    imatrix_data: Path | None
    imatrix_file: Path | None
    imatrix_tokens: int | None
    split_max_size: int | None
    ollama: str | None
    kernels: str
    threads: int | None
    force: bool
    check_files: bool
    check_logits: bool
