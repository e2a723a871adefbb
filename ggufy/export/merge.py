"""Merge one slab of weights: rows of the base plus the adapter's change, rounded once to F16.

By the compiled pass (kernels/merge.c) where there is one, else by numpy and llama.cpp's conversions: the same bytes.
The product of the adapter's matrices is numpy's in both, because a BLAS sums in an order of its own.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from ggufy.errors import ExportError
from ggufy.export.adapter.adapter import Adapter
from ggufy.export.families.family import Planned
from ggufy.export.kernels import native
from ggufy.export.rows import read_rows
from ggufy.llamacpp import library
from ggufy.model import safetensors
from ggufy.model.safetensors import SIZES, Checkpoint


@dataclass(frozen=True)
class Slab:
    """Rows [start, stop) of a tensor; whole heads where rows are permuted."""

    tensor: Planned
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, matrix(self.tensor.shape)[1]


@dataclass(frozen=True)
class Rows:
    """The weights of one slab, (rows, columns) each: at least the parts that were asked for, the others perhaps None.

    They are the thread's own buffers: a sink has to be done with them when `put` returns.
    """

    exact: Any = None
    """float32, in the checkpoint's order, as are `bf16` and `half`; like `permuted` with its tensor's shift."""
    bf16: Any = None
    """`exact` rounded to bfloat16, as 16-bit patterns."""
    half: Any = None
    """`exact` rounded to float16."""
    permuted_half: Any = None
    """`half` in llama.cpp's order."""
    permuted: Any = None
    """The same as float32."""


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns as slabs are cut: a vector is a column, experts and convolutions are stacked rows."""
    return (shape[0], 1) if len(shape) == 1 else (math.prod(shape[:-1]), shape[-1] if shape else 1)


class Merge:
    """Base and adapter of one export. `rows` may be called from several threads; each has its own buffers.

    `compiled` says whether the compiled pass is used.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter, *, compiled: bool) -> None:
        self.base, self.adapter, self.compiled = base, adapter, compiled
        self._local = threading.local()

    def rows(self, slab: Slab, parts: Collection[str]) -> Rows:
        """The `parts`, names of Rows' fields, of a slab. Raises ExportError for a weight that is no finite float16."""
        import numpy as np

        if slab.tensor.made:
            made = np.array(slab.tensor.made, np.float32)[slab.start : slab.stop, None]
            return Rows(exact=made, permuted=made)
        if slab.tensor.shift:
            return self._shifted(slab)
        return self._compiled(slab, parts) if self.compiled else self._by_numpy(slab, parts)

    def _shifted(self, slab: Slab) -> Rows:
        """A vector of which the GGUF holds another than the checkpoint: all parts, as it is short.

        The sum is rounded as the converter's: a float16 checkpoint's to float16, others' to float32.
        """
        import numpy as np

        holder, name = self._stored(slab.tensor)
        values = np.empty(slab.shape, np.float32)
        self._read(slab, values)
        self._refuse_bad(slab, values)
        half, shifted = values.astype(np.float16), values + np.float32(slab.tensor.shift)
        if holder[name].dtype == "F16":
            shifted = shifted.astype(np.float16).astype(np.float32)
        return Rows(shifted, safetensors.to_bf16(values), half, half, shifted)

    def _compiled(self, slab: Slab, parts: Collection[str]) -> Rows:
        outputs = {part: self._buffer(part, slab) for part in parts}
        holder, name = self._stored(slab.tensor)
        lora = self.adapter.deltas.get(str(slab.tensor.source))
        stored, kind, delta, scaling = None, holder[name].dtype, None, 1.0
        if kind not in native.STORED or (lora and not lora.plain):
            stored, kind = self._buffer("exact", slab), "F32"
            self._read(slab, stored)
            outputs.pop("exact", None)
        else:
            width = slab.shape[1] * SIZES[kind]
            stored = holder.data(name)[slab.start * width : slab.stop * width]
            if lora:
                delta, scaling = lora.product(slab.start, slab.stop, self._buffer("delta", slab)), lora.scaling
        heads = slab.tensor.heads
        head = slab.tensor.shape[0] // heads if heads else 0
        bad = native.merge(stored, kind, slab.shape, outputs, delta=delta, scaling=scaling, head=head)
        if bad >= 0:
            raise self._bad_weight(slab, bad)
        if "exact" in parts:
            outputs["exact"] = self._buffer("exact", slab)
        return Rows(**outputs)

    def _by_numpy(self, slab: Slab, parts: Collection[str]) -> Rows:
        import numpy as np

        exact, half, permuted_half, permuted = (
            self._buffer(part, slab) for part in ("exact", "half", "permuted_half", "permuted")
        )
        self._read(slab, exact)
        if not {"half", "permuted_half", "permuted"} & set(parts):
            brain = safetensors.to_bf16(exact) if "bf16" in parts else None
            self._refuse_bad(slab, exact if brain is None else (brain.astype(np.uint32) << 16).view(np.float32))
            return Rows(exact, brain)
        library.to_f16(exact, half)
        if heads := slab.tensor.heads:
            # (heads, 2, half, columns) -> (heads, half, 2, columns)
            split = half.reshape(-1, 2, slab.tensor.shape[0] // heads // 2, slab.shape[1]).swapaxes(1, 2)
            np.copyto(permuted_half.reshape(split.shape), split)
        else:
            permuted_half = half
        library.from_f16(permuted_half, permuted)
        flat = permuted.reshape(-1)
        if not np.isfinite(np.dot(flat, flat)):
            self._refuse_bad(slab, half)
        return Rows(exact, safetensors.to_bf16(exact) if "bf16" in parts else None, half, permuted_half, permuted)

    def _refuse_bad(self, slab: Slab, rows: Any) -> None:
        import numpy as np

        if not np.isfinite(rows).all():
            raise self._bad_weight(slab, int(np.argwhere(~np.isfinite(rows))[0][0]))

    def _bad_weight(self, slab: Slab, row: int) -> ExportError:
        """What to say of a row that is not finite as it was rounded."""
        import numpy as np

        only = replace(slab, tensor=replace(slab.tensor, heads=0), start=slab.start + row, stop=slab.start + row + 1)
        exact = np.empty(only.shape, np.float32)
        self._read(only, exact)
        where = f"{slab.tensor.source}, row {slab.start + row}"
        if np.isfinite(exact).all():
            return ExportError(
                f"a weight of {float(np.abs(exact).max()):.3g} is too large for F16, which ends at 65,504: {where}",
                "use --quant bf16, --quant f32 or --merged bf16, which have the range; all others are made from F16",
            )
        return ExportError(
            f"a weight is not a finite number: {where}",
            "the base is damaged, or training diverged: train again with a lower learning rate",
        )

    def kind(self, tensor: Planned) -> tuple[str, str]:
        """What decides how the rows of a tensor are merged: the type they are stored in, and the change."""
        holder, name = self._stored(tensor)
        lora = self.adapter.deltas.get(str(tensor.source))
        return holder[name].dtype, "none" if lora is None else "added" if lora.plain else "of another kind"

    def _stored(self, tensor: Planned) -> tuple[Checkpoint, str]:
        """Where the rows lie that the adapter changes: in the base, or in the adapter."""
        name = str(tensor.source)
        if name in self.adapter.whole:
            return self.adapter.weights or self.base, self.adapter.whole[name]
        return self.base, tensor.stored or name

    def _read(self, slab: Slab, out: Any) -> None:
        """Rows of the base with the adapter's change, float32."""
        read_rows(*self._stored(slab.tensor), slab.start, slab.stop, out)
        if lora := self.adapter.deltas.get(str(slab.tensor.source)):
            lora.apply(out, slab.start, self._buffer("delta", slab))

    def _buffer(self, part: str, slab: Slab) -> Any:
        """This thread's array for a part, kept from slab to slab: fresh memory costs more than the arithmetic."""
        import numpy as np

        rows, columns = slab.shape
        kept = self._local.__dict__.setdefault("kept", {})
        if part not in kept or kept[part].size < rows * columns:
            kept[part] = np.empty(rows * columns, native.OUTPUTS.get(part, "float32"))
        return kept[part][: rows * columns].reshape(rows, columns)
