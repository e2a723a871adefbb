"""Keys by which a turn says whether it is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import UNTRAINED
from ggufy.data.rows.texts import is_set, weight_of
from ggufy.model.template import Message

_MASKED = "masked"
"""torchtune's, which says the opposite of the others."""
KEYS = ("weight", "train", "training", "trainable", "loss", "loss_mask", "step_loss_mask", "loss_weight", _MASKED)
# By which it says something else of that: some take a mask of 1 for what is left out, others for what is learnt.
_UNCLEAR = {
    "mask": "which leaves open whether 1 or 0 is learnt",
    "train_detail": "and a turn is learnt whole, or not at all",
}
_ALL = frozenset((*KEYS, *_UNCLEAR))


def marked(message: Message, turn: Mapping[str, Any], where: str) -> Message:
    """Noted as not trained on, where the turn says so. Raises BadRow for a weight between."""
    if _ALL.isdisjoint(turn):
        return message
    if unclear := next((key for key in _UNCLEAR if is_set(turn.get(key))), None):
        raise BadRow(f"{where} has {unclear!r}, {_UNCLEAR[unclear]}; weight: 0 leaves a turn out of the loss")
    for key in KEYS:
        if not is_set(weight := turn.get(key)):
            continue
        learnt = is_learnt(key, weight)
        if learnt is None:
            none, whole = ("1 or true", "0 or false") if key == _MASKED else ("0 or false", "1 or true")
            raise BadRow(f"{where}: {key} is {weight!r}; {none} leaves a turn out of the loss, {whole} does not")
        if not learnt:
            message[UNTRAINED] = True
    return message


def is_learnt(key: str, weight: Any) -> bool | None:
    """What one of these keys says; None where it says neither."""
    said = weight_of(weight)
    return not said if key == _MASKED and said is not None else said
