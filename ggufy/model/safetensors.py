"""safetensors files, read lazily by memory map and written by plan.

The format: 8 bytes with the header's length, a JSON header, then the tensors' bytes
(https://github.com/huggingface/safetensors#format). A tensor that bitsandbytes packed into 4 bits is several of these,
NAME, NAME.absmax, NAME.quant_map and so on; here it is one, under its own name and of its real shape.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ggufy.errors import ModelError
from ggufy.model import weight_names

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER = 100_000_000
FOUR_BIT = "BNB4"
"""The dtype of a tensor in bitsandbytes' 4 bits; `export/four_bit.py` reads its numbers."""
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_AGAIN = "copy the model folder again"
_INDEX_AGAIN = f"{_AGAIN}; or correct weight_map in {_INDEX}, if the weights are right"
_STATE = ".quant_state.bitsandbytes__"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `shape` as in PyTorch, bytes [start, end) of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Of a 4-bit tensor: bitsandbytes' quant_type, blocksize, dtype and so on."""
    parts: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    """Of a 4-bit tensor: its absmax, quant_map and so on."""


class Checkpoint:
    """The tensors of a model folder or of one file, by name. Nothing is read but headers until `data` is asked.

    They are in llama.cpp's converter's order: file by file, and by name in each. Where a trainer wrapped their names,
    these are the names without that, and `wrapped` says so: transformers and peft would not know them.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str, *, wrapped: bool = False) -> None:
        self.tensors, self.where, self.wrapped = dict(tensors), where, wrapped
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, place: Path) -> Checkpoint:
        """A model folder (sharded or not) or one .safetensors file. Raises ModelError where something is missing."""
        if place.is_file():
            return _named(read_header(place), place, model=False)
        # As transformers: one whole file comes before shards, and an index beside it is not looked at.
        names = {} if (place / _WHOLE).is_file() else _by_index(place)
        tensors: dict[str, Tensor] = {}
        for file in sorted(set(names.values())) if names else _without_index(place):
            if not (place / file).is_file():
                raise ModelError(f"{(place / file).as_posix()} is missing, but {_INDEX} names it", _AGAIN)
            for name, tensor in read_header(place / file).items():
                if names and names.get(name) != file:
                    said = f"says that {names[name]} does" if name in names else "does not name it"
                    raise ModelError(f"{(place / file).as_posix()}: holds {name}, but {_INDEX} {said}", _INDEX_AGAIN)
                tensors[name] = tensor
        if lost := sorted(names.keys() - tensors.keys()):
            raise ModelError(f"{place.as_posix()}: {_INDEX} says that {names[lost[0]]} holds {lost[0]}", _INDEX_AGAIN)
        return _named(tensors, place, model=True)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise ModelError(f"{self.where}: the tensor {name} is missing", self._again) from None

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same tensors, those in `names` under other names."""
        held = _in_order(replace(tensor, name=names.get(name, name)) for name, tensor in self.tensors.items())
        return Checkpoint(held, self.where, wrapped=self.wrapped)

    @property
    def _again(self) -> str:
        folder = Path(self.where)
        if (folder / _WHOLE).is_file() and (folder / _INDEX).is_file():
            return f"{_AGAIN}; or, if the shards beside {_WHOLE} are the model, remove {_WHOLE}: it is read before them"
        return _AGAIN

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor, mapped, not copied."""
        return self.bytes_of(self[name])

    def bytes_of(self, tensor: Tensor) -> memoryview:
        """The same for a tensor that may be a part of another."""
        if tensor.file not in self._maps:
            with tensor.file.open("rb") as file:
                self._maps[tensor.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(self._maps[tensor.file])[tensor.start : tensor.end]


def _named(tensors: Mapping[str, Tensor], place: Path, *, model: bool) -> Checkpoint:
    names = weight_names.unwrap(tensors, place.as_posix(), model=model)
    wrapped = any(name != short for name, short in names.items())
    held = _in_order(replace(tensor, name=names[name]) for name, tensor in tensors.items())
    return Checkpoint(_join_four_bit(held), place.as_posix(), wrapped=wrapped)


def _in_order(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: (tensor.file, tensor.name))}


def _by_index(folder: Path) -> dict[str, str]:
    """The file of each tensor as the index of a sharded model says; empty where there is no index."""
    path = folder / _INDEX
    if not path.is_file():
        return {}
    try:
        names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not names or not all(isinstance(file, str) for file in names.values()):
            raise ValueError("weight_map does not name a file for each tensor")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path.as_posix()} cannot be read: {error}", _AGAIN) from None
    return names


def _without_index(folder: Path) -> list[str]:
    """The one file of a model that is not sharded. Raises ModelError where there is none, or several."""
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    files = [name for name in files if name.startswith("model")] or files
    if not files:
        raise ModelError(f"{folder.as_posix()}: no .safetensors weights there", _AGAIN)
    if _WHOLE in files:
        return [_WHOLE]
    shard = re.search(r"-of-(\d+)\.safetensors$", files[0])
    if len(files) > 1 or (shard and int(shard[1]) > 1):
        raise ModelError(f"{folder.as_posix()}: {files[0]} is a part of a model, but {_INDEX} is missing", _AGAIN)
    return files


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


def _join_four_bit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor that bitsandbytes packed as one, the others as they are. Raises ModelError where one is not whole."""
    states = {name.partition(_STATE)[0]: name for name in tensors if _STATE in name}
    hidden = {*states.values(), *(f"{name}.{part}" for name in states for part in _PARTS)}
    joined = {name: tensor for name, tensor in tensors.items() if name not in hidden}
    for name, state in states.items():
        parts = {short: tensors[f"{name}.{short}"] for short in _PARTS if f"{name}.{short}" in tensors}
        if name not in tensors:
            raise ModelError(f"{tensors[state].file.as_posix()}: {state} is there, but {name} is not", "copy it again")
        joined[name] = _four_bit(tensors[name], tensors[state], parts)
    return joined


def _four_bit(packed: Tensor, state: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """One packed tensor: `QuantState.as_dict` in bitsandbytes/functional.py writes the settings as JSON."""
    with state.file.open("rb") as file:
        file.seek(state.start)
        text = file.read(state.end - state.start)
    try:
        settings = json.loads(text)
        shape, block = tuple(int(n) for n in settings["shape"]), int(settings["blocksize"])
        blocks = -(-math.prod(shape) // block)
        sizes = {"absmax": blocks * SIZES["F32"], "quant_map": 16 * SIZES["F32"]}
        if "nested_absmax" in parts:
            outer = -(-blocks // int(settings["nested_blocksize"]))
            sizes |= {"absmax": blocks, "nested_absmax": outer * SIZES["F32"], "nested_quant_map": 256 * SIZES["F32"]}
            float(settings["nested_offset"])
        known = settings["quant_type"] in ("nf4", "fp4") and settings["dtype"] in ("bfloat16", "float16", "float32")
        found = {name: part.end - part.start for name, part in parts.items()}
        if not known or block % 2 or packed.end - packed.start != -(-math.prod(shape) // 2) or found != sizes:
            raise ValueError("its parts do not match")
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ModelError(
            f"{packed.file.as_posix()}: {packed.name} is in bitsandbytes' 4 bits, but cannot be read: {error}",
            _AGAIN,
        ) from None
    return Tensor(packed.name, FOUR_BIT, shape, packed.file, packed.start, packed.end, settings, parts)


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
