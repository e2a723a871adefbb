"""Group conversations into rows and batches, and order an epoch."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

IGNORED = -100
_MEGABATCH = 50  # batches; lengths are sorted within so many, so that the order stays random enough


class Collate:
    """Rows of ids and labels to a batch.

    Rows of single conversations are padded and get an attention mask. Packed rows get `position_ids` that begin at 0
    with every conversation, by which transformers builds a mask that keeps conversations apart. With `flat` they
    become one long row and `packed_seq_lengths`, which is how Unsloth tells them apart.
    """

    def __init__(self, pad: int, *, flat: bool = False) -> None:
        self.pad, self.flat = pad, flat

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "seq_lengths" not in rows[0]:
            ids, labels = _padded(rows, "input_ids", self.pad), _padded(rows, "labels", IGNORED)
            mask = _stacked([[1] * len(row["input_ids"]) for row in rows], 0)
            return {"input_ids": ids, "labels": labels, "attention_mask": mask}
        if self.flat:
            joined = {key: [value for row in rows for value in row[key]] for key in rows[0]}
            rows = [joined]
        positions = [[at for length in row["seq_lengths"] for at in range(length)] for row in rows]
        batch = {
            "input_ids": _padded(rows, "input_ids", self.pad),
            "labels": _padded(rows, "labels", IGNORED),
            "position_ids": _stacked(positions, 0),
        }
        # A conversation's first token is predicted from nothing, least of all from the conversation before it.
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        if self.flat:
            batch["packed_seq_lengths"] = torch.tensor(rows[0]["seq_lengths"], dtype=torch.int32)
        return batch

    def conversations(self, batch: dict[str, torch.Tensor]) -> int:
        """How many conversations a batch holds."""
        if "position_ids" not in batch:
            return int(batch["input_ids"].shape[0])
        return int(((batch["position_ids"] == 0) & (batch["input_ids"] != self.pad)).sum())


def _padded(rows: list[dict[str, Any]], key: str, fill: int) -> torch.Tensor:
    return _stacked([row[key] for row in rows], fill)


def _stacked(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    made = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for number, row in enumerate(rows):
        made[number, : len(row)] = torch.tensor(row, dtype=torch.long)
    return made


def lengths(rows: datasets.Dataset) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The number of tokens in every row."""
    counted = [pa.compute.list_value_length(chunk) for chunk in rows.data.column("input_ids").chunks]
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in counted])


def unlabelled(path: Path) -> int:
    """How many rows of prepared data have nothing to predict: the first token of a row is predicted from nothing."""
    found = 0
    with pa.memory_map(path.as_posix()) as mapped:
        for batch in pa.ipc.open_stream(mapped):
            labels = batch.column("labels")
            starts = np.asarray(labels.offsets)
            counts = np.asarray(labels.values) != IGNORED
            counts[starts[:-1][starts[:-1] < starts[1:]]] = False
            before = np.concatenate([[0], np.cumsum(counts)])
            found += int(np.count_nonzero(before[starts[1:]] == before[starts[:-1]]))
    return found


def bins(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Put items together so that no bin holds more than `room`: the longest first, each where it fits best."""
    filled: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in sorted(range(len(sizes)), key=lambda at: (-sizes[at], at)):
        size = int(sizes[item])
        at = bisect.bisect_left(free, (size, -1))
        if at < len(free):
            left, number = free.pop(at)
            filled[number].append(item)
        else:
            left, number = room, len(filled)
            filled.append([item])
        if left > size:
            bisect.insort(free, (left - size, number))
    return filled


def pack(rows: datasets.Dataset, room: int, path: Path) -> datasets.Dataset:
    """Write whole conversations into rows of up to `room` tokens, and open that file.

    A conversation longer than `room` cannot be there: preparing the data has cut, dropped or refused it.
    """
    together = bins([int(size) for size in lengths(rows)], room)
    kinds = pa.list_(pa.int32())
    schema = pa.schema([(name, kinds) for name in ("input_ids", "labels", "seq_lengths")])
    with pa.OSFile(path.as_posix(), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(together), 256):
            columns: dict[str, list[list[int]]] = {name: [] for name in schema.names}
            for members in together[start : start + 256]:
                held = rows[members]
                columns["seq_lengths"].append([len(ids) for ids in held["input_ids"]])
                for name in ("input_ids", "labels"):
                    columns[name].append([value for part in held[name] for value in part])
            writer.write_batch(
                pa.record_batch([pa.array(columns[name], kinds) for name in schema.names], schema=schema)
            )
    return datasets.Dataset.from_file(path.as_posix())


class LengthGrouped(torch.utils.data.Sampler[int]):
    """An order in which every `group` rows in a row are about equally long: the same for the same seed and epoch.

    The trainer's own takes its order from the global random state, so a resumed epoch would be another one.
    """

    def __init__(self, sizes: Sequence[int], group: int, seed: int) -> None:
        self.sizes, self.group, self.seed = sizes, group, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.sizes)).tolist()
        step = self.group * _MEGABATCH
        groups: list[list[int]] = []
        for start in range(0, len(order), step):
            part = sorted(order[start : start + step], key=lambda at: -self.sizes[at])
            groups += [part[at : at + self.group] for at in range(0, len(part), self.group)]
        whole = [group for group in groups if len(group) == self.group]
        rest = [group for group in groups if len(group) < self.group]
        rng.shuffle(whole)
        # The longest first: what does not fit into the memory shows at once.
        longest = max(range(len(self.sizes)), key=lambda at: self.sizes[at])
        whole.sort(key=lambda group: longest not in group)
        return iter([at for group in (*whole, *rest) for at in group])
