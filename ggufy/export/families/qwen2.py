"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and with rotary halves left apart. As `conversion/qwen.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import PositiveInt

from ggufy.export.families import llama
from ggufy.export.families.family import Family
from ggufy.export.families.llama import Llama
from ggufy.export.vocab import Rules
from ggufy.model.llama3 import Shape


class Config(llama.Config):
    """With the defaults of transformers' Qwen2Config."""

    intermediate_size: PositiveInt = 22016
    max_position_embeddings: PositiveInt = 32768
    num_key_value_heads: PositiveInt | None = 32
    vocab_size: PositiveInt = 151936
    use_sliding_window: bool = False


@dataclass(frozen=True)
class Qwen2Shape(Shape):
    def is_biased(self, module: str) -> bool:
        return module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class Qwen2(Llama):
    name, arch = "Qwen2", "qwen2"
    settings = Config
    shape_type: ClassVar[type[Shape]] = Qwen2Shape
    paired: ClassVar[Mapping[str, str]] = {}
    says_head_dim, by_factors, vocab_rules = False, False, Rules.OTHER

    def check(self) -> None:
        super().check()
        if self.arch == "qwen2":
            self.refuse_own_head_dim()
        if self.config["use_sliding_window"]:
            self.refuse("use_sliding_window is true", f"lets every layer of a {self.name} see all tokens")

    def add_parameters(self, writer: Any, ftype: int) -> None:
        Family.add_parameters(self, writer, ftype)
