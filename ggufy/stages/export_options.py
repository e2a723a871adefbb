"""The options of `ggufy export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from ggufy.export.gguf.tensor_types import TypeOptions
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
    tensor_types: Sequence[str] = ()
    tensor_type_file: Path | None = None
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    types_from: Path | None = None
    ollama: str | None = None
    kernels: str = "auto"
    threads: int | None = None
    force: bool = False
    check_files: bool = True
    check_logits: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.quants, str):
            object.__setattr__(self, "quants", (self.quants,))
        if isinstance(self.tensor_types, str):
            object.__setattr__(self, "tensor_types", (self.tensor_types,))

    @cached_property
    def types(self) -> TypeOptions | None:
        """What is asked about the types of tensors, if anything is. Raises ExportError or ModelError."""
        return TypeOptions.of(
            self.tensor_types,
            self.tensor_type_file,
            self.output_tensor_type,
            self.token_embedding_type,
            leave_output_tensor=self.leave_output_tensor,
            pure=self.pure,
            types_from=self.types_from,
        )

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
    tensor_types: Sequence[str]
    tensor_type_file: Path | None
    output_tensor_type: str | None
    token_embedding_type: str | None
    leave_output_tensor: bool
    pure: bool
    types_from: Path | None
    ollama: str | None
    kernels: str
    threads: int | None
    force: bool
    check_files: bool
    check_logits: bool
