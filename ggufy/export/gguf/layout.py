"""Plan where every byte of a GGUF goes, by asking llama.cpp before any weight is read.

llama.cpp decides the type of each tensor, the order of tensors and the order of keys. So it is given a skeleton: a GGUF
with the model's real keys, tensor names and column counts, but two rows a matrix. It quantizes that in milliseconds;
the answer is read back and stretched to the real row counts. A new quantization of llama.cpp needs no line here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufy.errors import ExportError
from ggufy.export.families.family import Family, Planned
from ggufy.export.gguf import quant_support
from ggufy.export.imatrix import Imatrix
from ggufy.llamacpp import gguf_reader, library

_ALIGNMENT = 32
_DIRECT = {"f32": library.F32, "f16": library.F16, "bf16": library.BF16}


@dataclass(frozen=True)
class Slot:
    """A tensor's place in one file, the `part`th."""

    tensor: Planned
    type: int
    part: int
    offset: int
    row_bytes: int


@dataclass(frozen=True)
class Part:
    """One file: its header and its size."""

    head: bytes
    size: int


@dataclass(frozen=True)
class Layout:
    """One GGUF before its weights: its file, or files where it is split, and the slots in them."""

    quant: str
    parts: tuple[Part, ...]
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Wanted:
    """What a layout is made for, beside the quant."""

    family: Family
    planned: list[Planned]
    general: dict[str, str]
    imatrix: Imatrix | None = None
    split: int | None = None
    """The most bytes of a file; a GGUF is one file if not given."""


def check_quants(quants: Sequence[str]) -> list[str]:
    """The quants in lower case, each once. Raises ExportError for a name llama.cpp does not know."""
    wanted = list(dict.fromkeys(quant.lower() for quant in quants))
    if not wanted:
        raise ExportError("no quant to export", "for example --quant q4_k_m")
    for quant in wanted:
        if not quant_support.takes(quant):
            raise ExportError(
                f"unknown quant {quant!r}; llama.cpp knows {', '.join(quant_support.known())}",
                "for example --quant q4_k_m",
            )
    return wanted


def make(quants: Sequence[str], wanted: Wanted, scratch: Path) -> dict[str, Layout]:
    """The layout of each quant. `scratch` is a folder for skeletons, which are removed."""
    skeletons = _Skeletons(wanted, scratch)
    try:
        return {quant: _stretch(quant, *skeletons.ask(quant), wanted) for quant in quants}
    finally:
        for quant in (*quants, "f16"):
            (scratch / f"skeleton-{quant}.gguf").unlink(missing_ok=True)


class _Skeletons:
    """llama.cpp's answers: a skeleton file for each quant, and the arrays that are left out of it."""

    def __init__(self, wanted: Wanted, scratch: Path) -> None:
        self.wanted, self.scratch = wanted, scratch
        self.written: dict[str, tuple[Path, dict[bytes, bytes]]] = {}

    def ask(self, quant: str) -> tuple[Path, dict[bytes, bytes]]:
        if quant in _DIRECT:
            return self._write(quant)
        source, arrays = self._write("f16")
        path, matrix = self.scratch / f"skeleton-{quant}.gguf", self.wanted.imatrix
        try:
            library.quantize_file(
                source,
                path,
                library.ftypes()[quant],
                overrides=matrix.notes if matrix else {},
                imatrix=matrix.for_llama_cpp() if matrix else None,
            )
        except ExportError as error:
            hint = "give --imatrix-data or --imatrix-file, or " if "imatrix" in error.message and not matrix else ""
            raise ExportError(f"{quant}: {error.message}", f"{hint}choose a quant that fits, such as q4_k_m") from None
        return path, arrays

    def _write(self, quant: str) -> tuple[Path, dict[bytes, bytes]]:
        """A skeleton in one of the types that nothing is quantized for."""
        import gguf
        import numpy as np

        from ggufy.export.gguf.key_writer import KeyWriter

        if quant in self.written:
            return self.written[quant]
        path, wanted = self.scratch / f"skeleton-{quant}.gguf", self.wanted
        writer = KeyWriter(path=None, arch=wanted.family.arch)
        wanted.family.add_keys(writer, library.ftypes()[quant], wanted.general)
        for tensor in wanted.planned:
            kind = library.F32 if tensor.full_precision else _DIRECT[quant]
            if len(tensor.shape) == 1:
                values = np.zeros(tensor.shape, np.float32)
            else:
                # Two rows: with one, llama.cpp takes a matrix for a vector and leaves it alone.
                values = np.zeros((2, tensor.shape[1]), np.float32 if kind == library.F32 else np.float16)
            writer.add_tensor(tensor.name, values, raw_shape=values.shape, raw_dtype=gguf.GGMLQuantizationType(kind))
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        self.written[quant] = path, writer.arrays
        return self.written[quant]


def _stretch(quant: str, path: Path, arrays: dict[bytes, bytes], wanted: Wanted) -> Layout:
    """llama.cpp's answer, with the real row counts and the whole vocabulary."""
    from ggufy.export.gguf import key_writer

    planned = {tensor.name: tensor for tensor in wanted.planned}
    answer = gguf_reader.read_gguf(path)
    with path.open("rb") as file:
        head = file.read(answer.data_offset)
    old = b"".join(
        _info(t.name, _small(planned[t.name].shape), t.type, t.offset - answer.data_offset) for t in answer.tensors
    )
    start = head.rfind(old)
    if start < 0 or {tensor.name for tensor in answer.tensors} != planned.keys():
        raise ExportError(f"{quant}: llama.cpp returned different tensors than it was given", "this is a bug in ggufy")
    placed = [(planned[found.name], found.type) for found in answer.tensors]
    before = key_writer.whole(head[:start], arrays)
    groups = _groups(placed, len(before) + len(head) - start, wanted.split)
    parts, slots = [], []
    for number, group in enumerate(groups):
        infos, offset, inside = [], 0, []
        for tensor, kind in group:
            infos.append(_info(tensor.name, tensor.shape, kind, offset))
            inside.append((tensor, kind, offset))
            offset += _pad(_size(tensor, kind))
        full = _head(before, number, len(groups), len(group), len(placed), split=wanted.split is not None)
        full += b"".join(infos)
        full += bytes(_pad(len(full)) - len(full))
        parts.append(Part(full, len(full) + offset))
        slots += [
            Slot(tensor, kind, number, len(full) + at, library.row_size(kind, tensor.shape[-1]))
            for tensor, kind, at in inside
        ]
    return Layout(quant, tuple(parts), tuple(slots))


def _groups(placed: list[tuple[Planned, int]], head: int, split: int | None) -> list[list[tuple[Planned, int]]]:
    """The tensors of each file, in order, as many as the limit holds with the file's header."""
    groups: list[list[tuple[Planned, int]]] = [[]]
    # All keys are in the first file. The header is counted as it is for all tensors, which is no less than it will be.
    filled = head + _SPLIT_KEYS
    for tensor, kind in placed:
        size = _pad(_size(tensor, kind))
        if split and groups[-1] and filled + size > split:
            groups.append([])
            filled = _SPLIT_KEYS
        filled += size + _INFO
        if split and filled > split:
            raise ExportError(
                f"--split-max-size {split:,} bytes is too small: a file with {tensor.name} has {filled:,}",
                "give a larger size, such as 2G",
            )
        groups[-1].append((tensor, kind))
    return groups


_INFO = 256
"""More than the bytes of a tensor's entry in a header, its name being at most 64."""
_SPLIT_KEYS = 256


def _head(head: bytes, number: int, count: int, here: int, tensors: int, *, split: bool) -> bytes:
    """The part of a header before its tensors. Of several files the first has all keys; as llama.cpp's gguf-split."""
    if not split:
        return head
    magic, version, _, key_count = struct.unpack_from("<4sIQQ", head)
    own = [("split.no", "<IH", 2, number), ("split.tensors.count", "<Ii", 5, tensors), ("split.count", "<IH", 2, count)]
    body = b"".join(
        struct.pack("<Q", len(name)) + name.encode() + struct.pack(form, kind, value) for name, form, kind, value in own
    )
    first = number == 0
    start = struct.pack("<4sIQQ", magic, version, here, (key_count if first else 0) + len(own))
    return start + (head[24:] if first else b"") + body


def _size(tensor: Planned, kind: int) -> int:
    return library.row_size(kind, tensor.shape[-1]) * (tensor.shape[0] if len(tensor.shape) == 2 else 1)


def _info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    text = name.encode()
    dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return struct.pack("<Q", len(text)) + text + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


def _small(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == 1 else (2, shape[1])


def _pad(size: int) -> int:
    return size + -size % _ALIGNMENT
