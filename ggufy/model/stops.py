"""The tokens that stop a model: what transformers and llama.cpp end an answer at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ggufy.model import config_files


def named(folder: Path) -> tuple[list[int], str]:
    """The ids that generation_config.json names, else config.json, and which file that was; none: ([], "").

    As `generate` of transformers reads them: a generation_config.json takes the place of what config.json says.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        values = config_files.read_whole(path)
        found = _ids(values.get("eos_token_id")) or _ids((values.get("text_config") or {}).get("eos_token_id"))
        if found:
            return found, name
    return [], ""


def of(folder: Path, eos: int | None) -> tuple[int, ...]:
    """The ids that stop the model of a folder, in order: of its configuration, and of its tokenizer."""
    found, _ = named(folder)
    return tuple(dict.fromkeys([*found, *([] if eos is None else [eos])]))


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int) and not isinstance(number, bool)]
