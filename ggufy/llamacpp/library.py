"""Bindings to the llama.cpp inside llama-cpp-python: its types, quantization kernels and GGUF reader.

What a quantization is called and which types exist is asked of llama.cpp; nothing here is a copy of its tables.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufy.errors import ExportError
from ggufy.llamacpp.mixture import Mixture, fallbacks
from ggufy.system import interrupts

F32, F16, BF16 = 0, 1, 30


@functools.cache
def library() -> Any:
    """llama.cpp's library, with the signatures that are used here.

    Everything is looked up through libllama: the packages of ggml lie beside it under several names, and loading one by
    another name than libllama did would give a second copy, with another log and other tables.
    """
    from llama_cpp import llama_cpp

    lib = ctypes.CDLL(llama_cpp._lib._name)
    c, i32, i64, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_type_name": (ctypes.c_char_p, [i32]),
        "ggml_row_size": (size, [i32, i64]),
        "ggml_quantize_chunk": (size, [i32, c, c, i64, i64, i64, c]),
        "ggml_validate_row_data": (ctypes.c_bool, [i32, c, size]),
        "ggml_cpu_fp32_to_fp16": (None, [c, c, i64]),
        "ggml_cpu_fp16_to_fp32": (None, [c, c, i64]),
        "gguf_init_from_file": (c, [ctypes.c_char_p, InitParams]),
        "gguf_free": (None, [c]),
        "gguf_get_n_tensors": (i64, [c]),
        "gguf_get_tensor_name": (ctypes.c_char_p, [c, i64]),
        "gguf_get_tensor_type": (i32, [c, i64]),
        "gguf_get_tensor_offset": (size, [c, i64]),
        "gguf_get_tensor_size": (size, [c, i64]),
        "gguf_get_data_offset": (size, [c]),
        "gguf_find_key": (i64, [c, ctypes.c_char_p]),
        "gguf_get_kv_type": (i32, [c, i64]),
        "gguf_get_val_str": (ctypes.c_char_p, [c, i64]),
        "gguf_get_n_kv": (i64, [c]),
        "gguf_get_key": (ctypes.c_char_p, [c, i64]),
        "gguf_get_val_data": (c, [c, i64]),
        "gguf_get_val_u32": (ctypes.c_uint32, [c, i64]),
        "gguf_get_arr_type": (i32, [c, i64]),
        "gguf_get_arr_n": (size, [c, i64]),
        "gguf_get_arr_str": (ctypes.c_char_p, [c, i64, size]),
        "llama_set_abort_callback": (None, [c, c, c]),
        "ggml_quantize_requires_imatrix": (ctypes.c_bool, [i32]),
        "ggml_get_type_traits": (ctypes.POINTER(_TypeTraits), [i32]),
        "ggml_get_tensor": (c, [c, ctypes.c_char_p]),
        "ggml_free": (None, [c]),
        "ggml_op_name": (ctypes.c_char_p, [i32]),
        "ggml_backend_buffer_is_host": (ctypes.c_bool, [c]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    # Fills the table by which the last one to three numbers of an odd count come from float16; they would be zeros.
    lib.ggml_cpu_init()
    return lib


class InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


@functools.cache
def ftypes() -> dict[str, int]:
    """The file types llama.cpp names, in its order: {"f32": 0, "f16": 1, "q4_0": 2, ..., "q4_k_m": 15, ...}."""
    import llama_cpp

    prefixes = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
    found = {
        name.removeprefix(prefix).lower(): int(getattr(llama_cpp, name))
        for name in dir(llama_cpp)
        for prefix in prefixes
        if name.startswith(prefix)
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def type_name(number: int) -> str:
    return str(library().ggml_type_name(number).decode()).lower()


@functools.cache
def speed(number: int) -> float:
    """Weights a second that this type's kernel takes on one core here, from a short run."""
    import numpy as np

    rows = np.random.default_rng(0).standard_normal((64, 2048), dtype=np.float32)
    out = np.empty(64 * row_size(number, 2048), np.uint8)
    # Without one, llama.cpp ends the process for the types that need it.
    importance = np.ones(2048, np.float32) if library().ggml_quantize_requires_imatrix(number) else None
    quantize(number, rows, out, importance)
    begun = time.perf_counter()
    quantize(number, rows, out, importance)
    return float(rows.size / max(time.perf_counter() - begun, 1e-9))


def row_size(number: int, columns: int) -> int:
    """Bytes of one row of that many columns in a type."""
    return int(library().ggml_row_size(number, columns))


def quantize(number: int, rows: Any, out: Any, importance: Any = None) -> None:
    """Quantize float32 rows (n, columns) into `out` (uint8, n * row_size). Releases the GIL.

    `importance` weighs the columns: float32 (columns,).
    """
    n, columns = rows.shape
    weights = None if importance is None else importance.ctypes.data
    library().ggml_quantize_chunk(number, rows.ctypes.data, out.ctypes.data, 0, n, columns, weights)


def dequantize(number: int, data: bytes, count: int) -> Any:
    """The numbers that `count` weights of a type stand for, float32, as llama.cpp reads them."""
    import numpy as np

    if number == F32:
        return np.frombuffer(data, np.float32, count)
    out = np.empty(count, np.float32)
    library().ggml_get_type_traits(number).contents.to_float(data, out.ctypes.data, count)
    return out


def valid_rows(number: int, address: int, size: int) -> bool:
    """llama.cpp's check of a tensor's data: no block has a scale that is not a number. Releases the GIL."""
    with _unheard():
        return bool(library().ggml_validate_row_data(number, address, size))


_silent = threading.Lock()
_calls: list[Any] = []


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep from the terminal what C code prints to its `stderr`, past llama.cpp's log; Python has its own.

    Several threads may be in here at once. Only with glibc, whose `stderr` is a variable that may be set.
    """
    stream = _stderr()
    if stream is None:
        yield
        return
    with _silent:
        if not _calls:
            before, stream.value = stream.value, _nowhere()
            _calls.append(before)
        _calls.append(None)
    try:
        yield
    finally:
        with _silent:
            _calls.pop()
            if len(_calls) == 1:
                stream.value = _calls.pop()


@functools.cache
def _stderr() -> Any:
    return ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr") if platform.libc_ver()[0] == "glibc" else None


@functools.cache
def _nowhere() -> int:
    """A C stream to the null device."""
    opened = ctypes.CDLL(None).fopen
    opened.restype, opened.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]
    return int(opened(os.devnull.encode(), b"w"))


def to_f16(values: Any, out: Any) -> None:
    """Round float32 to float16, nearest even, as llama.cpp does. Releases the GIL."""
    library().ggml_cpu_fp32_to_fp16(values.ctypes.data, out.ctypes.data, values.size)


def from_f16(values: Any, out: Any) -> None:
    """float16 to float32, exact. Releases the GIL."""
    library().ggml_cpu_fp16_to_fp32(values.ctypes.data, out.ctypes.data, values.size)


def piece(vocab: Any, token: int, *, special: bool = False) -> bytes:
    """What a token stands for; nothing for a control token, unless with `special`.

    llama-cpp-python's own function gives nothing for a token of more than 32 bytes, such as a deep indentation.
    """
    import llama_cpp

    room = 32
    while True:
        text = ctypes.create_string_buffer(room)
        count = llama_cpp.llama_token_to_piece(vocab, token, text, room, 0, special)
        if count >= 0:
            return text.raw[:count]
        room = -count


@contextmanager
def quiet() -> Any:
    """Collect what llama.cpp logs, as a list of lines, instead of letting it reach the terminal.

    Where the main thread is in llama.cpp meanwhile, Ctrl-C has to be held: it would be lost in the function here.
    """
    import llama_cpp
    from llama_cpp import _logger

    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(level: int, text: bytes, data: Any) -> None:
        del data
        if level >= 3 and text.strip():  # warnings and errors
            lines.append(text.decode("utf-8", "replace").strip())

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))


def quantize_file(
    source: Path,
    target: Path,
    ftype: int,
    *,
    threads: int = 1,
    overrides: Mapping[str, str | int] = {},
    imatrix: Any = None,
    copy: bool = False,
    mixture: Mixture = Mixture(),  # noqa: B008
) -> Counter[tuple[str, str]]:
    """llama.cpp's own quantization of a whole file. Returns where it fell back: from which type to which, how often.

    `overrides` are values by their full keys, texts of at most 127 bytes. `imatrix` is an array of
    llama_model_imatrix_data that ends with an empty one. With `copy` the tensors stay as they are. `mixture` says more
    about the types. Raises ExportError.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.only_copy = ftype, threads, copy
    # By slabs of rows: the default keeps up to 8 GB of a tensor in memory.
    params.max_buf_size = 1 << 28
    # llama.cpp takes the array's end from an empty key.
    places = (llama_cpp.llama_model_kv_override * (len(overrides) + 1))()
    for place, (key, value) in zip(places, overrides.items(), strict=False):
        place.key = key.encode()
        if isinstance(value, int):
            place.tag, place.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
            continue
        if len(value.encode()) > 127:
            raise ExportError(f"{key} is longer than llama.cpp's 127 bytes: {value}", "give a shorter name")
        place.tag, place.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    if overrides:
        params.kv_overrides = places
    if imatrix is not None:
        params.imatrix = imatrix
    mixture.set(params)
    with interrupts.held(), quiet() as said:
        failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if failed:
        reasons = [line for line in said if "ERROR" in line or "failed" in line] or said or ["no reason given"]
        raise ExportError(f"llama.cpp cannot quantize this: {reasons[-1].rpartition('quantize: ')[2]}")
    return fallbacks(said)
