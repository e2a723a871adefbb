"""Rows of an embedding that no training has ever seen, told by what they look like.

Certain is what cannot be otherwise: a row of zeros, one that another token has to the last bit, and one that is nearly
that of another added token, or of a row past the last token. How near the nearest of these is, as a share of the
distance of ordinary rows to their mean, was measured on real weights, which had been through Q8_0:

| | tokens that no text holds | the nearest that are trained |
|---|---|---|
| SmolLM2-135M-Instruct | <file_sep>, <gh_stars> and nine more: below 0.001 | <|im_start|>: 0.17 |
| Gemma 3 270M | <unused6208> and more: 0.007 to 0.014; 40 of 63 are found | <start_of_turn>: above 0.2 |

Only suspicious is what looks otherwise than the rows of ordinary tokens do, so it is a matter for a warning: a base may
have its reasons. Three looks, each measured against a sample of ordinary rows, with what the two models have:

- near the mean of all rows, as `resize_token_embeddings` and many scripts begin new rows: nearer than 0.7 of what 99 of
  100 ordinary rows are; of 49,152 and 262,144 trained rows the nearest was at 0.90;
- another size: a norm of less than a third of what 99 of 100 rows have or above twice the largest. Ordinary rows had
  0.82 of the first and 1.08 of the second at the most, special ones 0.99 and 1.03;
- like no other row: as noise, its direction has |cos| below 4/sqrt(width) with each row of the sample. Noise of any
  size has about 3.1; 5 of 100 such rows have more than 4 and are not found. Of 1,000 ordinary rows one had less than
  5.4, special ones had at least 6.6. Where ordinary rows are noise themselves, as in a model that was never
  trained, this says nothing and is left out.

A row that is the mean with noise as large as ordinary rows are far from it looks like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.export import rows
from ggufy.model.safetensors import FOUR_BIT, SIZES, Checkpoint

# As Unsloth's `fix_untrained_tokens` has it; in bf16 such rows are 1e-23.
_ZERO = 1e-16
# Of the distance of ordinary rows to their mean, or of the row's own norm if that is less.
_NOTHING, _EQUAL = 0.01, 0.04
_MEAN, _SMALL, _LARGE = 0.7, 1 / 3, 2.0
_NOISE, _ALIKE = 4.0, 5.0

_SAMPLE, _COMPARED = 2000, 400
# Rows that are compared at once, and bytes of one that are compared first.
_PIECE, _BEGINNING = 512, 8


@dataclass(frozen=True)
class Look:
    """What the row of a token looks like: a text that ends "its row is ..."; of another token's row, that token."""

    text: str
    certain: bool
    other: int | None = None


def find(weights: Checkpoint, name: str, tokens: Collection[int], ordinary: Collection[int]) -> dict[int, Look]:
    """Those of `tokens` whose rows look untrained in the matrix `name`.

    `ordinary` are the tokens that were learnt from text: a sample of their rows says what is usual. All other rows, of
    added tokens and of none, are what the row of one of `tokens` may be near to; equal it may be to any.
    """
    import numpy as np

    if not tokens:
        return {}
    count = weights[name].shape[0]
    known = sorted(tokens)
    held = _read(weights, name, known)
    usual = _Usual(weights, name, _evenly([token for token in ordinary if token < count] or range(count)))
    norms = np.linalg.norm(held, axis=1)
    found: dict[int, Look] = {}
    for token, row, norm in zip(known, held, norms, strict=True):
        if float(np.abs(row).max()) <= _ZERO:
            found[token] = Look("zero", certain=True)
        elif norm < _NOTHING * usual.spread:
            found[token] = Look("as good as zero", certain=True)
    others = sorted(set(range(count)) - set(ordinary) - found.keys())
    nearest = _nearest(weights, name, known, held - usual.mean, others, usual.mean)
    equal = _equal(weights, name, set(known) - found.keys())
    alike = np.abs(usual.directions @ held.T).max(axis=0)
    for token, other, row, norm, most in zip(known, nearest, held, norms, alike, strict=True):
        if token in found:
            continue
        look = _shared(weights, name, row, other, _EQUAL * min(float(norm), usual.spread))
        if look is None and token in equal:
            look = Look("that of", certain=True, other=equal[token])
        look = look or usual.odd(row, float(norm), float(most))
        if look is not None:
            found[token] = look
    return found


class _Usual:
    """What the rows of ordinary tokens are like."""

    def __init__(self, weights: Checkpoint, name: str, sample: list[int]) -> None:
        import numpy as np

        held = _read(weights, name, sample)
        norms = np.linalg.norm(held, axis=1)
        self.mean = held.mean(axis=0)
        distances = np.linalg.norm(held - self.mean, axis=1)
        self.spread = float(np.median(distances))
        self.nearest, self.farthest = (float(value) for value in np.percentile(distances, (1, 99)))
        self.smallest, self.largest = float(np.percentile(norms, 1)), float(norms.max())
        held /= np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
        self.directions = held
        picked = np.linspace(0, len(held) - 1, min(_COMPARED, len(held))).astype(int)
        cosines = np.abs(held[picked] @ held.T)
        cosines[np.arange(len(picked)), picked] = 0
        self.noise = _NOISE / held.shape[1] ** 0.5
        self.is_trained = float(np.percentile(cosines.max(axis=1), 1)) >= _ALIKE / held.shape[1] ** 0.5

    def odd(self, row: Any, norm: float, most: float) -> Look | None:
        """How a row is unlike those of ordinary tokens; `most` is its largest product with one of `directions`."""
        import numpy as np

        away = float(np.linalg.norm(row - self.mean))
        if away < _MEAN * self.nearest:
            return Look(
                f"near the mean of all rows ({away:.2g} away, where ordinary tokens are {self.nearest:.2g} to "
                f"{self.farthest:.2g})",
                certain=False,
            )
        if not _SMALL * self.smallest <= norm <= _LARGE * self.largest:
            return Look(
                f"of another size (norm {norm:.2g}, where ordinary tokens have {self.smallest:.2g} to "
                f"{self.largest:.2g})",
                certain=False,
            )
        if self.is_trained and most < self.noise * norm:
            return Look("like noise: no row of an ordinary token resembles it", certain=False)
        return None


def _read(weights: Checkpoint, name: str, tokens: list[int]) -> Any:
    """The rows of these tokens as float32. Not by the map of the file, of which whole stretches become memory."""
    import numpy as np

    tensor = weights[name]
    held = np.empty((len(tokens), tensor.shape[1]), np.float32)
    if tensor.dtype == FOUR_BIT:
        for token, row in zip(tokens, held, strict=True):
            rows.read_rows(weights, name, token, token + 1, row)
        return held
    size = tensor.shape[1] * SIZES.get(tensor.dtype, 0)
    with tensor.file.open("rb", buffering=0) as file:
        for token, row in zip(tokens, held, strict=True):
            file.seek(tensor.start + token * size)
            rows.decode(file.read(size), tensor.dtype, row)
    return held


def _evenly(tokens: Collection[int]) -> list[int]:
    ordered = sorted(tokens)
    return ordered[:: max(1, len(ordered) // _SAMPLE)]


def _nearest(
    weights: Checkpoint, name: str, tokens: list[int], held: Any, others: Sequence[int], mean: Any
) -> list[int | None]:
    """Which other row is nearest to that of each token; `held` are the tokens' rows, less `mean`."""
    import numpy as np

    # Of what is left when the mean is taken away: the difference of large squares is not exact.
    squares = (held**2).sum(axis=1)
    least = np.full(len(tokens), np.inf, np.float32)
    nearest: list[int | None] = [None] * len(tokens)
    for start in range(0, len(others), _PIECE):
        piece = list(others[start : start + _PIECE])
        theirs = _read(weights, name, piece) - mean
        apart = squares[:, None] + (theirs**2).sum(axis=1) - 2 * held @ theirs.T
        apart[np.array(tokens)[:, None] == np.array(piece)] = np.inf
        places = apart.argmin(axis=1)
        values = apart[np.arange(len(tokens)), places]
        for index in np.flatnonzero(values < least).tolist():
            nearest[index] = piece[places[index]]
        least = np.minimum(least, values)
    return nearest


def _equal(weights: Checkpoint, name: str, tokens: Collection[int]) -> dict[int, int]:
    """Of those of `tokens` whose row another token has to the last bit: the first of these. Reads the matrix once."""
    import numpy as np

    tensor = weights[name]
    count, width = tensor.shape
    size = width * SIZES.get(tensor.dtype, 0)
    if not tokens or tensor.dtype == FOUR_BIT or size < _BEGINNING:
        return {}
    own: dict[bytes, list[int]] = {}
    found: dict[int, int] = {}
    with tensor.file.open("rb", buffering=0) as file:
        for token in tokens:
            file.seek(tensor.start + token * size)
            own.setdefault(file.read(size), []).append(token)
        # A row that begins otherwise is another one.
        begins = np.array(sorted({row[:_BEGINNING] for row in own}), f"V{_BEGINNING}").view(np.uint64)
        file.seek(tensor.start)
        for start in range(0, count, _PIECE):
            rows_here = min(_PIECE, count - start)
            piece = np.frombuffer(file.read(rows_here * size), np.uint8).reshape(rows_here, size)
            theirs = np.ascontiguousarray(piece[:, :_BEGINNING]).view(np.uint64)[:, 0]
            for index in np.flatnonzero(np.isin(theirs, begins)).tolist():
                for token in own.get(piece[index].tobytes(), ()):
                    if token != start + index:
                        found.setdefault(token, start + index)
    return found


def _shared(weights: Checkpoint, name: str, row: Any, other: int | None, limit: float) -> Look | None:
    """That a row is the one of another token, if they are nearer than `limit`."""
    import numpy as np

    if other is None:
        return None
    away = float(np.linalg.norm(row - _read(weights, name, [other])[0]))
    if away > limit:
        return None
    return Look("nearly that of" if away else "that of", certain=True, other=other)
