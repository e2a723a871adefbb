"""The model families that ggufy exports itself, in one pass: one file each.

All others go by way of llama.cpp's converter (`ggufy/export/converter/`).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy.errors import ExportError
from ggufy.model import config_files

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
    architecture = architecture_of(base)
    if architecture not in FAMILIES:
        raise ExportError(
            f"{base.as_posix()}: the architecture {architecture} is not one that ggufy exports in one pass; "
            f"those are {', '.join(FAMILIES)}",
            "`ggufy export` takes others by way of llama.cpp's converter",
        )
    module, _, name = FAMILIES[architecture].partition(":")
    made: Family = getattr(importlib.import_module(f"{__name__}.{module}"), name)(base)
    return made


def architecture_of(base: Path) -> str:
    """The first architecture in a base folder's config.json; "none" where it names none. Raises ExportError."""
    names = config_files.read(base / "config.json").get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "none"
