"""Confidence intervals of means by bootstrap, and when two models cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

LEVEL = 0.95
RESAMPLES = 10_000
# With fewer pairs even a unanimous result has a chance of over 5% to come from a coin: 2 * 0.5**5.
FEWEST = 6
NO_DIFFERENCE = "no difference"
_CHUNK = 1_000_000


@dataclass(frozen=True)
class Interval:
    """A mean with the interval that holds the true one in 95 of 100 evaluations like this one."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high

    def verdict(self, more: str = "better", less: str = "worse") -> str:
        """What a difference with this interval says, in words: `more` where it is above 0."""
        if self.n < FEWEST:
            return f"too few to tell ({self.n})"
        if self.holds_zero:
            return NO_DIFFERENCE
        return more if self.mean > 0 else less

    def text(self, digits: int = 2) -> str:
        if not math.isfinite(self.low + self.high):
            return f"{self.mean:+.{digits}f}"
        return f"{self.mean:+.{digits}f} ({self.low:+.{digits}f} to {self.high:+.{digits}f})"

    def values(self) -> dict[str, Any]:
        """For the report's JSON, which has no infinity: a bound that is not known is null."""
        known = {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}
        return {**known, "level": LEVEL}


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of `values` with its bootstrap interval; of differences in pairs this is the paired bootstrap.

    Percentiles of the means of resamples, expanded for small samples: a resample of n values varies by (n-1)/n too
    little, and n values know their own spread only as well as Student's t says (Hesterberg, "What Teachers Should Know
    About the Bootstrap", 2015, section 3.2). Without that, ten answers would hold the truth in 90 of 100 cases, not 95.
    Where a few differences are far larger than all others, no interval of so few values is quite wide enough.
    The same values and seed give the same interval. Raises ValueError where there is no value.
    """
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    if n == 0:
        raise ValueError("no values")
    mean = float(data.mean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        picked = random.integers(0, n, size=(min(step, resamples - start), n))
        means[start : start + len(picked)] = data[picked].mean(axis=1)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_t(n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    # The mean of equal values may round differently from resample to resample.
    return Interval(mean, min(float(low), mean), max(float(high), mean), n)


@cache
def student_t(freedom: int, level: float = LEVEL) -> float:
    """The t that a Student variable stays within, either side of 0, with probability `level`.

    Up to 1000 degrees of freedom by bisection of the closed form, Abramowitz and Stegun 26.7.3 and 26.7.4; above that
    by the first terms of 26.7.5, which are then right to 1e-8.
    """
    if freedom > 1000:
        z = NormalDist().inv_cdf((1 + level) / 2)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """The probability of |t| <= sqrt(freedom) * tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    if freedom == 1:
        return 2 * angle / math.pi
    for step in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (step - 1) / step
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
