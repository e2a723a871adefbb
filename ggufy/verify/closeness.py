"""Measure how close a GGUF's logits are to the training model's, and judge whether that suits its type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import Unverified
from ggufy.llamacpp.divergence import divergences
from ggufy.llamacpp.evaluate_gguf import Forward
from ggufy.verify.reference import Reference


@dataclass(frozen=True)
class Closeness:
    """How near a file's logits are to the training model's, over all positions of the probe texts."""

    positions: int
    relative: float
    """Length of the difference over the length of the logits, each position's mean taken out."""
    agreement: float
    """Share of positions with the same most likely token."""
    divergence: float
    """Mean KL divergence from the training model, in nats."""
    correlation: float
    """Of all logits with the training model's."""
    kept: float | None = None
    """Of what training changed in the logits, how much is in the file: 1 is all of it, 0 is the base. None: unknown."""
    noise: float = 0.0
    """What else is different, as a share of what training changed."""

    def text(self) -> str:
        kept = f", {100 * self.kept:.0f}% of what training changed" if self.kept is not None else ""
        return (
            f"logits off by {100 * self.relative:.3g}%, {100 * self.agreement:.1f}% same top token, "
            f"KL {self.divergence:.2g}{kept}, over {self.positions} positions"
        )


# A file of these types is the training model itself, rounded. Llama.cpp computes with 16-bit activations beside them.
_EXACT = {"f32": 1e-2, "f16": 1e-2, "bf16": 4e-2}
# Finely rounded. A model that a few steps taught its answers, which is as touchy as any, is off by a sixth, a quarter
# and a third of these; a tensor of zeros puts it off by 0.9.
_FINE = {"q8_0": 0.25, "q6_k": 0.5, "q5_0": 0.75, "q5_1": 0.75, "q5_k": 0.75}
# Any quant, however coarse: below this the logits have nothing to do with each other.
_RELATED = 0.1
# Rounding moves the logits every way, and less than this share of that along what training changed: at most half of it
# in the quants tried, down to 1.6 bits. What is missing of the training beyond that, and beyond _LOST, is not there.
_ASTRAY, _LOST = 0.6, 0.1
# Three values a weight leave less than that of the training in the logits; its weights are compared one by one.
_TERNARY = {"tq1_0", "tq2_0"}
# A training that changed less of the logits than this cannot be told from rounding.
_FAINT = 0.01
# Positions compared at a time: in float64, 16 MB for each of half a dozen arrays.
_POSITIONS = 16


def measure(model: Forward, reference: Reference) -> Closeness:
    """Run a file over the reference's texts. One batch of its logits is held at a time. Raises Unverified."""
    import numpy as np

    sums = dict.fromkeys(("off", "length", "own", "product", "change", "moved", "along"), 0.0)
    divergence, same, positions = 0.0, 0, 0
    bases = reference.untrained or [None] * len(reference.texts)
    for text, expected, base in zip(reference.texts, reference.logits, bases, strict=True):
        if expected.shape[1] != model.width:
            raise Unverified(
                f"{model.path.as_posix()}: {model.width:,} tokens, and the training model has {expected.shape[1]:,}",
                "the tokenizer and the weights are of different models",
            )
        start = 0
        for found in _pieces(model.logits(text)):
            part = slice(start, start + len(found))
            start += len(found)
            ours, theirs = _centred(found), _centred(expected[part])
            sums["off"] += float(np.square(ours - theirs).sum())
            sums["length"] += float(np.square(theirs).sum())
            sums["own"] += float(np.square(ours).sum())
            sums["product"] += float((ours * theirs).sum())
            if base is not None:
                before = _centred(base[part])
                sums["change"] += float(np.square(theirs - before).sum())
                sums["moved"] += float(np.square(ours - before).sum())
                sums["along"] += float(((ours - before) * (theirs - before)).sum())
            same += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
            divergence += float(divergences(expected[part], found).sum())
            positions += len(found)
    length = max(sums["length"], 1e-30)
    relative = (sums["off"] / length) ** 0.5
    correlation = sums["product"] / max((length * sums["own"]) ** 0.5, 1e-30)
    kept, noise = None, 0.0
    if (sums["change"] / length) ** 0.5 > _FAINT:
        kept = sums["along"] / sums["change"]
        noise = max(0.0, sums["moved"] / sums["change"] - kept * kept) ** 0.5
    return Closeness(positions, relative, same / positions, divergence / positions, correlation, kept, noise)


def _pieces(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, len(batch), _POSITIONS):
            yield batch[start : start + _POSITIONS]


def _centred(logits: Any) -> Any:
    """In float64 and without each position's mean, which changes no probability."""
    import numpy as np

    wide = logits.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    return wide


def judge(path: Path, near: Closeness, types: set[str]) -> None:
    """Raise Unverified where the weights are not those that were trained."""
    known = _EXACT | _FINE
    limit = max(known[name] for name in types) if types <= known.keys() else None
    # Written so that a value that is not a number fails.
    if not (near.relative <= limit if limit else near.correlation >= _RELATED):
        expected = f"at most {100 * limit:.0f}% is expected" if limit else "they have nothing in common"
        raise Unverified(
            f"{path.as_posix()}: its weights are not those of the training model: {near.text()}",
            f"{expected}; please report it with the command that made it",
        )
    if near.kept is not None and not types & _TERNARY and not abs(1 - near.kept) <= max(_LOST, _ASTRAY * near.noise):
        raise Unverified(
            f"{path.as_posix()}: its weights are not those of the training model: {near.text()}",
            "the adapter is not in it as it was trained; please report it with the command that made it",
        )
