"""The header of a GGUF file, read by llama.cpp's own reader."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import ModelError
from ggufy.llamacpp import library
from ggufy.llamacpp.graph import GgmlTensor
from ggufy.system import interrupts


@dataclass(frozen=True)
class GgufTensor:
    name: str
    type: int
    offset: int
    """From the start of the file."""
    size: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file: tensors in file order, and the text values that were asked for."""

    path: Path
    data_offset: int
    tensors: tuple[GgufTensor, ...]
    texts: Mapping[str, str]
    lists: Mapping[str, list[str]]
    numbers: Mapping[str, int]
    scalars: Mapping[str, tuple[int, bytes]]
    """Every value that is no list: its type, and its bytes as they are in the file, a text without its length."""


# Of a value by its type; 8 and 9 are texts and lists.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9


def read_gguf(
    path: Path, texts: tuple[str, ...] = (), lists: tuple[str, ...] = (), numbers: tuple[str, ...] = ()
) -> GgufFile:
    """Read and check a GGUF's header with llama.cpp's reader: its tensors, and the values of these keys that it has.

    `lists` are of texts, `numbers` 32-bit. Raises ModelError where it is none, or is truncated.
    """
    where, hint = path.as_posix(), "download or export it again"
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{where} is not a GGUF file (it starts with {magic!r})", "name a .gguf file or a run")
    lib = library.library()
    with interrupts.held(), library.quiet() as said:
        context = lib.gguf_init_from_file(str(path).encode(), library.InitParams(True, None))
    if not context:
        reason = said[-1].partition(": ")[2] if said else "the header cannot be read"
        raise ModelError(f"{where} is truncated or damaged: {reason}", hint)
    try:
        start = int(lib.gguf_get_data_offset(context))
        tensors = tuple(
            GgufTensor(
                lib.gguf_get_tensor_name(context, i).decode(),
                lib.gguf_get_tensor_type(context, i),
                start + lib.gguf_get_tensor_offset(context, i),
                lib.gguf_get_tensor_size(context, i),
            )
            for i in range(lib.gguf_get_n_tensors(context))
        )
        values = {}
        for key in texts:
            number = lib.gguf_find_key(context, key.encode())
            if number >= 0 and lib.gguf_get_kv_type(context, number) == _STRING:
                values[key] = lib.gguf_get_val_str(context, number).decode("utf-8", "replace")
        arrays = {}
        for key in lists:
            number = lib.gguf_find_key(context, key.encode())
            if (
                number >= 0
                and lib.gguf_get_kv_type(context, number) == _ARRAY
                and lib.gguf_get_arr_type(context, number) == _STRING
            ):
                count = lib.gguf_get_arr_n(context, number)
                arrays[key] = [
                    lib.gguf_get_arr_str(context, number, n).decode("utf-8", "replace") for n in range(count)
                ]
        counts = {}
        for key in numbers:
            number = lib.gguf_find_key(context, key.encode())
            if number >= 0 and lib.gguf_get_kv_type(context, number) == _UINT32:
                counts[key] = int(lib.gguf_get_val_u32(context, number))
        scalars = _scalars(context)
    finally:
        lib.gguf_free(context)
    size = path.stat().st_size
    end = max((tensor.offset + tensor.size for tensor in tensors), default=start)
    if end > size:
        raise ModelError(f"{where} is truncated: {size:,} bytes of {end:,}", hint)
    return GgufFile(path, start, tensors, values, arrays, counts, scalars)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a GGUF that `read_gguf` has checked, as in PyTorch: (rows, columns) of a matrix."""
    lib, tensors = library.library(), ctypes.c_void_p()
    with interrupts.held(), library.quiet():
        context = lib.gguf_init_from_file(str(path).encode(), library.InitParams(True, ctypes.addressof(tensors)))
    try:
        found = {}
        for number in range(lib.gguf_get_n_tensors(context)):
            name = lib.gguf_get_tensor_name(context, number)
            sizes = list(GgmlTensor.from_address(lib.ggml_get_tensor(tensors, name)).ne)
            while len(sizes) > 1 and sizes[-1] == 1:
                sizes.pop()
            found[name.decode()] = tuple(reversed(sizes))
        return found
    finally:
        lib.gguf_free(context)
        lib.ggml_free(tensors)


def _scalars(context: Any) -> dict[str, tuple[int, bytes]]:
    lib, found = library.library(), {}
    for number in range(lib.gguf_get_n_kv(context)):
        kind = lib.gguf_get_kv_type(context, number)
        if kind == _STRING:
            value = lib.gguf_get_val_str(context, number)
        elif kind in _SIZES:
            value = ctypes.string_at(lib.gguf_get_val_data(context, number), _SIZES[kind])
        else:
            continue
        found[lib.gguf_get_key(context, number).decode("utf-8", "replace")] = kind, value
    return found
