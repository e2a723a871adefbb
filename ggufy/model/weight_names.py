"""Names of weights as trainers wrap them, and what they are called without the wrapping.

FSDP, torch.compile, activation checkpointing and DDP put a segment of their own into every name below the module they
wrap. A state dict that was saved from inside them has these names; transformers and peft know the others only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ggufy.errors import ModelError

_ANYWHERE = frozenset({"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module", "_forward_module"})
# DDP's and DeepSpeed's is an ordinary word: it counts only around the whole model.
_OUTSIDE = re.compile(r"^(base_model\.model\.)?(?:module\.)+")
# Around the whole model, in a state dict that was saved from within peft, or from trl's model with a value head.
_HOLDERS = ("base_model.model.", "pretrained_model.")


def unwrapped(name: str) -> str:
    """The name without what trainers put into it."""
    short = ".".join(part for part in name.split(".") if part not in _ANYWHERE)
    return _OUTSIDE.sub(lambda found: found[1] or "", short)


def of_model(name: str) -> str:
    """The same for a whole model, which is not named as a part of what held it."""
    short = unwrapped(name)
    while held := next((holder for holder in _HOLDERS if short.startswith(holder)), None):
        short = unwrapped(short.removeprefix(held))
    return short


def unwrap(names: Iterable[str], where: str, *, model: bool) -> dict[str, str]:
    """Each name, and what it is called without its wrapping. Raises ModelError where two would be called the same.

    They are those of a whole `model`, or of an adapter.
    """
    found: dict[str, str] = {}
    for name in names:
        short = of_model(name) if model else unwrapped(name)
        if (other := found.setdefault(short, name)) != name:
            raise ModelError(
                f"{where}: {other} and {name} are both {short}, as a trainer wrapped it",
                "save the model again from outside the wrapper, or remove one of the two",
            )
    return {name: short for short, name in found.items()}
