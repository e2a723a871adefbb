"""Rows of an embedding that no training has ever seen, told by what they look like.

Certain is what cannot be otherwise: a row of zeros, and a row that another token has as well. How near two such rows
are was measured on real weights, which had been through Q8_0, as a share of the distance of ordinary rows to their mean:

| | tokens that no text holds | the nearest that are trained |
|---|---|---|
| SmolLM2-135M-Instruct | <file_sep>, <gh_stars> and nine more: 0.0014 | <|im_start|>, to the byte 00: 0.17 |
| Gemma 3 270M | <unused6208> and 6,000 more: 0.007 to 0.014 | <start_of_turn>: above 0.2 |

Only suspicious is what looks otherwise than the rows of ordinary tokens do, so it is a matter for a warning: a base may
have its reasons. Three looks, each measured against a sample of ordinary rows, with what the two models have:

- near the mean of all rows, as `resize_token_embeddings` and many scripts begin new rows: nearer than 0.7 of what 99 of
  100 ordinary rows are; of 49,152 and 262,144 trained rows the nearest was at 0.90;
- another size: a norm of less than a third of what 99 of 100 rows have or above twice the largest. Trained special tokens
  had 0.99 of the first and 1.003 of the second at the most;
- like no other row: as noise, its direction has |cos| below 4/sqrt(width) with each row of the sample. Noise of any size
  has about 3.3, trained tokens had at least 4.5 and special ones 5.0. Where ordinary rows are noise themselves, as in a
  model that was never trained, this says nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
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
# The first so many columns of two rows tell whether to look at the others.
_COLUMNS = 64
_TRIES = 100
_PIECE = 8 << 20


@dataclass(frozen=True)
class Look:
    """What the row of a token looks like: a text that ends "its row is ..."; of another token's row, that token."""

    text: str
    certain: bool
    other: int | None = None


def find(weights: Checkpoint, name: str, tokens: Collection[int], ordinary: Collection[int]) -> dict[int, Look]:
    """Those of `tokens` whose rows look untrained in the matrix `name`, beside those of a sample of `ordinary` tokens.

    The whole matrix is read once, from the disk, and a few rows are held.
    """
    import numpy as np

    if not tokens:
        return {}
    known = sorted(tokens)
    held = _read(weights, name, known)
    usual = _Usual(weights, name, _evenly(ordinary))
    norms = np.linalg.norm(held, axis=1)
    found: dict[int, Look] = {}
    for token, row, norm in zip(known, held, norms, strict=True):
        if float(np.abs(row).max()) <= _ZERO:
            found[token] = Look("zero", certain=True)
        elif norm < _NOTHING * usual.spread:
            found[token] = Look("as good as zero", certain=True)
    left = [index for index, token in enumerate(known) if token not in found]
    limits = _EQUAL * np.minimum(norms, usual.spread)
    same = _equals(weights, name, [known[index] for index in left], held[left], limits[left])
    for index in left:
        look = same.get(known[index]) or usual.odd(held[index], float(norms[index]))
        if look is not None:
            found[known[index]] = look
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

    def odd(self, row: Any, norm: float) -> Look | None:
        """How a row is unlike those of ordinary tokens."""
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
        if self.is_trained and float(np.abs(self.directions @ row).max()) < self.noise * norm:
            return Look("like noise: no row of an ordinary token resembles it", certain=False)
        return None


def _read(weights: Checkpoint, name: str, tokens: list[int]) -> Any:
    import numpy as np

    held = np.empty((len(tokens), weights[name].shape[1]), np.float32)
    for token, row in zip(tokens, held, strict=True):
        rows.read_rows(weights, name, token, token + 1, row)
    return held


def _evenly(tokens: Collection[int]) -> list[int]:
    ordered = sorted(tokens)
    return ordered[:: max(1, len(ordered) // _SAMPLE)]


def _equals(weights: Checkpoint, name: str, tokens: list[int], held: Any, limits: Any) -> dict[int, Look]:
    """Of the tokens with these rows those that share it with another token, which is the first that has it too."""
    import numpy as np

    found: dict[int, Look] = {}
    tried = dict.fromkeys(tokens, 0)
    short = held[:, :_COLUMNS]
    squares = (short**2).sum(axis=1)
    # Twice as far away as may be: the difference of large squares is not exact.
    allowed = (2 * limits) ** 2 + 1e-6 * squares
    for start, piece in _columns(weights, name):
        apart = squares[:, None] + (piece**2).sum(axis=1) - 2 * short @ piece.T
        for index, place in zip(*(part.tolist() for part in np.nonzero(apart <= allowed[:, None])), strict=True):
            token, other = tokens[index], start + place
            if token == other or token in found or tried[token] == _TRIES:
                continue
            tried[token] += 1
            away = float(np.linalg.norm(held[index] - _read(weights, name, [other])[0]))
            if away <= limits[index]:
                found[token] = Look("that of" if away == 0 else "nearly that of", certain=True, other=other)
    return found


def _columns(weights: Checkpoint, name: str) -> Iterator[tuple[int, Any]]:
    """The first columns of all rows as float32, in pieces, and with which row each piece begins.

    Read, not mapped: what is mapped and read counts as memory of this process.
    """
    import numpy as np

    tensor = weights[name]
    count, width = tensor.shape
    if tensor.dtype == FOUR_BIT:
        # No trainer packs an embedding; if one did, the others' rows would have to be decoded one by one.
        return
    size = SIZES[tensor.dtype]
    step = max(1, _PIECE // (width * size))
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for start in range(0, count, step):
            number = min(step, count - start)
            data = np.frombuffer(file.read(number * width * size), np.uint8).reshape(number, width * size)
            piece = np.empty((number, min(width, _COLUMNS)), np.float32)
            rows.decode(data[:, : piece.shape[1] * size].tobytes(), tensor.dtype, piece.reshape(-1))
            yield start, piece
