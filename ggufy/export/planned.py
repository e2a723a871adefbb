"""Base and adapter of an export together: the family, its tensors, and what the adapter makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ggufy.export import families
from ggufy.export.adapter.adapter import EMBEDDING, HEAD, Adapter
from ggufy.export.families.family import Family, Planned
from ggufy.model.safetensors import Checkpoint


@dataclass(frozen=True)
class Ready:
    """An adapter that fits its base, and every tensor of the GGUF that the two make."""

    family: Family
    weights: Checkpoint
    adapter: Adapter
    tensors: list[Planned]


def ready(base: Path, adapter: Adapter, tokenizer: Path | None = None) -> Ready:
    """Of a base folder; `tokenizer` is the folder with the tokenizer of the training, where that is not the base's.

    With it the vocabulary may have another size than the base's: that of the embedding which the adapter brings. Raises
    ExportError or ModelError.
    """
    family, weights = families.opened(base)
    adapter = adapter.named_as(weights)
    tensors = family.plan(weights, untied=adapter.unties(family.tied))
    adapter.check(weights, (tensor.source for tensor in tensors if tensor.source), resizes=tokenizer is not None)
    if tokenizer is not None:
        family.tokenizer = tokenizer
    rows = adapter.vocabulary(weights)
    if rows != family.vocab_size:
        family.config = {**family.config, "vocab_size": rows}
        tensors = resized(tensors, rows)
    return Ready(family, weights, adapter, tensors)


def resized(tensors: list[Planned], rows: int) -> list[Planned]:
    """The same tensors, embedding and output matrix with so many rows."""
    return [replace(t, shape=(rows, *t.shape[1:])) if t.source in (EMBEDDING, HEAD) else t for t in tensors]
