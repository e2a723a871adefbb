"""Read nodes of llama.cpp's compute graph, to collect the inputs for an importance matrix."""

from __future__ import annotations

import ctypes
from typing import Any

from ggufy.errors import ModelError
from ggufy.llamacpp.library import F32, library


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, as far as it is read here."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


_FEWEST_ROWS = 16


def is_product(address: int) -> bool:
    """Whether a node of llama.cpp's graph is a product that its imatrix tool counts.

    A matrix of a block (`blk.`) times float32 columns, at least 16 of them. Raises ModelError for a mixture of experts.
    """
    node = GgmlTensor.from_address(address)
    operation = library().ggml_op_name(node.op)
    if operation == b"MUL_MAT_ID":
        raise ModelError(
            "ggufy does not compute the importance matrix of a mixture of experts",
            "compute it with llama-imatrix, and give it with --imatrix-file",
        )
    if operation != b"MUL_MAT":
        return False
    matrix, inputs = GgmlTensor.from_address(node.src[0]), GgmlTensor.from_address(node.src[1])
    counted = inputs.type == F32 and inputs.ne[1] >= _FEWEST_ROWS
    return counted and bytes(matrix.name).startswith(b"blk.")


def product_inputs(address: int) -> tuple[str, Any]:
    """The matrix of a product, and what is multiplied with it: float32 (rows, columns), llama.cpp's own memory."""
    import numpy as np

    node = GgmlTensor.from_address(address)
    matrix, inputs = GgmlTensor.from_address(node.src[0]), GgmlTensor.from_address(node.src[1])
    columns, rows = inputs.ne[0], inputs.ne[1] * inputs.ne[2] * inputs.ne[3]
    if not library().ggml_backend_buffer_is_host(inputs.buffer) or inputs.nb[1] != columns * 4:
        raise ModelError(f"llama.cpp keeps the inputs of {matrix.name.decode()} in a form that ggufy does not read")
    values = (ctypes.c_float * (rows * columns)).from_address(inputs.data)
    return matrix.name.decode(), np.frombuffer(values, np.float32).reshape(rows, columns)
