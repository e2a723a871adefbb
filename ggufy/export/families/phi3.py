"""Phi-3, Phi-3.5 and Phi-4: q, k and v in one matrix, gate and up in another, and factors of the rotation as tensors.

As `conversion/phi.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from ggufy.export.families import llama
from ggufy.export.families.family import Planned
from ggufy.export.families.llama import Llama
from ggufy.export.families.rope import Rope
from ggufy.export.vocab import Rules
from ggufy.model.llama3 import Shape

_LONGROPE = ("longrope", "su", "yarn")
"""Names of one thing, in configs of Phi-3: transformers' Phi3Config takes them all for longrope."""


class LongRope(Rope):
    partial_rotary_factor: PositiveFloat = 1.0
    long_factor: list[float] | None = None
    short_factor: list[float] | None = None


class Config(llama.Config):
    """With the defaults of transformers' Phi3Config."""

    hidden_size: PositiveInt = 3072
    intermediate_size: PositiveInt = 8192
    max_position_embeddings: PositiveInt = 4096
    original_max_position_embeddings: int = Field(4096, gt=1)
    partial_rotary_factor: PositiveFloat = 1.0
    rms_norm_eps: PositiveFloat = 1e-5
    vocab_size: PositiveInt = 32064
    sliding_window: PositiveInt | None = None
    rope_parameters: LongRope | None = None
    rope_scaling: LongRope | None = None


@dataclass(frozen=True)
class Phi3Shape(Shape):
    def layer(self) -> dict[str, tuple[int, ...]]:
        parts = super().layer()
        queries, keys = parts.pop("self_attn.q_proj")[0], parts.pop("self_attn.k_proj")[0]
        del parts["self_attn.v_proj"], parts["mlp.gate_proj"], parts["mlp.up_proj"]
        return parts | {
            "self_attn.qkv_proj": (queries + 2 * keys, self.hidden),
            "mlp.gate_up_proj": (2 * self.ffn, self.hidden),
        }

    def is_biased(self, module: str) -> bool:
        del module
        return False


class Phi3(Llama):
    name, arch = "Phi-3", "phi3"
    settings = Config
    shape_type = Phi3Shape
    paired: ClassVar[Mapping[str, str]] = {}
    sees_all = True
    says_head_dim, by_factors, vocab_rules = False, False, Rules.PHI3

    def read_rope(self, config: dict[str, Any]) -> dict[str, Any]:
        rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
        rope.setdefault("rope_theta", config["rope_theta"])
        rope.setdefault("rope_type", rope.get("type", "default"))
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
        if rope["rope_type"] in _LONGROPE:
            rope["rope_type"] = "longrope"
            rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
        else:
            rope.setdefault("original_max_position_embeddings", config["original_max_position_embeddings"])
        return rope

    @property
    def rotated(self) -> int:
        """How many numbers of a head rotate."""
        rope, config = self.config["rope"], self.config
        return int(rope["partial_rotary_factor"] * config["hidden_size"]) // int(config["num_attention_heads"])

    def check(self) -> None:
        super().check()
        rope = self.config["rope"]
        self.refuse_own_head_dim()
        if rope["rope_type"] not in ("default", "longrope"):
            self.refuse(f"rope_type is {rope['rope_type']}", "does not scale the rotation of a Phi-3 so")
        if rope["rope_type"] == "longrope":
            for key in ("long_factor", "short_factor"):
                if len(rope.get(key) or []) != self.rotated // 2:
                    self.refuse(
                        f"{key} has {len(rope.get(key) or [])} numbers",
                        f"needs one for each of the {self.rotated // 2} pairs that rotate",
                    )
            own = self._attention()
            theirs = rope.get("attention_factor") or self._attention(rope.get("factor"))
            if not math.isclose(theirs, own, rel_tol=1e-6):
                self.refuse(f"the rope's attention_factor is {theirs:.4g}", f"is told {own:.4g}, by the context alone")

    def _attention(self, factor: float | None = None) -> float:
        """What longrope multiplies the attention by; `factor` is of the context, if that is not how it grew."""
        original = self.config["rope"]["original_max_position_embeddings"]
        scale = factor or self.config["max_position_embeddings"] / original
        return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0

    def made(self) -> Iterator[Planned]:
        rope = self.config["rope"]
        if rope["rope_type"] == "longrope":
            for kind in ("long", "short"):
                factors = tuple(float(factor) for factor in rope[f"{kind}_factor"])
                yield Planned(f"rope_factors_{kind}.weight", None, (len(factors),), made=factors)

    def add_keys(self, writer: Any, ftype: int, general: Any) -> None:
        rope = self.config["rope"]
        if rope["rope_type"] == "longrope":
            # The converter adds it with the tensors, before all other keys.
            writer.add_rope_scaling_attn_factors(self._attention())
        super().add_keys(writer, ftype, general)

    def add_parameters(self, writer: Any, ftype: int) -> None:
        config, rope = self.config, self.config["rope"]
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_dimension_count(self.rotated)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_file_type(ftype)
        # 0 tells llama.cpp that it is no Phi-3 of before.
        writer.add_sliding_window(config.get("sliding_window", 0))
