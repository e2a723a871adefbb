"""The Llama family: Llama, and what is made like it.

Follows llama.cpp's `conversion/llama.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt

from ggufy.export.families import family, rope
from ggufy.export.families.family import PAIRED, Family, Planned
from ggufy.export.vocab import Rules


class Config(family.Config):
    """With the defaults of transformers' LlamaConfig."""

    hidden_size: PositiveInt = 4096
    intermediate_size: PositiveInt = 11008
    max_position_embeddings: PositiveInt = 2048
    num_attention_heads: PositiveInt = 32
    num_hidden_layers: PositiveInt = 32
    vocab_size: PositiveInt = 32000


class Llama(Family):
    name, arch = "Llama", "llama"
    settings: ClassVar[type[family.Config]] = Config
    paired: ClassVar[Mapping[str, str]] = PAIRED
    says_head_dim = True
    vocab_rules = Rules.LLAMA
    by_factors: ClassVar[bool] = True
    """Whether llama.cpp reads factors of the rotation from a tensor, as llama3's scaling needs them."""

    def check(self) -> None:
        super().check()
        if self.config["rope"]["rope_type"] == "llama3" and not self.by_factors:
            self.refuse("rope_type is llama3", f"does not scale the rotation of a {self.name} so")

    def read_rope(self, config: dict[str, Any]) -> dict[str, Any]:
        return rope.read(config, self.base / "config.json")

    def say_limits(self) -> None:
        super().say_limits()
        rope.say_limits(self.config["rope"])

    def made(self) -> Iterator[Planned]:
        if self.by_factors and (factors := rope.factors(self.config["rope"], self.head_dim)):
            yield Planned("rope_freqs.weight", None, (len(factors),), made=tuple(factors))

    def add_parameters(self, writer: Any, ftype: int) -> None:
        super().add_parameters(writer, ftype)
        writer.add_vocab_size(self.vocab_size)
        writer.add_rope_dimension_count(self.head_dim)

    def add_rope(self, writer: Any) -> None:
        rope.add(writer, self.config["rope"])
