"""`general.size_label`, such as 135M, as llama.cpp's converter writes it.

It is what the model card, `_name_or_path` in config.json or the folder's name says of the size, read by gguf-py as the
converter does; else the count of weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path


def labelled(general: Mapping[str, str], folder: Path, shapes: Iterable[tuple[int, ...]]) -> dict[str, str]:
    """Values under `general.` with the size of the model in a folder, which has these tensors, behind its name."""
    label = {"size_label": _label(folder, sum(math.prod(shape) for shape in shapes))}
    found: dict[str, str] = {}
    for key, value in general.items():
        found |= {key: value, **(label if key == "name" else {})}
    return found if "name" in general else label | found


def _label(folder: Path, count: int) -> str:
    """`count` is of weights."""
    import gguf
    import yaml

    try:
        card = gguf.Metadata.load_model_card(folder)
    except (OSError, ValueError, yaml.YAMLError):
        card = {}  # what cannot be read says nothing
    config = gguf.Metadata.load_hf_parameters(folder)
    said = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, config, folder.resolve(), count).size_label
    return str(said) if said is not None else gguf.size_label(count, count, 0, 0)
