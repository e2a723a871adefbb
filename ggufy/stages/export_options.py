"""The options of `ggufy export`, and what they ask for together with a run's recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from ggufy.errors import ExportError
from ggufy.export.gguf import layout, quant_support
from ggufy.export.gguf.tensor_types import TypeOptions
from ggufy.export.request import ADAPTER
from ggufy.recipe import recipe
from ggufy.recipe.schema import Export
from ggufy.stages import calibration
from ggufy.stages.model_source import ModelSource

# Types without blocks: an importance matrix says nothing about them.
PLAIN = ("f32", "f16", "bf16")
_DEFAULT = ("q4_k_m",)


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

    @property
    def default(self) -> list[str]:
        """The quants where neither these options nor a recipe names any."""
        return [] if self.extras else list(_DEFAULT)

    def wanted_quants(self, this: ModelSource | None = None) -> list[str]:
        """The quants to make of a source; without one, as of a source that is no run. Raises ExportError."""
        if self.quants:
            return layout.check_quants(self.quants)
        if named := self._named_by_file():
            return named
        if this and this.subfolder and not self.extras:
            return layout.check_quants(_of_recipe(this).quants)
        return self.default

    def _named_by_file(self) -> list[str]:
        """The quant that the file of --types-from says it is, if one is given. Raises ExportError if it says none."""
        published = self.types.published if self.types else None
        if published is None:
            return []
        if published.quant is None or published.quant in PLAIN or not quant_support.takes(published.quant):
            raise ExportError(
                f"--types-from {published.path.as_posix()} does not say which quant it is",
                "name it, such as --quant q4_k_m",
            )
        return [published.quant]

    def wants_imatrix(self, this: ModelSource) -> bool:
        """Whether an importance matrix is to be computed."""
        if self.imatrix or self.imatrix_data:
            return True
        # A recipe's options is for the quants that it can be of use to.
        weighed = [quant for quant in self.wanted_quants(this) if quant not in PLAIN]
        return bool(this.subfolder and weighed) and _of_recipe(this).imatrix


def _of_recipe(this: ModelSource) -> Export:
    """What the recipe of a run asks for."""
    return recipe.from_values(this.output_folder.frozen["recipe"]).export


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
