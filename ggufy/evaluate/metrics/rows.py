"""Keep results row by row, so that none is computed twice: JSON lines, each with a key of its inputs.

A line is written as soon as its row is done, so what a kill leaves is whole but for its last line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

KEY = "key"

Row = dict[str, Any]


def read(path: Path) -> dict[str, Row]:
    """The rows of a file by their keys; none where there is no file. What a kill has cut is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get(KEY), str):
            found[row[KEY]] = row
    return found


def distinct(keys: Iterable[str]) -> list[str]:
    """Keys of which none comes twice: the second time a row is there, it is another row."""
    counts: Counter[str] = Counter()
    found = []
    for key in keys:
        counts[key] += 1
        found.append(key if counts[key] == 1 else f"{key}-{counts[key]}")
    return found


def write(
    place: Path,
    keys: Sequence[str],
    do: Callable[[int], Mapping[str, Any]],
    known: Iterable[Mapping[str, Row]] = (),
    done: Callable[[int], object] = bool,
) -> list[Row]:
    """Write the rows of these keys to `place`, in order, doing those that are neither there nor in `known`.

    What else is there or known stays, after them. `do` gets the index of a row and gives its values; `done` hears how
    many rows there are already.
    """
    there: dict[str, Row] = {}
    for rest in (*known, read(place)):
        there |= rest
    rows = {key: there[key] for key in keys if key in there}
    done(len(rows))
    with place.open("ab") as file:
        # A cut line is ended, so that the next is not lost with it.
        file.write(b"\n")
        for index, key in enumerate(keys):
            if key not in rows:
                rows[key] = {KEY: key, **do(index)}
                file.write(_line(rows[key]))
                file.flush()
                done(len(rows))
    beside = place.with_name(f"{place.name}.whole")
    ordered = {key: rows[key] for key in keys} | {key: row for key, row in there.items() if key not in rows}
    beside.write_bytes(b"".join(map(_line, ordered.values())))
    beside.replace(place)
    return [rows[key] for key in keys]


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
