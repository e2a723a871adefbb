"""Where every byte of a GGUF goes, asked of llama.cpp before any weight is read.

llama.cpp decides the type of each tensor, the order of tensors and the order of keys. So it is given a skeleton: a GGUF
with the model's real keys, tensor names and column counts, but two rows a matrix. It quantizes that in milliseconds;
the answer is read back and stretched to the real row counts. A new quantization of llama.cpp needs no line here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy import ggml
from ggufy.errors import ExportError
from ggufy.export import llama
from ggufy.export.llama import Planned

_ALIGNMENT = 32
_DIRECT = {"f32": ggml.F32, "f16": ggml.F16, "bf16": ggml.BF16}


@dataclass(frozen=True)
class Slot:
    """A tensor's place in one file."""

    tensor: Planned
    type: int
    offset: int
    row_bytes: int

    @property
    def size(self) -> int:
        return self.row_bytes * (self.tensor.shape[0] if len(self.tensor.shape) == 2 else 1)


@dataclass(frozen=True)
class Layout:
    """One GGUF file before its weights: the header, the slots, the size."""

    quant: str
    head: bytes
    slots: tuple[Slot, ...]
    size: int


def check_quants(quants: Sequence[str]) -> list[str]:
    """The quants in lower case, each once. Raises ExportError for a name llama.cpp does not know."""
    wanted = list(dict.fromkeys(quant.lower() for quant in quants))
    if not wanted:
        raise ExportError("no quant to export", "for example --quant q4_k_m")
    known = ggml.ftypes()
    for quant in wanted:
        if quant not in known:
            raise ExportError(
                f"unknown quant {quant!r}; llama.cpp knows {', '.join(known)}", "for example --quant q4_k_m"
            )
    return wanted


def make(
    quants: Sequence[str],
    config: dict[str, Any],
    base: Path,
    planned: list[Planned],
    general: dict[str, str],
    scratch: Path,
) -> dict[str, Layout]:
    """The layout of each quant. `scratch` is a folder for skeletons, which are removed."""
    ftypes = ggml.ftypes()
    f16 = _skeleton(scratch, "f16", config, base, planned, general)
    layouts = {}
    for quant in quants:
        if quant in _DIRECT:
            path = f16 if quant == "f16" else _skeleton(scratch, quant, config, base, planned, general)
        else:
            path = scratch / f"skeleton-{quant}.gguf"
            try:
                ggml.quantize_file(f16, path, ftypes[quant])
            except ExportError as error:
                path.unlink(missing_ok=True)
                f16.unlink(missing_ok=True)
                raise ExportError(f"{quant}: {error.message}", "choose a quant that fits, such as q4_k_m") from None
        layouts[quant] = _stretch(quant, path, {tensor.name: tensor for tensor in planned})
        if path != f16:
            path.unlink()
    f16.unlink()
    return layouts


def _skeleton(
    scratch: Path, quant: str, config: dict[str, Any], base: Path, planned: list[Planned], general: dict[str, str]
) -> Path:
    import gguf
    import numpy as np

    from ggufy.export.keys import KeyWriter

    path = scratch / f"skeleton-{quant}.gguf"
    writer = KeyWriter(path=None, arch="llama")
    llama.add_keys(writer, config, base, ggml.ftypes()[quant], general)
    for tensor in planned:
        kind = ggml.F32 if tensor.full_precision else _DIRECT[quant]
        if len(tensor.shape) == 1:
            values = np.zeros(tensor.shape, np.float32)
        else:
            # Two rows: with one, llama.cpp takes a matrix for a vector and leaves it alone.
            values = np.zeros((2, tensor.shape[1]), np.float32 if kind == ggml.F32 else np.float16)
        writer.add_tensor(tensor.name, values, raw_shape=values.shape, raw_dtype=gguf.GGMLQuantizationType(kind))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stretch(quant: str, path: Path, planned: dict[str, Planned]) -> Layout:
    answer = ggml.read_gguf(path)
    with path.open("rb") as file:
        head = file.read(answer.data_offset)
    old = b"".join(
        _info(t.name, _small(planned[t.name].shape), t.type, t.offset - answer.data_offset) for t in answer.tensors
    )
    start = head.rfind(old)
    if start < 0 or {tensor.name for tensor in answer.tensors} != planned.keys():
        raise ExportError(f"{quant}: llama.cpp returned other tensors than it was given", "this is a bug in ggufy")
    infos, slots, offset = [], [], 0
    for found in answer.tensors:
        tensor = planned[found.name]
        slots.append((tensor, found.type, offset, ggml.row_size(found.type, tensor.shape[-1])))
        infos.append(_info(found.name, tensor.shape, found.type, offset))
        rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
        offset += _pad(slots[-1][3] * rows)
    head = head[:start] + b"".join(infos)
    head += bytes(_pad(len(head)) - len(head))
    placed = tuple(Slot(tensor, kind, len(head) + at, row) for tensor, kind, at, row in slots)
    return Layout(quant, head, placed, len(head) + offset)


def _info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    text = name.encode()
    dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return struct.pack("<Q", len(text)) + text + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


def _small(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == 1 else (2, shape[1])


def _pad(size: int) -> int:
    return size + -size % _ALIGNMENT
