"""The Llama family: Llama, and what is made like it.

Follows llama.cpp's `conversion/llama.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from ggufy.errors import ExportError
from ggufy.export.families import family
from ggufy.export.families.family import PAIRED, Family, Planned
from ggufy.model.config_files import Settings


class Rope(Settings):
    """What an export uses of config.json's rope_parameters, which older files call rope_scaling."""

    rope_theta: PositiveFloat = 10000.0
    factor: PositiveFloat = 8.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: PositiveInt = 8192


class Config(family.Config):
    """With the defaults of transformers' LlamaConfig."""

    hidden_size: PositiveInt = 4096
    intermediate_size: PositiveInt = 11008
    max_position_embeddings: PositiveInt = 2048
    num_attention_heads: PositiveInt = 32
    num_hidden_layers: PositiveInt = 32
    vocab_size: PositiveInt = 32000
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None


class Llama(Family):
    name, arch = "Llama", "llama"
    settings: ClassVar[type[family.Config]] = Config
    paired: ClassVar[Mapping[str, str]] = PAIRED
    says_head_dim = True
    by_factors: ClassVar[bool] = True
    """Whether llama.cpp reads factors of the rotation from a tensor, as llama3's scaling needs them."""

    def check(self) -> None:
        super().check()
        if str(self.config["rope"]["rope_type"]).lower() == "llama3" and not self.by_factors:
            self.refuse("rope_type is llama3", f"does not scale the rotation of a {self.name} so")

    def read_rope(self, config: dict[str, Any]) -> dict[str, Any]:
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        rope.setdefault("rope_theta", config["rope_theta"])
        rope.setdefault("rope_type", rope.get("type", "default"))
        return rope

    def made(self) -> Iterator[Planned]:
        if self.by_factors and (factors := rope_factors(self.config | {"head_dim": self.head_dim})):
            yield Planned("rope_freqs.weight", None, (len(factors),), made=tuple(factors))

    def add_parameters(self, writer: Any, ftype: int) -> None:
        super().add_parameters(writer, ftype)
        writer.add_vocab_size(self.vocab_size)
        writer.add_rope_dimension_count(self.head_dim)

    def add_rope(self, writer: Any) -> None:
        _add_rope(writer, self.config["rope"])


def rope_factors(config: dict[str, Any]) -> list[float]:
    """llama3 rope scaling as llama.cpp's rope_freqs: 1, the factor, or the blend between, by wavelength.

    In float32, and in the converter's order of operations: PyTorch divides a number by a tensor as the tensor's
    reciprocal times the number.
    """
    import numpy as np

    rope = config["rope"]
    if str(rope["rope_type"]).lower() != "llama3":
        return []
    one, f32 = np.float32(1), np.float32
    dim = config["head_dim"]
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    context, factor = rope.get("original_max_position_embeddings", 8192), rope.get("factor", 8.0)
    exponents = (np.arange(0, dim, 2, dtype=f32) / f32(dim)).astype(np.float64)
    frequencies = one / np.power(np.float64(rope["rope_theta"]), exponents).astype(f32)
    factors = []
    for frequency in frequencies:
        wavelength = (one / frequency) * f32(2 * math.pi)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(float(factor))
        else:
            smooth = ((one / wavelength) * f32(context) - f32(low)) / f32(high - low)
            factors.append(float(one / ((one - smooth) / f32(factor) + smooth)))
    return factors


def _add_rope(writer: Any, rope: dict[str, Any]) -> None:
    import gguf

    kind = str(rope["rope_type"]).lower()
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind not in ("default", "llama3"):
        raise ExportError(f"rope scaling of type {kind} is not exported yet", "known are default, linear and llama3")
    writer.add_rope_freq_base(rope["rope_theta"])
