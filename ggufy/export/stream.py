"""The pass over the weights: slabs of rows are read, merged, rounded once to F16, quantized and written in place.

Each slab is one piece of work for a pool of threads; reading, numpy's arithmetic and llama.cpp's kernels all release
the GIL. Memory is a few slabs a thread, whatever the size of the model. The slabs do not depend on the thread count,
so neither do the bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy import ggml
from ggufy.errors import ExportError
from ggufy.export.adapter import Adapter, decode
from ggufy.export.layout import Layout, Slot
from ggufy.export.llama import Planned
from ggufy.progress import Bar
from ggufy.weights import SIZES, Checkpoint

_SLAB = 1 << 20  # weights


@dataclass(frozen=True)
class _Slab:
    tensor: Planned
    start: int
    stop: int


def write(
    planned: Sequence[Planned],
    layouts: Mapping[Path, Layout],
    base: Checkpoint,
    adapter: Adapter,
    threads: int,
    bar: Bar,
) -> None:
    """Write each file of `layouts`, sharing one read and merge of every weight."""
    work = _Pass(layouts, base, adapter, bar)
    slabs = [slab for tensor in planned for slab in _slabs(tensor)]
    try:
        work.open()
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(work.do, slab) for slab in slabs]
            try:
                for future in running:
                    future.result()
            except BaseException:
                # A bad weight, a full disk or Ctrl-C: only the slabs in hand are finished.
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        work.close()


def _slabs(tensor: Planned) -> Iterator[_Slab]:
    rows = tensor.shape[0]
    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    unit = rows // tensor.heads if tensor.heads else 1
    step = max(1, _SLAB // (columns * unit)) * unit
    for start in range(0, rows, step):
        yield _Slab(tensor, start, min(rows, start + step))


class _Pass:
    def __init__(self, layouts: Mapping[Path, Layout], base: Checkpoint, adapter: Adapter, bar: Bar) -> None:
        self.layouts, self.base, self.adapter, self.bar = layouts, base, adapter, bar
        self.files: list[tuple[int, dict[str, Slot]]] = []
        self.done = 0
        self.lock = threading.Lock()

    def open(self) -> None:
        for path, layout in self.layouts.items():
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            self.files.append((handle, {slot.tensor.name: slot for slot in layout.slots}))
            os.ftruncate(handle, layout.size)
            _pwrite(handle, layout.head, 0)

    def close(self) -> None:
        for handle, _ in self.files:
            os.close(handle)

    def do(self, slab: _Slab) -> None:
        import numpy as np

        tensor = slab.tensor
        rows = self._rows(slab, np)
        if tensor.heads:
            # (heads, 2, half, columns) -> (heads, half, 2, columns)
            half = tensor.shape[0] // tensor.heads // 2
            rows = np.ascontiguousarray(rows.reshape(-1, 2, half, rows.shape[1]).swapaxes(1, 2)).reshape(rows.shape)
        half_precision = None
        if not tensor.made:
            half_precision = np.empty(rows.shape, np.float16)
            ggml.to_f16(rows, half_precision)
            ggml.from_f16(half_precision, rows)
            flat = rows.reshape(-1)
            if not np.isfinite(np.dot(flat, flat)):
                self._name_bad_weight(slab, rows, np)
        for handle, slots in self.files:
            slot = slots[tensor.name]
            _pwrite(handle, _encode(slot.type, slot.row_bytes, rows, half_precision, np), _offset(slot, slab))
        with self.lock:
            self.done += rows.size
            self.bar.update(self.done)

    def _rows(self, slab: _Slab, np: Any) -> Any:
        tensor = slab.tensor
        if tensor.made:
            return np.array(tensor.made, np.float32)[slab.start : slab.stop, None]
        name = str(tensor.source)
        weights, stored = self.base, name
        if name in self.adapter.whole:
            weights, stored = self.adapter.weights or self.base, self.adapter.whole[name]
        columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
        dtype = weights[stored].dtype
        width = columns * SIZES[dtype]
        data = weights.data(stored)[slab.start * width : slab.stop * width]
        rows = decode(data, dtype, (slab.stop - slab.start) * columns, np).reshape(-1, columns)
        if name in self.adapter.pairs:
            self.adapter.pairs[name].apply(rows, slab.start)
        return rows

    def _name_bad_weight(self, slab: _Slab, rows: Any, np: Any) -> None:
        bad = np.argwhere(~np.isfinite(rows))
        if len(bad):
            where = f"{slab.tensor.source}, near row {slab.start + int(bad[0][0])}"
            raise ExportError(
                f"a weight is not a finite 16-bit number: {where}",
                "the base is damaged, or training diverged: export an earlier checkpoint",
            )


def _offset(slot: Slot, slab: _Slab) -> int:
    if len(slot.tensor.shape) == 1:
        return slot.offset + slab.start * SIZES["F32"]
    return slot.offset + slab.start * slot.row_bytes


def _encode(kind: int, row_bytes: int, rows: Any, half_precision: Any, np: Any) -> Any:
    if kind == ggml.F32:
        return rows.data.cast("B")
    if kind == ggml.F16 and half_precision is not None:
        return half_precision.data.cast("B")
    out = np.empty(len(rows) * row_bytes, np.uint8)
    ggml.quantize(kind, rows, out)
    return out.data


def _pwrite(handle: int, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
