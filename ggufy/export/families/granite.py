"""Granite 3 and 4, dense: Llama with four multipliers. As `conversion/granite.py`."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeFloat

from ggufy.export.families import llama
from ggufy.export.families.llama import Llama


class Config(llama.Config):
    """With the defaults of transformers' GraniteConfig."""

    attention_multiplier: NonNegativeFloat = 1.0
    embedding_multiplier: NonNegativeFloat = 1.0
    residual_multiplier: NonNegativeFloat = 1.0
    logits_scaling: NonNegativeFloat = 1.0


class Granite(Llama):
    name, arch = "Granite", "granite"
    settings = Config
    says_head_dim = False

    def check(self) -> None:
        super().check()
        self.refuse_own_head_dim()

    def add_head_dim(self, writer: Any) -> None:
        """The converter leaves it away."""

    def add_parameters(self, writer: Any, ftype: int) -> None:
        super().add_parameters(writer, ftype)
        for key, add in (
            ("attention_multiplier", writer.add_attention_scale),
            ("embedding_multiplier", writer.add_embedding_scale),
            ("residual_multiplier", writer.add_residual_scale),
            ("logits_scaling", writer.add_logit_scale),
        ):
            if self.config[key]:
                add(self.config[key])
