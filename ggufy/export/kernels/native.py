"""Load and call ggufy's own compiled kernels: the same bytes as llama.cpp's, several times as fast (docs/kernels.md).

They are a compiled library, of `kernels/kernels.c` and `kernels/merge.c`, that an installation without a compiler
lacks: then nothing here has a kernel, llama.cpp's are used, and numpy merges.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggufy.export.kernels import build
from ggufy.llamacpp import library as llama

TYPES = {"q2_k": 256, "q3_k": 256, "q4_k": 256, "q5_k": 256, "q6_k": 256}
TYPES |= {"q8_0": 32, "q4_0": 32, "q5_0": 32, "iq4_nl": 32, "iq4_xs": 256}
"""What has a kernel, and of what the columns must be a multiple."""
BY_ROWS = ("q4_0", "q5_0")
"""What weighs, where there is an importance matrix, by the mean square of a row: there a lane is a row."""
LANES = 16
"""Blocks, or rows, that the widest variant works on side by side."""
PLACE = "GGUFY_KERNELS"
"""Environment variable: the folder of the compiled library, where it is not beside its source."""


@functools.cache
def _library(folder: str) -> Any:
    path = Path(folder) / build.name()
    if not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # compiled for another machine
        return None
    return library if _of_this_source(library) else None


def _of_this_source(library: Any) -> bool:
    """Whether a library is made from the source that lies here, so that its functions take what is given to them."""
    try:
        told = library.ggufy_kernels_source
    except AttributeError:
        return False
    told.restype, told.argtypes = ctypes.c_char_p, []
    found = told().decode()
    return bool(found == (build.fingerprint() or found))


def library() -> Any:
    """The compiled library, or None where there is none that loads."""
    return _library(_folder())


def refused() -> bool:
    """Whether a compiled library is there, but not used: of other source, or for another machine."""
    return library() is None and (Path(_folder()) / build.name()).is_file()


def _folder() -> str:
    return os.environ.get(PLACE) or str(build.FOLDER)


def variants() -> tuple[str, ...]:
    """The variants that this processor can run, the fastest first: ("avx2", "sse2")."""
    return _supported(_folder())


@functools.cache
def _supported(folder: str) -> tuple[str, ...]:
    lib = _library(folder)
    if lib is None:
        return ()
    lib.ggufy_kernels_supported.restype, lib.ggufy_kernels_supported.argtypes = ctypes.c_char_p, []
    return tuple(lib.ggufy_kernels_supported().decode().split())


def has(number: int) -> bool:
    """Whether a type has a kernel here."""
    return llama.type_name(number) in TYPES and bool(variants())


@functools.cache
def _kernel(folder: str, kind: str, variant: str) -> Any:
    function = getattr(_library(folder), f"ggufy_quantize_{kind}_{variant}")
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.restype, function.argtypes = None, [pointer, pointer, count, count, pointer]
    return function


def quantize(number: int, rows: Any, out: Any, importance: Any = None, variant: str = "") -> bool:
    """Quantize float32 rows (n, columns) into `out` (uint8, n * row_size), both contiguous. Releases the GIL.

    `importance` weighs the columns: float32 (columns,). Without a `variant` it is the fastest that this processor can
    run. Says whether there is a kernel for the type; where there is none, nothing is written.
    """
    if not has(number):
        return False
    kind, runs = llama.type_name(number), variants()
    n, columns = rows.shape
    _check(rows, "float32")
    _check(out, "uint8")
    if columns % TYPES[kind] or out.size != n * llama.row_size(number, columns):
        raise ValueError(f"{out.size} bytes for {n} rows of {columns} {kind}")
    weights = None
    if importance is not None:
        _check(importance, "float32")
        if importance.shape != (columns,):
            raise ValueError(f"importance of {importance.shape} for {columns} columns")
        weights = importance.ctypes.data
    _kernel(_folder(), kind, variant or runs[0])(rows.ctypes.data, out.ctypes.data, n, columns, weights)
    return True


STORED = ("BF16", "F16", "F32")
"""The safetensors dtypes that `merge` reads, in the order of its enum."""
OUTPUTS = {"exact": "float32", "bf16": "uint16", "half": "float16", "permuted_half": "float16", "permuted": "float32"}
"""What `merge` can write, and its dtype; the names are those of merge.Rows."""


class _Merge(ctypes.Structure):
    """`Merge` of kernels/merge.h."""

    _fields_ = [
        ("stored", ctypes.c_void_p),
        ("delta", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("head", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in OUTPUTS),
        ("kind", ctypes.c_int32),
        ("scaling", ctypes.c_float),
    ]


@functools.cache
def _merger(folder: str, variant: str) -> Any:
    function = getattr(_library(folder), f"ggufy_merge_{variant}")
    function.restype, function.argtypes = ctypes.c_int64, [ctypes.POINTER(_Merge)]
    return function


def merge(
    stored: Any,
    dtype: str,
    shape: tuple[int, int],
    outputs: Mapping[str, Any],
    *,
    delta: Any = None,
    scaling: float = 1.0,
    head: int = 0,
    variant: str = "",
) -> int:
    """Rows as a checkpoint holds them (a buffer of one of STORED), plus `scaling` times `delta` (float32, that shape),
    into the `outputs`, by the names of merge.Rows. Releases the GIL.

    `head` is how many rows make a head, whose halves are interleaved in the permuted outputs; 0 leaves all in place.
    Returns the first row with a weight that is no finite float16, or -1. After such a row the outputs are not written.
    """
    import numpy as np

    rows, columns = shape
    raw = np.frombuffer(stored, np.uint8)
    if raw.size != rows * columns * (4 if dtype == "F32" else 2) or (head and (rows % head or head % 2)):
        raise ValueError(f"{raw.size} bytes for {rows} rows of {columns} {dtype} in heads of {head}")
    call = _Merge(raw.ctypes.data, None, rows, columns, head, kind=STORED.index(dtype), scaling=scaling)
    for name, array in {**outputs, **({} if delta is None else {"delta": delta})}.items():
        _check(array, OUTPUTS.get(name, "float32"))
        if array.shape != shape:
            raise ValueError(f"{name} of {array.shape} for {shape}")
        setattr(call, name, array.ctypes.data)
    return int(_merger(_folder(), variant or variants()[0])(call))


@functools.cache
def speed(number: int, *, fast: bool = True) -> float:
    """Weights a second on one core, from a short run: with the kernels here where there are any, else llama.cpp's."""
    import numpy as np

    rows = np.random.default_rng(0).standard_normal((64, 2048), dtype=np.float32)
    out = np.empty(64 * llama.row_size(number, 2048), np.uint8)
    if not (fast and quantize(number, rows, out)):
        return llama.speed(number)
    begun = time.perf_counter()
    quantize(number, rows, out)
    return float(rows.size / max(time.perf_counter() - begun, 1e-9))


def _check(array: Any, dtype: str) -> None:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"{array.dtype} {array.shape} where contiguous {dtype} is needed")
