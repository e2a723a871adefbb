"""The pass over the weights: slabs of rows are read, merged, rounded once to F16, quantized and written in place.

Each slab is one piece of work for a pool of threads; reading, numpy's arithmetic and llama.cpp's kernels all release
the GIL. Memory is a few slabs a thread, whatever the size of the model. The slabs do not depend on the thread count,
so neither do the bytes. Every output of a command, GGUF or merged checkpoint, gets its share of the same pass.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from ggufy import ggml
from ggufy.errors import ExportError
from ggufy.export.adapter import Adapter, read_rows
from ggufy.export.llama import Planned
from ggufy.progress import Bar
from ggufy.weights import Checkpoint

_SLAB = 1 << 20  # weights


@dataclass(frozen=True)
class Slab:
    """Rows [start, stop) of a tensor; whole heads where rows are permuted."""

    tensor: Planned
    start: int
    stop: int


@dataclass(frozen=True)
class Rows:
    """The weights of one slab: `exact` float32 and `half` as the checkpoint has them, the others as llama.cpp does.

    They are the thread's own buffers: a sink has to be done with them when `put` returns.
    """

    exact: Any
    half: Any
    permuted_half: Any
    permuted: Any
    """float32, but of `half`'s values."""


class Sink(Protocol):
    """One output. `put` may be called from several threads at once, for different slabs."""

    def open(self) -> None: ...

    def put(self, slab: Slab, rows: Rows) -> None: ...

    def close(self) -> None: ...


def run(
    planned: Sequence[Planned], sinks: Sequence[Sink], base: Checkpoint, adapter: Adapter, threads: int, bar: Bar
) -> None:
    """Read and merge every weight once, and give it to each sink."""
    from threadpoolctl import threadpool_limits

    work = _Pass(sinks, base, adapter, bar)
    slabs = [slab for tensor in planned for slab in _slabs(tensor)]
    try:
        for sink in sinks:
            sink.open()
        # The slabs are the parallel work; a BLAS that also took every core would only get in their way.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(work.do, slab) for slab in slabs]
            try:
                for future in running:
                    future.result()
            except BaseException:
                # A bad weight, a full disk or Ctrl-C: only the slabs in hand are finished.
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for sink in sinks:
            sink.close()


def sample(planned: Sequence[Planned], base: Checkpoint, adapter: Adapter) -> Iterator[tuple[str, Any]]:
    """A merged row of each matrix, from its middle, rounded to F16 as the pass does: name and float32 (1, columns)."""
    import numpy as np

    for tensor in planned:
        if len(tensor.shape) != 2:
            continue
        row = tensor.shape[0] // 2
        exact, scratch = np.empty((2, 1, tensor.shape[1]), np.float32)
        half = np.empty((1, tensor.shape[1]), np.float16)
        _read(Slab(tensor, row, row + 1), base, adapter, exact, scratch)
        ggml.to_f16(exact, half)
        ggml.from_f16(half, exact)
        # A bad weight is for the pass to name.
        if np.isfinite(exact).all():
            yield tensor.name, exact


def _read(slab: Slab, base: Checkpoint, adapter: Adapter, out: Any, scratch: Any) -> None:
    """Rows of the base with the adapter's change, float32."""
    name = str(slab.tensor.source)
    weights, stored = base, slab.tensor.stored or name
    if name in adapter.whole:
        weights, stored = adapter.weights or base, adapter.whole[name]
    read_rows(weights, stored, slab.start, slab.stop, out)
    if name in adapter.pairs:
        adapter.pairs[name].apply(out, slab.start, scratch)


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns as slabs are cut: a vector is a column, experts and convolutions are stacked rows."""
    return (shape[0], 1) if len(shape) == 1 else (math.prod(shape[:-1]), shape[-1] if shape else 1)


def _slabs(tensor: Planned) -> Iterator[Slab]:
    rows, columns = matrix(tensor.shape)
    unit = rows // tensor.heads if tensor.heads else 1
    step = max(1, _SLAB // (columns * unit)) * unit
    for start in range(0, rows, step):
        yield Slab(tensor, start, min(rows, start + step))


class _Pass:
    def __init__(self, sinks: Sequence[Sink], base: Checkpoint, adapter: Adapter, bar: Bar) -> None:
        self.sinks, self.base, self.adapter, self.bar = sinks, base, adapter, bar
        self.done = 0
        self.lock = threading.Lock()
        self.local = threading.local()

    def do(self, slab: Slab) -> None:
        rows = self._merge(slab)
        for sink in self.sinks:
            sink.put(slab, rows)
        with self.lock:
            self.done += rows.exact.size
            self.bar.update(self.done)

    def _buffers(self, shape: tuple[int, int]) -> Any:
        """This thread's arrays in that shape, kept from slab to slab: fresh memory costs more than the arithmetic."""
        import numpy as np

        size = shape[0] * shape[1]
        if getattr(self.local, "size", 0) < size:
            self.local.size = size
            self.local.f32 = np.empty((3, size), np.float32)
            self.local.f16 = np.empty((2, size), np.float16)
        return [a[:size].reshape(shape) for a in (*self.local.f32, *self.local.f16)]

    def _merge(self, slab: Slab) -> Rows:
        import numpy as np

        tensor = slab.tensor
        if tensor.made:
            made = np.array(tensor.made, np.float32)[slab.start : slab.stop, None]
            return Rows(made, None, None, made)
        columns = matrix(tensor.shape)[1]
        exact, permuted, scratch, half, permuted_half = self._buffers((slab.stop - slab.start, columns))
        _read(slab, self.base, self.adapter, exact, scratch)
        ggml.to_f16(exact, half)
        if tensor.heads:
            # (heads, 2, half, columns) -> (heads, half, 2, columns)
            split = half.reshape(-1, 2, tensor.shape[0] // tensor.heads // 2, columns)
            np.copyto(permuted_half.reshape(split.swapaxes(1, 2).shape), split.swapaxes(1, 2))
        else:
            permuted_half = half
        ggml.from_f16(permuted_half, permuted)
        flat = permuted.reshape(-1)
        if not np.isfinite(np.dot(flat, flat)):
            _name_bad_weight(slab, half, np)
        return Rows(exact, half, permuted_half, permuted)


def _name_bad_weight(slab: Slab, half: Any, np: Any) -> None:
    bad = np.argwhere(~np.isfinite(half))
    if len(bad):
        where = f"{slab.tensor.source}, row {slab.start + int(bad[0][0])}"
        raise ExportError(
            f"a weight is not a finite 16-bit number: {where}",
            "the base is damaged, or training diverged: train again with a lower learning rate",
        )
