"""gguf-py's writer, with a fast way for the long arrays of a vocabulary: 128,256 tokens and 280,147 merges."""

from __future__ import annotations

import struct
from typing import Any

import gguf
from gguf import GGUFValueType

_LONG = 1000
_PACKED = {GGUFValueType.INT32: "<i4", GGUFValueType.UINT32: "<u4", GGUFValueType.FLOAT32: "<f4"}


class KeyWriter(gguf.GGUFWriter):
    """Writes what gguf.GGUFWriter writes, byte for byte; packing it value by value takes seconds."""

    def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
        if vtype == GGUFValueType.ARRAY and isinstance(val, list) and len(val) >= _LONG:
            if isinstance(val[0], str):
                encoded = [text.encode() for text in val]
                body = b"".join(struct.pack("<Q", len(text)) + text for text in encoded)
                return self._head(add_vtype, GGUFValueType.STRING, len(val)) + body
            kind = sub_type or GGUFValueType.get_type(val[0])
            if kind in _PACKED:
                import numpy as np

                return self._head(add_vtype, kind, len(val)) + np.array(val, _PACKED[kind]).tobytes()
        return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))

    @staticmethod
    def _head(add_vtype: bool, kind: Any, count: int) -> bytes:
        before = struct.pack("<I", GGUFValueType.ARRAY) if add_vtype else b""
        return before + struct.pack("<IQ", kind, count)
