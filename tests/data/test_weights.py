"""What says that a turn or a row is not learnt, or not as others are: done where it is plain, else refused."""

from __future__ import annotations

from typing import Any

import pytest

from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import UNTRAINED, Conversation
from ggufy.data.rows.reader import Reader
from ggufy.recipe.schema import Part

USER = {"role": "user", "content": "Q"}
PAIR = {"prompt": "Q", "completion": "A"}


def answer(**keys: Any) -> dict[str, Any]:
    row = {"messages": [USER, {"role": "assistant", "content": "A", **keys}]}
    found = Reader("messages", Part(source="x")).read(row)
    assert isinstance(found, Conversation)
    return found[1]


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss", "loss_mask", "step_loss_mask"])
def test_a_turn_says_whether_it_is_learnt(key: str) -> None:
    for none in (0, 0.0, False, "false", "0"):
        assert answer(**{key: none})[UNTRAINED], none
    for whole in (1, 1.0, True, "true", None, float("nan"), ""):
        assert UNTRAINED not in answer(**{key: whole}), whole
    with pytest.raises(BadRow, match=f"turn 2: {key} is 0.5; 0 or false leaves a turn out of the loss"):
        answer(**{key: 0.5})


def test_a_masked_turn_is_not_learnt() -> None:
    assert answer(masked=True)[UNTRAINED]
    assert UNTRAINED not in answer(masked=False)
    with pytest.raises(BadRow, match=r"masked is 0\.5; 1 or true leaves a turn out"):
        answer(masked=0.5)


@pytest.mark.parametrize(
    ("key", "value", "naming"),
    [
        ("mask", True, "turn 2 has 'mask', which leaves open"),
        ("mask", 0, "turn 2 has 'mask', which leaves open"),
        ("train_detail", [{"begin_offset": 0, "end_offset": 1, "train": False}], "learnt whole, or not at all"),
    ],
)
def test_what_is_not_plain_is_refused(key: str, value: Any, naming: str) -> None:
    with pytest.raises(BadRow, match=naming):
        answer(**{key: value})
    assert UNTRAINED not in answer(**{key: None})


def test_marks_that_were_used_are_not_listed() -> None:
    turns = [{**USER, "training": False}, {"role": "assistant", "content": "A", "training": True, "loss_mask": 1}]
    reader = Reader("messages", Part(source="x"))
    reader.read({"messages": turns})
    assert reader.unread == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("weight", "train", "loss_weight", "sample_weight") for value in (0, 0.3, "0")),
        *((name, value) for name in ("loss", "training", "trainable") for value in (0, False, "false", "0.0")),
        ("Weight", 0),
        ("loss_mask", [0, 1]),
        ("mask", [0, 1]),
        ("mask", True),
        ("masked", True),
    ],
)
def test_a_row_that_is_not_learnt_as_others_are_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BadRow, match=f"the column '{name}' is .*; weights are read as keys of turns"):
        Reader("prompt-completion", Part(source="x")).read({**PAIR, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("weight", value) for value in (1, 1.0, "1", "1.0", True, None, "", float("nan"), "nan")),
        # What was measured, and a word.
        *(("loss", value) for value in (1, True, 0.731, "2.5")),
        ("training", "phase two"),
        ("mask", "[MASK]"),
        ("masked", False),
    ],
)
def test_a_row_that_is_learnt_as_others_are_is_read(name: str, value: Any) -> None:
    found = Reader("prompt-completion", Part(source="x")).read({**PAIR, name: value})
    assert found == [USER, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize("name", ["thinking", "reasoning", "reasoning_content", "Reasoning"])
def test_thoughts_in_a_column_are_refused(name: str) -> None:
    reader = Reader("prompt-completion", Part(source="x"))
    with pytest.raises(BadRow, match=f"the column '{name}' is set; it is read as a key of a turn"):
        reader.read({**PAIR, name: "because"})
    # That there are thoughts is a fact about the row.
    for fact in ("on", "off", False, None, "null"):
        reader.read({**PAIR, name: fact})
