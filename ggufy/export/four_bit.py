"""Decode weights in bitsandbytes' 4 bits, NF4 or FP4, to the numbers that bitsandbytes computes with.

A weight is `quant_map[code] * absmax` of its block, in float32, then rounded to the dtype that was quantized. Codes go
two a byte, the first in the high half; blocks run through the whole tensor, across rows. With double quantization
absmax is itself in 8 bits, in blocks of its own, with an offset. As in bitsandbytes 0.50, `functional.py` and
`backends/default/ops.py`.
"""

from __future__ import annotations

import math
from typing import Any

from ggufy.llamacpp import library
from ggufy.model.safetensors import Checkpoint, Tensor


def decode(weights: Checkpoint, tensor: Tensor, start: int, stop: int, out: Any) -> None:
    """Rows [start, stop) of a tensor of dtype BNB4 into the float32 array `out`, which holds as many. Exact."""
    import numpy as np

    block, columns = int(tensor.settings["blocksize"]), math.prod(tensor.shape[1:])
    begin, end = start * columns, stop * columns
    first, last = begin // block, -(-end // block)
    packed = np.frombuffer(weights.bytes_of(tensor), np.uint8)[first * block // 2 : last * block // 2]
    flat = out.reshape(-1)
    # Rows that begin or end within a block need the whole block.
    values = flat if (first * block, last * block) == (begin, end) else np.zeros((last - first) * block, np.float32)
    np.take(_pairs(weights, tensor, np), packed, out=values.view(np.uint64)[: packed.size], mode="clip")
    blocks = values.reshape(-1, block)
    blocks *= _absmax(weights, tensor, first, last, np)[:, None]
    _round(values, str(tensor.settings["dtype"]), np)
    if values is not flat:
        flat[:] = values[begin - first * block : end - first * block]


def _pairs(weights: Checkpoint, tensor: Tensor, np: Any) -> Any:
    """For each byte the two numbers it stands for, side by side as one 64-bit value."""
    codes = _part(weights, tensor, "quant_map", "<f4", np)
    both = np.empty((256, 2), np.float32)
    both[:, 0], both[:, 1] = np.repeat(codes, 16), np.tile(codes, 16)
    return both.view(np.uint64).reshape(-1)


def _absmax(weights: Checkpoint, tensor: Tensor, first: int, last: int, np: Any) -> Any:
    """The scales of blocks [first, last)."""
    if "nested_absmax" not in tensor.parts:
        return _part(weights, tensor, "absmax", "<f4", np)[first:last]
    codes = _part(weights, tensor, "absmax", np.uint8, np)[first:last]
    outer = np.arange(first, last) // int(tensor.settings["nested_blocksize"])
    scales = _part(weights, tensor, "nested_quant_map", "<f4", np)[codes]
    scales *= _part(weights, tensor, "nested_absmax", "<f4", np)[outer]
    scales += np.float32(tensor.settings["nested_offset"])
    return scales


def _part(weights: Checkpoint, tensor: Tensor, name: str, dtype: Any, np: Any) -> Any:
    return np.frombuffer(weights.bytes_of(tensor.parts[name]), dtype)


def _round(values: Any, dtype: str, np: Any) -> None:
    """Round float32 to what `dtype` can hold, nearest even, in place."""
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        bits += 0x7FFF + ((bits >> 16) & 1)
        bits &= np.uint32(0xFFFF0000)
    elif dtype == "float16":
        half = np.empty(values.shape, np.float16)
        library.to_f16(values, half)
        library.from_f16(half, values)
