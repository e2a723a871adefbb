"""What transformers makes of a checkpoint when it loads it: which names, and whether the output matrix is tied.

As `core_model_loading.py` and `tie_weights` in transformers 5.17 do it: a model that was saved without its output
matrix has names without "model."; and where config.json says tied, the file has the last word: two matrices that differ
are not tied, and one alone is both.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ggufy.errors import ModelError
from ggufy.export.adapter.adapter import EMBEDDING, HEAD
from ggufy.export.rows import read_rows
from ggufy.model.safetensors import Checkpoint

_PREFIX = "model."
_PIECE = 1 << 26


def loaded(config: dict[str, Any], checkpoint: Checkpoint, known: Collection[str]) -> tuple[dict[str, Any], Checkpoint]:
    """The configuration and the tensors as transformers loads them; `known` are the names of the family's tensors.

    Raises ModelError for a checkpoint without an output matrix whose configuration does not tie it.
    """
    _refuse_unmerged(checkpoint)
    names = {name: _name(name, known) for name in checkpoint.tensors}
    if any(name != short for name, short in names.items()) and len(set(names.values())) == len(names):
        checkpoint = checkpoint.renamed(names)
    _refuse_other_names(checkpoint)
    if not config["tie_word_embeddings"]:
        if HEAD not in checkpoint and EMBEDDING in checkpoint:
            raise ModelError(
                f"{checkpoint.where}: {HEAD} is missing, and config.json says tie_word_embeddings: false",
                "copy the model folder again; or, if this model uses its embedding as its output matrix, "
                "set tie_word_embeddings to true in config.json",
            )
        return config, checkpoint
    if HEAD in checkpoint and EMBEDDING not in checkpoint:
        return config, checkpoint.renamed({HEAD: EMBEDDING})
    if HEAD in checkpoint and not _equal(checkpoint):
        return {**config, "tie_word_embeddings": False}, checkpoint
    return config, checkpoint


def _refuse_unmerged(checkpoint: Checkpoint) -> None:
    """Refuse the weights of a model with an adapter in it, as a state dict of peft's model has them."""
    if name := next((name for name in checkpoint.tensors if ".lora_" in name or ".base_layer." in name), None):
        raise ModelError(
            f"{checkpoint.where}: {name} is a part of an adapter, which is not merged with these weights",
            "export the adapter as peft's save_pretrained saves it, with --base; or save the model again after "
            "merge_and_unload()",
        )


def _refuse_other_names(checkpoint: Checkpoint) -> None:
    """Refuse names of another class, of which transformers would load nothing and take random numbers."""
    if EMBEDDING in checkpoint or HEAD in checkpoint:
        return
    if name := next((name for name in checkpoint.tensors if name.endswith("embed_tokens.weight")), None):
        raise ModelError(
            f"{checkpoint.where}: its weights have the names of another class: {name}, where config.json's class has "
            f"{EMBEDDING}",
            "save the language model by itself with its own save_pretrained; or name the class that saved it under "
            "architectures and model_type in config.json",
        )


def _name(name: str, known: Collection[str]) -> str:
    short = name.removeprefix(_PREFIX)
    if short != name and short in known:
        return short
    return f"{_PREFIX}{name}" if f"{_PREFIX}{name}" in known else name


def _equal(checkpoint: Checkpoint) -> bool:
    """Whether embedding and output matrix hold the same numbers, told a piece at a time."""
    import numpy as np

    one, other = checkpoint[EMBEDDING], checkpoint[HEAD]
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype:
        ours, theirs = (np.frombuffer(checkpoint.bytes_of(tensor), np.uint8) for tensor in (one, other))
        starts = range(0, len(ours), _PIECE)
        return all(np.array_equal(ours[start : start + _PIECE], theirs[start : start + _PIECE]) for start in starts)
    rows, columns = one.shape
    pair = np.empty((2, max(1, _PIECE // 4 // columns), columns), np.float32)
    for start in range(0, rows, pair.shape[1]):
        stop = min(rows, start + pair.shape[1])
        for name, out in zip((EMBEDDING, HEAD), pair, strict=True):
            read_rows(checkpoint, name, start, stop, out[: stop - start])
        if not np.array_equal(pair[0, : stop - start], pair[1, : stop - start]):
            return False
    return True
