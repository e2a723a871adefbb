"""Which ids prepared rows hold, and as what: read in pieces, so that neither time nor memory is felt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import MissingExtra


@dataclass(frozen=True)
class Used:
    """The ids of all rows."""

    read: frozenset[int]
    """Those of all input_ids."""
    inside: frozenset[int]
    """Those that also stand elsewhere than at the beginning of a row."""
    learnt: frozenset[int]
    """Those of all labels."""
    ends: frozenset[int]
    """Those of the labels that are the last of a stretch which is trained on."""


def of(files: Iterable[Path], size: int) -> Used:
    """The ids in Arrow files as `prepare` writes them; all ids are below `size`."""
    try:
        import numpy as np
        import pyarrow as pa
    except ModuleNotFoundError:
        raise MissingExtra("reading the training data", "train", "pyarrow") from None
    # Marks, and not sets: of 100,000 conversations there are 100 million ids.
    read, inside, learnt, ends = marks = np.zeros((4, size), np.bool_)
    for path in files:
        # Read, not mapped: what is mapped and read counts as memory of this process.
        with pa.OSFile(path.as_posix(), "rb") as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                ids, offsets = _flat(batch.column("input_ids"))
                read[ids] = True
                later = np.ones(len(ids), np.bool_)
                later[offsets[:-1][offsets[:-1] < offsets[1:]]] = False
                inside[ids[later]] = True
                labels, offsets = _flat(batch.column("labels"))
                on = labels >= 0
                learnt[labels[on]] = True
                last = on.copy()
                last[:-1] &= ~on[1:]
                stops = offsets[1:][offsets[:-1] < offsets[1:]] - 1
                last[stops] = on[stops]
                ends[labels[last]] = True
    return Used(*(frozenset(np.flatnonzero(mark).tolist()) for mark in marks))


def _flat(column: Any) -> tuple[Any, Any]:
    """The numbers of a column of lists, and where in them each list begins and ends."""
    offsets = column.offsets.to_numpy()
    return column.flatten().to_numpy(), offsets - offsets[0]
