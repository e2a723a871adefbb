"""Test rows that are hard to quantize, and so expose a kernel that differs from llama.cpp's in any step.

Ordinary weights seldom do. A fused multiply-add changes a Q4_0 block in thousands, and values that lie on the middle
between two levels, or one place beside it, every few blocks.
"""

from __future__ import annotations

import functools
from typing import Any

COLUMNS = 512
"""A multiple of every type's block."""

_STEPS = (4.0, 8.0, 16.0, 32.0, 127.0, 1.5, 7.5, 15.5)
"""Levels from zero to the extreme in Q3_K, Q4_0, Q5_0, Q6_K, Q8_0; half of those between two ends in Q2_K to Q5_K."""
_IQ4 = (-115.5, -93.5, -74.0, -57.0, -42.0, -28.5, -16.0, -4.5, 7.0, 19.0, 31.5, 45.5, 61.0, 79.0, 101.0)
"""The middles of IQ4's levels, of which the extreme is -127."""


@functools.cache
def rows() -> Any:
    """float32 (n, COLUMNS), always the same."""
    import numpy as np

    rng = np.random.default_rng(0)
    made = np.concatenate([_middles(rng, steps) for steps in (*_STEPS, 0.0)] + [_exact(rng), _shapes(rng)])
    return np.ascontiguousarray(made.reshape(-1, COLUMNS))


@functools.cache
def importance() -> Any:
    """Weights of the columns, float32 (COLUMNS,): ordinary, none, and of every size."""
    import numpy as np

    rng = np.random.default_rng(1)
    made = rng.random(COLUMNS, dtype=np.float32) ** 4
    made[64:96] = np.exp(rng.uniform(-40, 40, 32))
    made[96:128] = 0
    made[rng.random(COLUMNS) < 0.1] = 0
    return made


def _middles(rng: Any, steps: float) -> Any:
    """Blocks of an extreme and of middles between its levels, up to two places beside: (128, 32)."""
    import numpy as np

    shape = (128, 32)
    extreme = np.exp(rng.uniform(-6, 1, (128, 1))).astype(np.float32)
    if steps:
        # Of small ones more: only there is a float fine enough for some roundings to show.
        middles = (np.floor((rng.uniform(-1, 1, shape) ** 3 + 1) * steps) + 0.5 - steps) / steps
    else:
        middles = rng.choice(_IQ4, shape) / -127
    # In half of them all is as from float16, which is what an export quantizes.
    extreme[::2] = extreme[::2].astype(np.float16)
    made = (extreme * middles).astype(np.float32)
    beside = np.where(made != 0, rng.integers(-2, 3, shape), 0).astype(np.int32)
    made = (made.view(np.int32) + beside).view(np.float32)
    made[::4] = made[::4].astype(np.float16)
    signs = rng.choice(np.array([-1, 1], np.float32), (128, 1))
    np.put_along_axis(made, rng.integers(0, 32, (128, 1)), extreme, 1)
    return np.asarray(made * signs, np.float32)


def _exact(rng: Any) -> Any:
    """Blocks whose scale is a power of two, with middles and the floats just below and above them: (64, 32)."""
    import numpy as np

    steps = rng.choice(np.array([8, 16, 32, 127], np.float32), (64, 1))
    middles = np.trunc(rng.uniform(-1, 1, (64, 32)) ** 3 * steps).astype(np.float32) + np.float32(0.5)
    toward = rng.choice(np.array([-np.inf, 0, np.inf], np.float32), middles.shape)
    made = np.where(toward == 0, middles, np.nextafter(middles, toward))
    made[:, 7] = -steps[:, 0]
    return made * np.exp2(rng.integers(-12, 3, (64, 1))).astype(np.float32)


def _shapes(rng: Any) -> Any:
    """Constant, zero, tiny, huge, one-signed, nearly flat and mixed blocks, and lone outliers: (512, 32)."""
    import numpy as np

    made = rng.standard_normal((8, 64, 32)).astype(np.float32) * np.float32(0.02)
    made[0] = rng.choice(np.array([0.5, -0.5, 1e-3, -7.0, 65504.0, 0.0], np.float32), (64, 1))
    made[1] = np.where(rng.random((64, 32)) < 0.9, 0, made[1])
    made[2] *= rng.choice(np.array([1e-43, 1e-38, 1e-14, 1e-13, 1e-5], np.float32), (64, 1))
    made[3] *= rng.choice(np.array([1e6, 1e18, 1e25], np.float32), (64, 1))
    made[4] = (np.abs(made[4]) + np.float32(0.1)) * rng.choice(np.array([-1, 1], np.float32), (64, 1))
    made[5] = 1 + rng.integers(-3, 4, (64, 32)) * 2.0**-23
    made[6] *= np.exp(rng.uniform(-12, 6, (64, 1))).astype(np.float32)
    made[7, :, 11] = rng.choice(np.array([-0.5, 0.5, 10, -1e4, 6e4], np.float32), 64)
    return made.reshape(-1, 32)
