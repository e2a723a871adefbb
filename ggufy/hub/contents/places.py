"""Remove this disk's absolute paths from a run's files before a push: only their last part is kept.

A text of the user's that begins like a path (a prompt, an example, an answer) is none, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# Where a recipe names a base or data: on the Hub or on this disk; * is every item of a list.
_OF_A_RECIPE = ("model.base", "data.source", "data.eval_source", "data.more.*.source")
_PLACES = (
    *_OF_A_RECIPE,
    *(f"recipe.{key}" for key in _OF_A_RECIPE),
    *(f"inputs.recipe.{key}" for key in _OF_A_RECIPE),
    # What run.json says was found there; in a mix, pairs of a name and a commit.
    # The texts of an importance matrix, with their hash.
    "inputs.texts.0",
    *("base.name", "data.name", "data.more.*.0", "data.held_out.0"),
    # Peft's adapter_config.json.
    "base_model_name_or_path",
)


def last_part(value: str) -> str:
    """A place as others may see it: the last part of an absolute path; anything else unchanged."""
    if "\n" not in value:
        for kind in (PurePosixPath, PureWindowsPath):
            if value.startswith("~") or (kind(value).is_absolute() and kind(value).name):
                return kind(value).name
    return value


def without_places(values: Any) -> Any:
    """A recipe, a run's record, a stamp or peft's configuration with the last part of each path in its place."""
    for key in _PLACES:
        values = _shortened(values, key.split("."))
    return values


def _shortened(values: Any, keys: list[str]) -> Any:
    if not keys:
        return last_part(values) if isinstance(values, str) else values
    first, rest = keys[0], keys[1:]
    if isinstance(values, Mapping):
        return {key: _shortened(value, rest) if key == first else value for key, value in values.items()}
    if isinstance(values, list | tuple):
        wanted = range(len(values)) if first == "*" else [int(first)] if first.isdecimal() else []
        return [_shortened(value, rest) if n in wanted else value for n, value in enumerate(values)]
    return values
