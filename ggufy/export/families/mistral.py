"""Mistral, up to 7B and Nemo: for llama.cpp a Llama. As `conversion/llama.py`.

The first of them see only the last 4,096 tokens (sliding_window). For that the converter writes no key, and llama.cpp
lets them see all.
"""

from __future__ import annotations

from pydantic import PositiveInt

from ggufy.export.families import llama
from ggufy.export.families.llama import Llama


class Config(llama.Config):
    """With the defaults of transformers' MistralConfig."""

    intermediate_size: PositiveInt = 14336
    max_position_embeddings: PositiveInt = 131072
    num_key_value_heads: PositiveInt | None = 8


class Mistral(Llama):
    name = "Mistral"
    settings = Config
