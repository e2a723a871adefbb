"""The model families that ggufy exports itself, in one pass: one file each.

All others go by way of llama.cpp's converter (`ggufy/export/converter/`).
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy.errors import ExportError
from ggufy.model import architecture, config_files, text_part
from ggufy.model.safetensors import Checkpoint

if TYPE_CHECKING:
    from ggufy.export.families.family import Family

FAMILIES = {
    "LlamaForCausalLM": "llama:Llama",
    "MistralForCausalLM": "mistral:Mistral",
    "Qwen2ForCausalLM": "qwen2:Qwen2",
    "Qwen3ForCausalLM": "qwen3:Qwen3",
    "SmolLM3ForCausalLM": "smollm3:SmolLM3",
    "GraniteForCausalLM": "granite:Granite",
    "Gemma2ForCausalLM": "gemma2:Gemma2",
    "Gemma3ForCausalLM": "gemma3:Gemma3",
    "Phi3ForCausalLM": "phi3:Phi3",
}
"""By the architecture in config.json: the module here and the class in it."""


def read(base: Path) -> Family:
    """The family of a base folder, with its config.json. Raises ExportError where it has none here."""
    name = architecture.of(text_part.settings(config_files.read(base / "config.json")))
    if name not in FAMILIES:
        raise ExportError(
            f"{base.as_posix()}: the architecture {name} is not one that ggufy exports in one pass; "
            f"those are {', '.join(FAMILIES)}",
            "`ggufy export` takes others by way of llama.cpp's converter",
        )
    module, _, kind = FAMILIES[name].partition(":")
    made: Family = getattr(importlib.import_module(f"{__name__}.{module}"), kind)(base)
    return made


def opened(base: Path) -> tuple[Family, Checkpoint]:
    """The family and the tensors of a base folder, as transformers loads them. Raises ExportError or ModelError."""
    from ggufy.export.families import loading

    family = read(base)
    known = replace(family.shape, tied=False).tensors()
    weights = text_part.weights(Checkpoint.open(base), config_files.read(base / "config.json"))
    family.config, weights = loading.loaded(family.config, weights, known)
    return family, weights
