"""Table of GPUs to plan with: their memory and training speed. No speed has been measured with ggufy yet.

A step's time is estimated from one published measurement: Qwen-7B (7.7e9 parameters, 32 layers, gradient checkpointing,
batch 1) on an A100, in the README of QwenLM/Qwen: LoRA 0.65 s and Q-LoRA 0.88 s for 2,048 tokens, which is 47% and 35%
of the A100's 312 TFLOPS; and, however few the tokens are, no less than 0.15 s and 0.375 s: 4.7 and 11.7 ms a layer,
in which the GPU waits for Python. Other GPUs are taken to reach the same shares of their makers' figures for dense
16-bit matrices; a T4, which its 70 W hold down, half of them. Expect a factor of two either way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from ggufy.errors import GgufyError


@dataclass(frozen=True)
class Gpu:
    """A GPU to plan for. `gib` is what torch can use of its memory; `tflops` dense 16-bit, from its data sheet."""

    name: str
    title: str
    gib: float
    tflops: float
    bf16: bool = True
    share: float = 1.0
    """What it reaches of the shares above."""

    @property
    def bytes(self) -> int:
        return int(self.gib * 2**30)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", "Tesla T4", 14.6, 65, bf16=False, share=0.5),
        Gpu("v100", "Tesla V100 16 GB", 15.8, 125, bf16=False),
        Gpu("rtx3060", "GeForce RTX 3060 12 GB", 11.8, 25.5),
        Gpu("rtx3090", "GeForce RTX 3090", 23.7, 71),
        Gpu("rtx4070", "GeForce RTX 4070", 11.7, 58),
        Gpu("rtx4090", "GeForce RTX 4090", 23.6, 165),
        Gpu("rtx5090", "GeForce RTX 5090", 31.4, 209),
        Gpu("a10g", "A10G", 22.1, 70),
        Gpu("l4", "L4", 22.0, 121),
        Gpu("l40s", "L40S", 44.4, 362),
        Gpu("a100", "A100 40 GB", 39.4, 312),
        Gpu("a100-80", "A100 80 GB", 79.1, 312),
        Gpu("h100", "H100 80 GB", 79.1, 989),
        Gpu("h200", "H200", 139.8, 989),
    )
}
_REACHED = {"16bit": 0.47, "8bit": 0.35, "4bit": 0.35}
_WAITING = {"16bit": 0.0047, "8bit": 0.0117, "4bit": 0.0117}
HOW = "estimated from a published A100 measurement, scaled by data sheets; not measured with ggufy"


def find(name: str) -> Gpu:
    """A GPU by the name users know it by. Raises GgufyError."""
    plain = name.lower().replace(" ", "").replace("_", "-")
    if plain not in GPUS:
        import difflib

        close = difflib.get_close_matches(plain, GPUS, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise GgufyError(f"unknown GPU {name!r}{meant}", f"choose one of {', '.join(GPUS)}")
    return GPUS[plain]


def like(title: str, memory: int) -> Gpu | None:
    """The row of a GPU that its driver calls `title`, such as NVIDIA A100-SXM4-80GB, and of its memory."""
    words = re.findall(r"[a-z0-9]+", title.lower())
    named = {*words, *(first + second for first, second in pairwise(words))}
    close = [gpu for gpu in GPUS.values() if gpu.name.partition("-")[0] in named and abs(gpu.bytes / memory - 1) < 0.15]
    return min(close, key=lambda gpu: abs(gpu.bytes - memory), default=None)


def seconds(gpu: Gpu, parameters: int, layers: int, tokens: int, load_in: str, *, again: bool) -> float:
    """Estimated seconds of one batch of that many tokens, forward and backward.

    A token costs 2 operations a parameter forward and 2 backward, and `again` 2 with gradient checkpointing; the frozen
    weights have no gradients. Attention's own products are left out: at 2,048 tokens they are a twentieth.
    """
    operations = (6 if again else 4) * parameters * tokens
    computing = operations / (gpu.tflops * 1e12 * _REACHED[load_in] * gpu.share)
    return max(computing, layers * _WAITING[load_in])
