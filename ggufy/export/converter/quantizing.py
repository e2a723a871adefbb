"""From the converter's 16-bit GGUF to each quant, by llama.cpp's quantizer."""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from pathlib import Path

from ggufy.errors import ExportError
from ggufy.export.gguf.tensor_types import TypeOptions
from ggufy.export.gguf.type_checks import Checked, Skeleton
from ggufy.export.imatrix import Imatrix
from ggufy.llamacpp import gguf_reader, library
from ggufy.llamacpp.mixture import Mixture, fallbacks_text

log = logging.getLogger("ggufy")

_ALIGNMENT = 32


def write(
    made: Path,
    outputs: Mapping[str, Path],
    overrides: Mapping[str, str | int],
    threads: int,
    imatrix: Imatrix | None,
    types: TypeOptions | None,
) -> None:
    """Make each output, by the name of its quant, from a 16-bit GGUF; `overrides` are values by their keys.

    Raises ExportError, where possible before the first is written.
    """
    if imatrix:
        tensors = [t for t in gguf_reader.read_gguf(made).tensors if t.name.startswith("blk.")]
        # Of stacked experts there is one row each; llama.cpp checks those counts itself.
        imatrix.check_names({t.name: None for t in tensors if t.type == library.F16}, {t.name for t in tensors})
    checked = _checked(types, made) if types else None
    if checked:
        for quant in outputs:
            checked.check_imatrix(quant, imatrix)
    for quant, path in outputs.items():
        log.info("writing %s", quant)
        try:
            fell_back = library.quantize_file(
                made,
                path,
                library.ftypes()[quant],
                threads=threads,
                overrides={**overrides, **imatrix.notes} if imatrix else overrides,
                imatrix=imatrix.for_llama_cpp() if imatrix else None,
                mixture=types.mixture if types else Mixture(),
            )
        except ExportError as error:
            raise ExportError(f"{quant}: {error.message}", error.hint) from None
        if text := fallbacks_text(fell_back):
            log.info("%s: %s", quant, text)
        if checked:
            checked.check_answer({tensor.name: tensor.type for tensor in gguf_reader.read_gguf(path).tensors})


def copy(made: Path, path: Path, quant: str, overrides: Mapping[str, str | int], threads: int) -> None:
    """The converter's file itself with values by their keys."""
    log.info("writing %s", quant)
    library.quantize_file(made, path, library.ftypes()[quant], threads=threads, overrides=overrides, copy=True)


def _checked(types: TypeOptions, made: Path) -> Checked:
    small = made.with_name("skeleton-converted.gguf")
    try:
        checked = Checked(types, _skeleton(made, small))
    finally:
        small.unlink(missing_ok=True)
    for note in checked.notes:
        log.info("%s", note)
    return checked


def _skeleton(made: Path, small: Path) -> Skeleton:
    """A GGUF with the keys and tensors of another, but two rows of zeros a matrix."""
    header = gguf_reader.read_gguf(made)
    with made.open("rb") as file:
        head = file.read(header.data_offset)
    first = header.tensors[0].name.encode()
    at = start = head.rfind(struct.pack("<Q", len(first)) + first)
    infos, offset, shapes = b"", 0, {}
    for tensor in header.tensors:
        (length,) = struct.unpack_from("<Q", head, at)
        (count,) = struct.unpack_from("<I", head, at + 8 + length)
        sizes = struct.unpack_from(f"<{count}Q", head, at + 12 + length)
        shapes[tensor.name] = tuple(reversed(sizes))
        few = (sizes[0], min(sizes[1], 2), *sizes[2:]) if count > 1 else sizes
        infos += head[at : at + 12 + length] + struct.pack(f"<{count}QIQ", *few, tensor.type, offset)
        rows = 1
        for size in few[1:]:
            rows *= size
        offset += _pad(rows * library.row_size(tensor.type, few[0]))
        at += 12 + length + 8 * count + 12
    whole = head[:start] + infos
    with small.open("wb") as file:
        file.write(whole)
        file.truncate(_pad(len(whole)) + offset)
    return Skeleton(small, shapes, small.parent)


def _pad(size: int) -> int:
    return size + -size % _ALIGNMENT
