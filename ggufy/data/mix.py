"""Mix several sources into one sequence of rows, by weight or one after the other, shuffled if asked.

A row is (source, number, item). Nothing here depends on how many rows there are but the shuffle's spool, which is on
the disk, and its 16 bytes a row.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ggufy.data.source import Source
from ggufy.recipe.schema import Data

log = logging.getLogger("ggufy")

Row = tuple[int, int, Any]


def rows(sources: Sequence[Source], data: Data, scratch: Path) -> Iterator[Row]:
    """The rows of a recipe's sources, in the order in which train_size and eval_size count them off.

    With weights the mix ends with the first source that runs out, so that the shares hold to its end.
    """
    opened = [partial(_of, index, source) for index, source in enumerate(sources)]
    seed = data.shuffle_seed
    weights = [part.weight for part in (data, *data.more)]
    if len(sources) == 1 or not any(weights):
        in_turn: Callable[[], Iterator[Row]] = lambda: chain.from_iterable(one() for one in opened)  # noqa: E731
        return in_turn() if seed is None else _shuffled(in_turn(), seed, scratch)
    streams = [one() if seed is None else _shuffled(one(), seed + index, scratch) for index, one in enumerate(opened)]
    return _by_weight(streams, [weight or 1.0 for weight in weights], [source.name for source in sources])


def count(sources: Sequence[Source], data: Data) -> int:
    """How many rows `rows` has."""
    there = [source.count() for source in sources]
    weights = [part.weight for part in (data, *data.more)]
    if len(sources) == 1 or not any(weights):
        return sum(there)
    total = 0
    for index in _turns([weight or 1.0 for weight in weights]):
        if not there[index]:
            break
        there[index] -= 1
        total += 1
    return total


def _of(index: int, source: Source) -> Iterator[Row]:
    for number, item in source.raw():
        yield index, number, item


def _by_weight(streams: list[Iterator[Row]], weights: list[float], names: list[str]) -> Iterator[Row]:
    """Always the source that is furthest behind its share; the first of those on a tie."""
    taken = [0] * len(streams)
    for index in _turns(weights):
        row = next(streams[index], None)
        if row is None:
            parts = ", ".join(f"{count:,} of {name}" for count, name in zip(taken, names, strict=True))
            log.info("%s has no more rows, which ends the mix: %s", names[index], parts)
            return
        taken[index] += 1
        yield row


def _turns(weights: list[float]) -> Iterator[int]:
    """Whose turn it is, without end."""
    shares = [weight / sum(weights) for weight in weights]
    taken = [0] * len(shares)
    while True:
        behind = [share * (sum(taken) + 1) - count for share, count in zip(shares, taken, strict=True)]
        index = max(range(len(shares)), key=lambda i: behind[i])
        taken[index] += 1
        yield index


def _shuffled(stream: Iterator[Row], seed: int, scratch: Path) -> Iterator[Row]:
    """Write the rows to the disk, and read them back in an order that is a function of the seed and their number."""
    with tempfile.TemporaryFile(dir=scratch) as spool:
        places = array("q")
        for row in stream:
            places.append(spool.tell())
            pickle.dump(row, spool, protocol=5)
        for index in _permutation(len(places), seed):
            spool.seek(places[index])
            yield pickle.load(spool)


def _permutation(count: int, seed: int) -> list[int]:
    """No library's own shuffle, whose order may change from version to version."""
    key = seed.to_bytes(8, "little")
    ranks = array("Q")
    for index in range(count):
        ranks.frombytes(hashlib.blake2b(index.to_bytes(8, "little"), key=key, digest_size=8).digest())
    return sorted(range(count), key=ranks.__getitem__)
