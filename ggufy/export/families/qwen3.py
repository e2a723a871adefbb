"""Qwen3, dense: Qwen2 without its biases, and with a norm of every head of q and k. As `conversion/qwen.py`."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, PositiveInt

from ggufy.export.families import qwen2
from ggufy.export.families.qwen2 import Qwen2
from ggufy.model.llama3 import Shape


class Config(qwen2.Config):
    """With the defaults of transformers' Qwen3Config."""

    head_dim: PositiveInt | None = Field(128, multiple_of=2)


@dataclass(frozen=True)
class Qwen3Shape(Shape):
    def layer(self) -> dict[str, tuple[int, ...]]:
        norm = (self.head_dim,)
        return super().layer() | {"self_attn.q_norm": norm, "self_attn.k_norm": norm}


class Qwen3(Qwen2):
    name, arch = "Qwen3", "qwen3"
    settings = Config
    shape_type = Qwen3Shape

    def check(self) -> None:
        super().check()
        if self.config["attention_bias"]:
            self.refuse("attention_bias is true", "knows no bias in the attention of a Qwen3")
