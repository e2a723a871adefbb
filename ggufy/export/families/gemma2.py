"""Gemma 2: norms learnt as their difference to 1, four a layer; soft caps; every other layer sees a window.

As `conversion/gemma.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from ggufy.export.families import family, llama
from ggufy.export.families.llama import Llama
from ggufy.export.vocab import Rules
from ggufy.model import config_files
from ggufy.model.llama3 import Shape


class Config(llama.Config):
    """With the defaults of transformers' Gemma2Config."""

    hidden_activation: str = "gelu_pytorch_tanh"
    hidden_size: PositiveInt = 2304
    intermediate_size: PositiveInt = 9216
    max_position_embeddings: PositiveInt = 8192
    num_attention_heads: PositiveInt = 8
    num_hidden_layers: PositiveInt = 26
    num_key_value_heads: PositiveInt | None = 4
    head_dim: PositiveInt | None = Field(256, multiple_of=2)
    tie_word_embeddings: bool = True
    vocab_size: PositiveInt = 256000
    attn_logit_softcapping: PositiveFloat | None = 50.0
    final_logit_softcapping: PositiveFloat | None = 30.0
    query_pre_attn_scalar: PositiveFloat = 256
    sliding_window: PositiveInt | None = 4096
    layer_types: list[str] | None = None
    use_bidirectional_attention: bool = False


@dataclass(frozen=True)
class Gemma2Shape(Shape):
    def layer(self) -> dict[str, tuple[int, ...]]:
        norm = (self.hidden,)
        return super().layer() | {"pre_feedforward_layernorm": norm, "post_feedforward_layernorm": norm}


class Gemma2(Llama):
    name, arch = "Gemma 2", "gemma2"
    settings: ClassVar[type[family.Config]] = Config
    shape_type: ClassVar[type[Shape]] = Gemma2Shape
    paired: ClassVar[Mapping[str, str]] = {}
    says_head_dim, by_factors, vocab_rules = False, False, Rules.GEMMA
    always_tied = True
    activation = ("hidden_activation", "gelu_pytorch_tanh")
    every: ClassVar[int] = 2
    """One of so many layers sees all tokens, the last of them; the others see a window."""
    large: ClassVar[int] = 46
    """The layers of the largest, whose attention llama.cpp scales by the width of the model."""

    def check(self) -> None:
        super().check()
        config = self.config
        layers = config["num_hidden_layers"]
        window, whole = "sliding_attention", "full_attention"
        kinds = [whole if layer % self.every == 0 else window for layer in range(1, layers + 1)]
        if (found := config.get("layer_types")) and found != kinds:
            self.refuse("layer_types is another", f"lets every {self.every}. layer of a {self.name} see all tokens")
        scale = config["hidden_size"] // config["num_attention_heads"] if layers == self.large else self.head_dim
        if config["query_pre_attn_scalar"] != scale:
            self.refuse(
                f"query_pre_attn_scalar is {config['query_pre_attn_scalar']:g}",
                f"scales the attention of a {self.name} with {layers} layers by {scale}",
            )
        if config["use_bidirectional_attention"]:
            self.refuse("use_bidirectional_attention is true", f"lets no token of a {self.name} see those after it")
        if config["attention_bias"]:
            self.refuse("attention_bias is true", f"knows no bias in the attention of a {self.name}")
        self.check_rotation()

    def check_rotation(self) -> None:
        rope = self.config["rope"]
        if rope["rope_type"] != "default" or rope["rope_theta"] != 10000:
            self.refuse(
                f"rope_type is {rope['rope_type']} and rope_theta {rope['rope_theta']:g}",
                "rotates every Gemma 2 by a theta of 10000",
            )
        given = config_files.read_whole(self.path)
        for key in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
            if key in given and given[key] is None:
                self.refuse(f"{key} is null", "needs it for a Gemma 2")

    def shift(self, source: str) -> float:
        return 1.0 if source.endswith("norm.weight") else 0.0

    def add_parameters(self, writer: Any, ftype: int) -> None:
        config = self.config
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_file_type(ftype)
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        writer.add_sliding_window(config["sliding_window"])
