"""ggufy's own quantization kernels: the bytes of llama.cpp's, several times as fast. See docs/kernels.md.

They are a compiled library, `kernels/kernels.c`, that an installation without a compiler lacks: then nothing here has
a kernel, and llama.cpp's are used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from pathlib import Path
from typing import Any

from ggufy import ggml
from ggufy.export.kernels import build

TYPES = {"q2_k": 256, "q3_k": 256, "q4_k": 256, "q5_k": 256, "q6_k": 256}
TYPES |= {"q8_0": 32, "q4_0": 32, "q5_0": 32, "iq4_nl": 32, "iq4_xs": 256}
"""What has a kernel, and of what the columns must be a multiple."""
PLACE = "GGUFY_KERNELS"
"""Environment variable: the folder of the compiled library, where it is not beside its source."""


@functools.cache
def _library(folder: str) -> Any:
    path = Path(folder) / build.name()
    if not path.is_file():
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # compiled for another machine
        return None


def library() -> Any:
    """The compiled library, or None where there is none that loads."""
    return _library(os.environ.get(PLACE) or str(build.SOURCE.parent))


def variants() -> tuple[str, ...]:
    """The variants that this processor can run, the fastest first: ("avx2", "sse2")."""
    lib = library()
    if lib is None:
        return ()
    lib.ggufy_kernels_supported.restype, lib.ggufy_kernels_supported.argtypes = ctypes.c_char_p, []
    return tuple(lib.ggufy_kernels_supported().decode().split())


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
    kind = ggml.type_name(number)
    runs = variants()
    if kind not in TYPES or not runs:
        return False
    n, columns = rows.shape
    _check(rows, "float32")
    _check(out, "uint8")
    if columns % TYPES[kind] or out.size != n * ggml.row_size(number, columns):
        raise ValueError(f"{out.size} bytes for {n} rows of {columns} {kind}")
    weights = None
    if importance is not None:
        _check(importance, "float32")
        if importance.shape != (columns,):
            raise ValueError(f"importance of {importance.shape} for {columns} columns")
        weights = importance.ctypes.data
    folder = os.environ.get(PLACE) or str(build.SOURCE.parent)
    _kernel(folder, kind, variant or runs[0])(rows.ctypes.data, out.ctypes.data, n, columns, weights)
    return True


@functools.cache
def speed(number: int, *, fast: bool = True) -> float:
    """Weights a second on one core, from a short run: with the kernels here where there are any, else llama.cpp's."""
    import numpy as np

    rows = np.random.default_rng(0).standard_normal((64, 2048), dtype=np.float32)
    out = np.empty(64 * ggml.row_size(number, 2048), np.uint8)
    if not (fast and quantize(number, rows, out)):
        return ggml.speed(number)
    begun = time.perf_counter()
    quantize(number, rows, out)
    return float(rows.size / max(time.perf_counter() - begun, 1e-9))


def _check(array: Any, dtype: str) -> None:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"{array.dtype} {array.shape} where contiguous {dtype} is needed")
