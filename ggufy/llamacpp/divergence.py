"""Losses and KL divergence of next-token logits, in float64, a few rows at a time.

KL(p, q) = sum of p (log p - log q), in nats, p being the reference. With x and y the logits less their largest,
it is sum(exp(x) (x - y)) / sum(exp(x)) - log sum(exp(x)) + log sum(exp(y)): one exponential of each logit, and no
probability that is rounded to zero before its logarithm is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_WEIGHTS = 1 << 20
"""About how many logits are held in float64 at a time."""


def losses(logits: Any, tokens: Any) -> Any:
    """-log of the probability of each row's token, in nats: logits float32 (n, vocabulary), tokens (n,)."""
    import numpy as np

    found = np.empty(len(logits), np.float64)
    for part in _parts(logits):
        shifted, total = _shifted(logits[part])
        found[part] = np.log(total) - shifted[np.arange(len(shifted)), tokens[part]]
    return found


def divergences(reference: Any, model: Any) -> Any:
    """KL from the reference of each row, in nats: both float32 (n, vocabulary)."""
    import numpy as np

    found = np.empty(len(reference), np.float64)
    for part in _parts(reference):
        x, y = (_less_largest(logits[part]) for logits in (reference, model))
        weights = np.exp(x)
        total = weights.sum(axis=1)
        apart = np.einsum("ij,ij->i", weights, x - y) / total
        found[part] = apart - np.log(total) + np.log(np.exp(y).sum(axis=1))
    # Never below zero but by rounding.
    return np.maximum(found, 0.0)


def _parts(logits: Any) -> Iterator[slice]:
    rows = max(1, _WEIGHTS // logits.shape[1])
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)


def _shifted(logits: Any) -> tuple[Any, Any]:
    import numpy as np

    shifted = _less_largest(logits)
    return shifted, np.exp(shifted).sum(axis=1)


def _less_largest(logits: Any) -> Any:
    import numpy as np

    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide
