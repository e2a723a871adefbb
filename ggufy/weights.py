"""safetensors files, read lazily by memory map and written by plan.

The format: 8 bytes with the header's length, a JSON header, then the tensors' bytes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import ModelError

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `shape` as in PyTorch, bytes [start, end) of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


class Checkpoint:
    """The tensors of a model folder or of one file, by name. Nothing is read but headers until `data` is asked."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = dict(tensors), where
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, place: Path) -> Checkpoint:
        """A model folder (sharded or not) or one .safetensors file. Raises ModelError where something is missing."""
        if place.is_file():
            return cls(read_header(place), place.as_posix())
        index = place / "model.safetensors.index.json"
        if index.is_file():
            try:
                names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{index.as_posix()} cannot be read: {error}", "copy the model folder again") from None
            files = [place / file for file in sorted(set(names.values()))]
        else:
            files = sorted(place.glob("model*.safetensors")) or sorted(place.glob("*.safetensors"))
            names = {}
        if not files:
            raise ModelError(f"{place.as_posix()}: no .safetensors weights there", "copy the model folder again")
        tensors: dict[str, Tensor] = {}
        for file in files:
            if not file.is_file():
                raise ModelError(
                    f"{file.as_posix()} is missing, but {index.name} names it", "copy the model folder again"
                )
            tensors |= read_header(file)
        if lost := sorted(names.keys() - tensors.keys()):
            raise ModelError(
                f"{place.as_posix()}: {index.name} names {lost[0]}, but no file holds it", "copy the model folder again"
            )
        return cls(tensors, place.as_posix())

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise ModelError(f"{self.where}: the tensor {name} is missing", "copy the model folder again") from None

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor, mapped, not copied."""
        tensor = self[name]
        if tensor.file not in self._maps:
            with tensor.file.open("rb") as file:
                self._maps[tensor.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(self._maps[tensor.file])[tensor.start : tensor.end]


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises ModelError where it is truncated or no safetensors file."""
    size = path.stat().st_size
    where, hint = path.as_posix(), "download or copy it again"
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ModelError(f"{where} is truncated or not a safetensors file ({size:,} bytes)", hint)
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            entries = [(name, facts) for name, facts in header.items() if name != "__metadata__"]
            tensors = {
                name: Tensor(
                    name, facts["dtype"], tuple(facts["shape"]), path, *(8 + length + o for o in facts["data_offsets"])
                )
                for name, facts in entries
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{where}: the header cannot be read: {error}", hint) from None
    for tensor in tensors.values():
        if tensor.end > size:
            raise ModelError(f"{where} is truncated: {tensor.name} ends at byte {tensor.end:,} of {size:,}", hint)
        if tensor.dtype in SIZES and tensor.end - tensor.start != math.prod(tensor.shape) * SIZES[tensor.dtype]:
            raise ModelError(f"{where}: the size of {tensor.name} does not fit its shape {list(tensor.shape)}", hint)
    return tensors


def header(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, int]]:
    """The header of a file with these tensors (name -> dtype, shape) in this order, and each one's offset."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, offsets = 0, {}
    for name, (dtype, shape) in shapes.items():
        size = math.prod(shape) * SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offsets[name] = offset
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: start + offset for name, offset in offsets.items()}


def to_bf16(values: Any) -> Any:
    """float32 to bfloat16, nearest even, as an array of 16-bit patterns."""
    import numpy as np

    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
