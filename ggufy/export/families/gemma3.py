"""Gemma 3, text: Gemma 2 with norms of q and k in the place of a soft cap, and two thetas. As `conversion/gemma.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from ggufy.export.families import gemma2, rope
from ggufy.export.families.family import Family
from ggufy.export.families.gemma2 import Gemma2, Gemma2Shape
from ggufy.export.families.rope import Rope

_WHOLE, _WINDOW = "full_attention", "sliding_attention"


class Ropes(Rope):
    """How the layers rotate that see all tokens, and those that see a window; or both in one."""

    full_attention: Rope | None = None
    sliding_attention: Rope | None = None


class Config(gemma2.Config):
    """With the defaults of transformers' Gemma3TextConfig."""

    max_position_embeddings: PositiveInt = 131072
    vocab_size: PositiveInt = 262208
    rope_theta: PositiveFloat = 1_000_000.0
    rope_local_base_freq: PositiveFloat = 10_000.0
    rope_parameters: Ropes | None = None
    rope_scaling: Rope | None = None
    sliding_window_pattern: PositiveInt = 6
    attn_logit_softcapping: PositiveFloat | None = None
    final_logit_softcapping: PositiveFloat | None = None


@dataclass(frozen=True)
class Gemma3Shape(Gemma2Shape):
    def layer(self) -> dict[str, tuple[int, ...]]:
        norm = (self.head_dim,)
        return super().layer() | {"self_attn.q_norm": norm, "self_attn.k_norm": norm}


class Gemma3(Gemma2):
    name, arch = "Gemma 3", "gemma3"
    settings = Config
    shape_type = Gemma3Shape
    always_tied = False
    every, large = 6, 62

    def read_rope(self, config: dict[str, Any]) -> dict[str, Any]:
        """Of the layers that see all tokens; under `window` of the others. As transformers' Gemma3TextConfig."""
        both = config.get("rope_parameters") or {}
        whole = {"rope_parameters": (both.get(_WHOLE) or {}) | (config.get("rope_scaling") or {})}
        window = {"rope_parameters": both.get(_WINDOW), "rope_theta": config["rope_local_base_freq"]}
        found, local = (rope.read(config | part | {"rope_scaling": None}, self.path) for part in (whole, window))
        return {**found, "window": local}

    def check(self) -> None:
        super().check()
        if self.config["sliding_window_pattern"] != self.every:
            self.refuse(
                f"sliding_window_pattern is {self.config['sliding_window_pattern']}",
                f"lets every {self.every}. layer of a Gemma 3 see all tokens",
            )

    def check_rotation(self) -> None:
        whole, window = self.config["rope"], self.config["rope"]["window"]
        if whole["rope_type"] not in ("default", "linear"):
            self.refuse(f"rope_type is {whole['rope_type']}", "does not scale the rotation of a Gemma 3 so")
        if window["rope_type"] != "default":
            self.refuse("rope_type of sliding_attention is no default", "does not scale the rotation of these layers")
        if self.config.get("attn_logit_softcapping"):
            self.refuse("attn_logit_softcapping is there", "does not cap the attention of a Gemma 3")

    def add_parameters(self, writer: Any, ftype: int) -> None:
        Family.add_parameters(self, writer, ftype)
        if cap := self.config.get("final_logit_softcapping"):
            writer.add_final_logit_softcapping(cap)
        writer.add_sliding_window(self.config["sliding_window"])

    def add_rope(self, writer: Any) -> None:
        super().add_rope(writer)
        writer.add_rope_freq_base_swa(self.config["rope"]["window"]["rope_theta"])
