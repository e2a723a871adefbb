"""Read the pieces of a SentencePiece model, `tokenizer.model`, without the sentencepiece package.

The file is a protocol buffer; of `sentencepiece_model.proto` only `ModelProto.pieces` is wanted: field 1, repeated,
each with its text (1), score (2, float32) and type (3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class Piece(NamedTuple):
    text: str
    score: float
    type: int


def read(path: Path) -> list[Piece] | None:
    """The pieces of a model in the order of their numbers; None where the file is of another kind.

    Some folders have a file of this name that lists base64 and ranks, as tiktoken reads it.
    """
    try:
        found = [_piece(body) for number, body in _fields(path.read_bytes()) if number == 1 and isinstance(body, bytes)]
    except (ValueError, IndexError, struct.error):
        return None
    return found or None


def _piece(body: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(body):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Every field of a message: its number, and its bytes or its number's value. Raises ValueError or IndexError."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
