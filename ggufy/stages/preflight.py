"""Preflight checks of an export, before anything is written: its options, its folder, the disk space."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ggufy.errors import ExportError
from ggufy.export import engine
from ggufy.export.gguf import quant_support
from ggufy.stages.export_options import PLAIN, ExportOptions


def of_matrices(options: ExportOptions, quants: Sequence[str], *, computes: bool, of_run: bool) -> None:
    """Raise ExportError where an importance matrix is needed, or what is said of one would be of no effect.

    `quants` are those that will be made, and with `computes` the matrix is computed.
    """
    needing = (
        [] if computes or options.imatrix_file else [quant for quant in quants if quant_support.needs_imatrix(quant)]
    )
    if needing:
        give = "--imatrix" if of_run else "--imatrix-data or --imatrix-file"
        raise ExportError(f"{needing[0]} needs an importance matrix (imatrix)", f"give {give}, or choose another quant")
    if options.imatrix_file and (options.imatrix or options.imatrix_data):
        raise ExportError("--imatrix-file is a finished matrix, and --imatrix computes one", "give one of the two")
    if options.imatrix_tokens and not computes:
        why = (
            "the matrix of --imatrix-file is finished already"
            if options.imatrix_file
            else "no importance matrix is computed"
        )
        raise ExportError(
            f"--imatrix-tokens has no effect: {why}",
            "leave it out" if options.imatrix_file else "give --imatrix or --imatrix-data with it, or leave it out",
        )
    if (options.imatrix_file or computes) and all(quant in PLAIN for quant in quants):
        made = " and ".join([*quants, *options.extras])
        raise ExportError(
            f"an importance matrix has no effect on {made}", "add a quant such as --quant q4_k_m, or leave it out"
        )


def of_types(options: ExportOptions, quants: Sequence[str]) -> None:
    """Raise ExportError where what is asked about the types of tensors is wrong, or of no effect on these quants."""
    types = options.types
    if types is None:
        return
    given = " and ".join(types.names)
    quantized = [quant for quant in quants if quant not in PLAIN]
    if not quantized:
        made = " and ".join([*quants, *options.extras])
        raise ExportError(
            f"{given} has no effect on {made}, whose types are fixed",
            "add a quant such as --quant q4_k_m, or leave it out",
        )
    if types.published and len(quantized) > 1:
        raise ExportError(
            f"--types-from says the type of every tensor, so {' and '.join(quantized)} would be the same file",
            "give one --quant with it",
        )


def of_place(folder: Path) -> None:
    """Raise OSError where a folder is not there and cannot be made, or cannot be written."""
    there = _nearest(folder)
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), there.as_posix())
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), there.as_posix())


def of_space(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise ExportError where the disk does not hold files of these sizes. What an earlier attempt left gives way."""
    if sizes:
        engine.check_space(_nearest(folder), sizes, engine.blocks(folder / "partial"))


def _nearest(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
