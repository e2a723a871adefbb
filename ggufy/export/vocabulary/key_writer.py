"""A GGUF key writer that adds the long arrays of the vocabulary last: 128,256 tokens and 280,147 merges.

A skeleton needs none of them, and they cost llama.cpp and Python most of a second for each quant. So a mark of a few
bytes stands for each, and the array itself takes its place in the finished header.
"""

from __future__ import annotations

import struct
from typing import Any

import gguf
from gguf import GGUFValueType

from ggufy.export.vocabulary.long_texts import LongTexts

_LONG = 1000
_PACKED = {GGUFValueType.INT32: "<i4", GGUFValueType.UINT32: "<u4", GGUFValueType.FLOAT32: "<f4"}
_MARK = "ggufy puts the whole array %05d"
"""32 bytes: a text, or eight numbers."""


class KeyWriter(gguf.GGUFWriter):
    """Writes what gguf.GGUFWriter writes but for the long arrays; `whole` puts those into the bytes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.arrays: dict[bytes, bytes] = {}
        """What stands in the file -> what belongs there."""

    def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
        if vtype == GGUFValueType.ARRAY and isinstance(val, list) and len(val) >= _LONG:
            if isinstance(val[0], str):
                body = (val if isinstance(val, LongTexts) else LongTexts(val)).packed
                return self._marked(add_vtype, GGUFValueType.STRING, len(val), body)
            kind = sub_type or GGUFValueType.get_type(val[0])
            if kind in _PACKED:
                import numpy as np

                return self._marked(add_vtype, kind, len(val), np.array(val, _PACKED[kind]).tobytes())
        return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))

    def _marked(self, add_vtype: bool, kind: Any, count: int, body: bytes) -> bytes:
        mark = (_MARK % len(self.arrays)).encode()
        if kind == GGUFValueType.STRING:
            short = _head(add_vtype, kind, 1) + struct.pack("<Q", len(mark)) + mark
        else:
            short = _head(add_vtype, kind, len(mark) // 4) + mark
        self.arrays[short] = _head(add_vtype, kind, count) + body
        return short


def whole(head: bytes, arrays: dict[bytes, bytes]) -> bytes:
    """Header bytes with the arrays that belong there. Raises ValueError where a mark is not there exactly once."""
    for short, array in arrays.items():
        before, found, after = head.partition(short)
        if not found or short in after:
            raise ValueError("llama.cpp changed an array of the vocabulary")
        head = before + array + after
    return head


def _head(add_vtype: bool, kind: Any, count: int) -> bytes:
    before = struct.pack("<I", GGUFValueType.ARRAY) if add_vtype else b""
    return before + struct.pack("<IQ", kind, count)
