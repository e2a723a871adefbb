"""Whether the base knows the special tokens that its conversations are written with, looked at before a training.

A base model that was given the template of an Instruct model has rows in its embedding for these tokens that were never
trained: all of them zero, or the same in several. LoRA leaves the embedding as it is, so such a model cannot learn to
write the token that ends an answer, and hardly to read the others.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ggufy.errors import MissingExtra, ModelError
from ggufy.export import rows
from ggufy.model.safetensors import Checkpoint
from ggufy.recipe.schema import Recipe

log = logging.getLogger("ggufy")

_EMBEDDING, _HEAD = "embed_tokens", "lm_head"
# As Unsloth's `fix_untrained_tokens` has it.
_ZERO = 1e-16
_HINT = "take the Instruct model as the base; or, if this is the one you want, train its embedding elsewhere first"


def check(wanted: Recipe, base: Path, data: Path) -> None:
    """Raise ModelError where a token that ends answers was never trained; warn of the others.

    `data` is the folder with the prepared train.arrow, of which the first batch is looked at.
    """
    special = _special(base)
    read, learnt = _used(data / "train.arrow")
    weights = Checkpoint.open(base)
    for part, tokens in ((_EMBEDDING, read), (_HEAD, learnt)):
        name = next((name for name in weights.tensors if name.endswith(f"{part}.weight")), None)
        if name is None or part in wanted.lora.modules:
            continue
        unknown = _untrained(weights, name, special, sorted(tokens & special.keys()))
        ends = [token for token in unknown if token in learnt]
        if ends:
            raise ModelError(
                f"{base.as_posix()}: {special[ends[0]]} ({ends[0]}), which answers end with, was never trained in this "
                f"base: its row of {name} is {unknown[ends[0]]}",
                _HINT,
            )
        for token, how in unknown.items():
            log.warning(
                "%s (%d), which conversations are written with, was never trained in this base: its row of %s is %s",
                *(special[token], token, name, how),
            )


def _special(base: Path) -> dict[int, str]:
    added = json.loads((base / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens") or []
    return {int(token["id"]): str(token["content"]) for token in added if token.get("special")}


def _used(path: Path) -> tuple[set[int], set[int]]:
    """The ids that rows hold, and those that are trained on, in the first batch of them."""
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
    except ModuleNotFoundError:
        raise MissingExtra("reading the training data", "train", "pyarrow") from None
    with pa.memory_map(path.as_posix()) as mapped, pa.ipc.open_stream(mapped) as stream:
        batch = stream.read_next_batch()
        found = (set(pc.unique(pc.list_flatten(batch.column(name))).to_pylist()) for name in ("input_ids", "labels"))
        read, learnt = found
    return read, {token for token in learnt if token >= 0}


def _untrained(weights: Checkpoint, name: str, special: dict[int, str], used: list[int]) -> dict[int, str]:
    """Of the tokens in use those whose row is zero, or that of another special token; and which it is."""
    import numpy as np

    count, width = weights[name].shape
    if lost := next((token for token in used if token >= count), None):
        raise ModelError(
            f"{special[lost]} ({lost}) has no row in {name}, which has {count:,}",
            "the tokenizer is of another model than the weights: copy both from one place",
        )
    known: dict[bytes, int] = {}
    shared: dict[int, str] = {}
    row: Any = np.empty((1, width), np.float32)
    # Those in use last, so that each is compared with all the others.
    for token in sorted(special.keys() - set(used)) + used:
        if token >= count:
            continue
        rows.read_rows(weights, name, token, token + 1, row)
        if float(np.abs(row).max()) <= _ZERO:
            shared[token] = "zero"
        elif (same := known.setdefault(row.tobytes(), token)) != token:
            shared[token] = f"that of {special[same]}"
            shared.setdefault(same, f"that of {special[token]}")
    return {token: how for token, how in shared.items() if token in used}
