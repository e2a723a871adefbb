"""Rows, batches and orders: nothing lost, nothing seen across conversations, the same again for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
batches = pytest.importorskip("ggufy.train.batches")

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=120)


def row(*lengths: int, start: int = 1) -> dict[str, list[int]]:
    ids = list(range(start, start + sum(lengths)))
    return {"input_ids": ids, "labels": list(ids), "seq_lengths": list(lengths)}


@given(SIZES)
def test_every_conversation_is_packed_once_and_whole(sizes: list[int]) -> None:
    filled = batches.bins(sizes, 40)
    assert sorted(item for members in filled for item in members) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in members) <= 40 for members in filled)
    # As best-fit decreasing promises: at most one row is half empty.
    assert sum(2 * sum(sizes[item] for item in members) <= 40 for members in filled) <= 1


@given(SIZES, st.integers(1, 9), st.integers(0, 3))
def test_grouping_orders_every_row_once(sizes: list[int], group: int, epoch: int) -> None:
    order = batches.LengthGrouped(sizes, group, seed=1)
    order.set_epoch(epoch)
    first = list(order)
    assert sorted(first) == list(range(len(sizes)))
    again = batches.LengthGrouped(sizes, group, seed=1)
    again.set_epoch(epoch)
    assert list(again) == first


def test_grouping_pads_less_and_differs_from_epoch_to_epoch() -> None:
    sizes = [1 + (7 * at) % 100 for at in range(1000)]
    order = batches.LengthGrouped(sizes, 8, seed=1)

    def padded(rows: list[int]) -> int:
        groups = [rows[at : at + 8] for at in range(0, len(rows), 8)]
        return sum(max(sizes[at] for at in group) * len(group) for group in groups)

    first = list(order)
    order.set_epoch(1)
    assert list(order) != first
    assert padded(first) < 1.15 * sum(sizes)
    assert padded(list(range(1000))) > 1.5 * sum(sizes)
    assert max(sizes) in [sizes[at] for at in first[:8]]


def test_positions_begin_anew_and_no_first_token_is_predicted() -> None:
    batch = batches.Collate(0)([row(3, 2), row(4)])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5], [-100, 2, 3, 4, -100]]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 0]]
    assert batches.Collate(0).conversations(batch) == 3


def test_the_flat_layout_tells_the_lengths() -> None:
    collate = batches.Collate(0, flat=True)
    batch = collate([row(3, 2), row(4, start=6)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch["packed_seq_lengths"].tolist() == [3, 2, 4]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert collate.conversations(batch) == 3


def test_a_conversation_does_not_see_the_one_before_it(base: Path) -> None:
    """Other ids in the first conversation of a row change nothing in the second, and alone it gives the same."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    second = list(range(300, 320))
    seen = []
    for first in (list(range(20, 50)), list(range(120, 150)), []):
        ids, lengths = first + second, [len(part) for part in (first, second) if part]
        packed = batches.Collate(0)([{"input_ids": ids, "labels": ids, "seq_lengths": lengths}])
        del packed["labels"]
        with torch.no_grad():
            # Without a cache, as in training; with one, transformers does not look at the positions.
            seen.append(model(**packed, use_cache=False).logits[0, -20:])
    assert torch.equal(seen[0], seen[1])
    assert torch.allclose(seen[0], seen[2], atol=1e-5)
