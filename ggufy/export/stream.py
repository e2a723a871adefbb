"""The pass over the weights: slabs of rows are read, merged, rounded once to F16, quantized and written in place.

Each slab is one piece of work for a pool of threads; reading, merging and quantizing all release the GIL. Memory is a
few slabs a thread, whatever the size of the model. The slabs do not depend on the thread count, so neither do the
bytes. Every output of a command, GGUF or merged checkpoint, gets its share of the same pass.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ggufy.export.families.family import Planned
from ggufy.export.merge import Merge, Rows, Slab, matrix
from ggufy.system.progress import Bar

_SLAB = 1 << 20  # weights


class Sink(Protocol):
    """One output. `put` may be called from several threads at once, for different slabs."""

    def open(self) -> None: ...

    def parts(self, tensor: Planned) -> Collection[str]:
        """The fields of Rows that `put` reads."""

    def put(self, slab: Slab, rows: Rows) -> None: ...

    def close(self) -> None: ...


def run(planned: Sequence[Planned], sinks: Sequence[Sink], merge: Merge, threads: int, bar: Bar) -> None:
    """Read and merge every weight once, and give it to each sink."""
    from threadpoolctl import threadpool_limits

    work = _Pass(sinks, merge, bar)
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


def _slabs(tensor: Planned) -> Iterator[Slab]:
    rows, columns = matrix(tensor.shape)
    unit = rows // tensor.heads if tensor.heads else 1
    step = max(1, _SLAB // (columns * unit)) * unit
    for start in range(0, rows, step):
        yield Slab(tensor, start, min(rows, start + step))


class _Pass:
    def __init__(self, sinks: Sequence[Sink], merge: Merge, bar: Bar) -> None:
        self.sinks, self.merge, self.bar = sinks, merge, bar
        self.done = 0
        self.lock = threading.Lock()

    def do(self, slab: Slab) -> None:
        rows = self.merge.rows(slab, {part for sink in self.sinks for part in sink.parts(slab.tensor)})
        for sink in self.sinks:
            sink.put(slab, rows)
        with self.lock:
            self.done += math.prod(slab.shape)
            self.bar.update(self.done)
