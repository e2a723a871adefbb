"""Check before each export, on its own weights, that ggufy's kernels make the same bytes as llama.cpp's and numpy's.

A wrong kernel makes a file that loads and talks, only worse: nothing after the export would notice. So what is compared
is all that an export does: every lane, several rows, whole heads that are permuted, and blocks that are hard to round.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ggufy.errors import ExportError
from ggufy.export.adapter.adapter import Adapter
from ggufy.export.families.family import Planned
from ggufy.export.kernels import hard_blocks, native
from ggufy.export.merge import Merge, Slab, matrix
from ggufy.export.sinks import GgufSink
from ggufy.llamacpp import library
from ggufy.model.safetensors import Checkpoint

log = logging.getLogger("ggufy")

_MANY = native.LANES + 1
"""Rows of the first matrix of a kind: where a lane is a row, all lanes, and a row that begins anew."""
_ENOUGH = _MANY * 2048
"""Weights of it, where a lane is no row: many times all lanes, over several rows."""
_WIDTH = 256
"""Weights that each lane gets of every other."""


def agreed(planned: Sequence[Planned], base: Checkpoint, adapter: Adapter, kernels: str) -> Merge:
    """Merge with the compiled code if it makes numpy's bytes on rows of every matrix, else with numpy."""
    from threadpoolctl import threadpool_limits

    slow, fast = Merge(base, adapter, compiled=False), Merge(base, adapter, compiled=True)
    if kernels == "llama.cpp" or not native.variants():
        return slow
    known = set()
    # As in the pass; and a product of so few rows waits for a BLAS's threads longer than it takes.
    with threadpool_limits(1, "blas"):
        for tensor in planned:
            if tensor.made or tensor.shift or 0 in tensor.shape:
                continue
            kind = (tensor.shape, tensor.heads, fast.kind(tensor))
            if kind in known and len(tensor.shape) == 1:
                continue  # one vector is like another
            slab = _few(tensor) if kind in known else _first(tensor)
            if not _merges_alike(slow, fast, slab, alone=kind not in known):
                log.warning("ggufy's compiled merge differs from numpy's on %s, so numpy is used", tensor.name)
                return slow
            known.add(kind)
    return fast


def choose(sinks: Sequence[GgufSink], planned: Sequence[Planned], merge: Merge) -> None:
    """Let ggufy's kernels quantize each file for which they make llama.cpp's bytes on rows of every matrix."""
    from threadpoolctl import threadpool_limits

    for sink in sinks:
        sink.native = True
    known: set[tuple[int, ...]] = set()
    with threadpool_limits(1, "blas"):
        for tensor in planned:
            if users := _users(sinks, tensor):
                # One importance matrix serves all files of an export.
                _compare(users, tensor, sinks[0].importance.get(tensor.name), merge, known)


def say_what_is_left(sinks: Sequence[GgufSink]) -> None:
    """Name the types that ggufy has no kernel for."""
    whole = (library.F32, library.F16, library.BF16)
    numbers = {slot.type for sink in sinks for slot in sink.slots.values()}
    if names := sorted(
        library.type_name(number) for number in numbers if number not in whole and not native.has(number)
    ):
        log.info("llama.cpp's kernels quantize %s, for which ggufy has none of its own", ", ".join(names))


def _compare(
    users: Mapping[int, Sequence[GgufSink]], tensor: Planned, importance: Any, merge: Merge, known: set[tuple[int, ...]]
) -> None:
    """Take a tensor's files, by the type they have it in, from the kernels that differ. `known` is what was tried."""
    weighted, columns = importance is not None, tensor.shape[-1]
    first = not {(number, weighted, columns) for number in users} <= known
    by_rows = weighted and not {library.type_name(number) for number in users}.isdisjoint(native.BY_ROWS)
    many = _MANY if by_rows else max(3, -(-_ENOUGH // columns))
    slab = _first(tensor, many) if first else _few(tensor, native.LANES if by_rows else 1)
    try:
        rows = merge.rows(slab, ["permuted"]).permuted[:many]
    except ExportError:
        return  # a bad weight is for the pass to name
    if by_rows and not first:
        # All lanes, and as few weights as elsewhere.
        rows, importance = rows[:, :_WIDTH].copy(), importance[:_WIDTH]
    for number, using in users.items():
        where = ""
        if (number, weighted) not in known and not _same(
            number, hard_blocks.rows(), hard_blocks.importance() if weighted else None
        ):
            where = "trial blocks"
        elif not _same(number, rows, importance):
            where = tensor.name
        for sink in using if where else ():
            log.warning(
                "ggufy's %s kernel differs from llama.cpp's on %s, so the %s file is made with llama.cpp's",
                library.type_name(number),
                where,
                sink.layout.quant,
            )
            sink.native = False
        known |= {(number, weighted), (number, weighted, columns)}


def _users(sinks: Sequence[GgufSink], tensor: Planned) -> dict[int, list[GgufSink]]:
    """By type, the files into which ggufy's kernel would write a tensor."""
    users: dict[int, list[GgufSink]] = {}
    for sink in sinks:
        if sink.native and native.has(number := sink.slots[tensor.name].type):
            users.setdefault(number, []).append(sink)
    return users


def _same(number: int, rows: Any, importance: Any) -> bool:
    """Whether both kernels make the same bytes of some float32 rows."""
    import numpy as np

    size = len(rows) * library.row_size(number, rows.shape[1])
    # Whatever is not written differs.
    ours, theirs = np.zeros(size, np.uint8), np.full(size, 255, np.uint8)
    native.quantize(number, rows, ours, importance)
    library.quantize(number, rows, theirs, importance)
    return bool((ours == theirs).all())


def _merges_alike(slow: Merge, fast: Merge, slab: Slab, *, alone: bool = False) -> bool:
    """Whether both make the same bytes of some rows, or refuse them; with `alone` also of each part by itself."""
    expected, asked = _made(slow, slab, list(native.OUTPUTS)), [list(native.OUTPUTS)]
    if expected is not None and alone:
        # Another way through the code.
        asked += [[part] for part in native.OUTPUTS]
    for parts in asked:
        found = _made(fast, slab, parts)
        if expected is None or found is None:
            return expected is found
        if any(found[part].tobytes() != expected[part].tobytes() for part in parts):
            return False
    return True


def _made(merge: Merge, slab: Slab, parts: Collection[str]) -> dict[str, Any] | None:
    """The parts of some rows, or None where the rows are refused."""
    try:
        rows = merge.rows(slab, parts)
    except ExportError:
        return None
    return {part: getattr(rows, part) for part in parts}


def _first(tensor: Planned, many: int = _MANY) -> Slab:
    """Rows of a tensor that is the first of its kind: whole heads where rows are permuted, two or more."""
    rows, columns = matrix(tensor.shape)
    many = max(many, -(-native.LANES * _WIDTH // columns))  # narrow ones, such as vectors, whole
    head = rows // tensor.heads if tensor.heads else 1
    heads = max(2, -(-many // head)) if tensor.heads else many
    return _middle(tensor, min(rows, heads * head), head)


def _few(tensor: Planned, least: int = 1) -> Slab:
    """Rows of any other, left in their order: to permute takes whole heads."""
    rows, columns = matrix(tensor.shape)
    return _middle(replace(tensor, heads=0), min(rows, max(least, -(-native.LANES * _WIDTH // columns))))


def _middle(tensor: Planned, count: int, unit: int = 1) -> Slab:
    start = (matrix(tensor.shape)[0] - count) // 2 // unit * unit
    return Slab(tensor, start, start + count)
