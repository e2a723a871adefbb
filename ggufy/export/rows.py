"""Read rows of a safetensors checkpoint as float32."""

from __future__ import annotations

from typing import Any

from ggufy.errors import ExportError
from ggufy.export import four_bit
from ggufy.llamacpp import library
from ggufy.model.safetensors import FOUR_BIT, SIZES, Checkpoint

READABLE = ("F64", "F32", "F16", "BF16", FOUR_BIT)
"""The dtypes whose numbers can be read."""


def float32(weights: Checkpoint, name: str) -> Any:
    """A whole tensor of a checkpoint as float32."""
    import numpy as np

    check_readable(weights, name)
    tensor = weights[name]
    out = np.empty(tensor.shape, np.float32)
    read_rows(weights, name, 0, tensor.shape[0], out)
    return out


def check_readable(weights: Checkpoint, name: str) -> None:
    tensor = weights[name]
    if tensor.dtype not in READABLE:
        raise ExportError(
            f"{tensor.file.as_posix()}: {name} of the adapter has the type {tensor.dtype}, which cannot be merged",
            "save the adapter in float32, bfloat16 or float16",
        )
    if 0 in tensor.shape or not tensor.shape:
        raise ExportError(
            f"{tensor.file.as_posix()}: {name} has the shape {list(tensor.shape)}, so it holds no matrix",
            "a trainer that shards weights may have saved them in pieces: gather them, then save again",
        )


def read_rows(weights: Checkpoint, name: str, start: int, stop: int, out: Any) -> None:
    """Rows [start, stop) of a tensor into the float32 array `out`, which holds as many numbers."""
    tensor = weights[name]
    if tensor.dtype == FOUR_BIT:
        four_bit.decode(weights, tensor, start, stop, out)
        return
    width = out.size // (stop - start) * SIZES.get(tensor.dtype, 0)
    decode(weights.data(name)[start * width : stop * width], tensor.dtype, out.reshape(-1))


def decode(data: Any, dtype: str, out: Any) -> None:
    """The numbers of a safetensors dtype, as many as the flat float32 array `out` holds. Exact but for those of F64."""
    import numpy as np

    if dtype == "BF16":
        bits = out.view(np.uint32)
        bits[:] = np.frombuffer(data, np.dtype("<u2"), out.size)
        bits <<= 16
    elif dtype == "F16":
        library.from_f16(np.frombuffer(data, np.dtype("<f2"), out.size), out)
    elif dtype in ("F32", "F64"):
        out[:] = np.frombuffer(data, np.dtype("<f4" if dtype == "F32" else "<f8"), out.size)
    else:
        raise ExportError(f"weights of type {dtype} cannot be read", "use a base in bf16, f16 or f32")
