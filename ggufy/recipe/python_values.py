"""Recipe values given in Python: `max_steps=60`, `lora={"r": 8}` or `**{"train.learning_rate": 1e-4}`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

from ggufy.errors import RecipeError
from ggufy.recipe.schema import Recipe
from ggufy.recipe.section import Section
from ggufy.recipe.yaml_file import Document

_HINT = '`lora={"r": 8}` and `**{"lora.r": 8}` name the section; see all keys with `ggufy recipes show NAME`'


def sections() -> dict[str, type[Section]]:
    """The sections of a recipe by name."""
    kinds = {name: field.annotation for name, field in Recipe.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}


def document(values: Mapping[str, Any]) -> Document:
    """The document that these arguments are. Raises RecipeError for a name that no section has, or several have."""
    found: dict[str, Any] = {}
    places: dict[Any, str] = {}
    for name, value in values.items():
        for section, key, one in _assignments(name, value):
            if key in found.setdefault(section, {}):
                raise RecipeError(f"argument {name}: {section}.{key} is given twice", "give it once")
            found[section][key] = os.fspath(one) if isinstance(one, os.PathLike) else one
            places[section, key] = places[(section,)] = f"argument {name}"
    return Document(found, places)


def _assignments(name: str, value: Any) -> list[tuple[str, str, Any]]:
    known = sections()
    if name in known:
        if not isinstance(value, Mapping):
            raise RecipeError(f"argument {name}: a section takes a dict, not {value!r:.60}", _HINT)
        return [(name, str(key), one) for key, one in value.items()]
    section, dot, key = name.partition(".")
    if dot:
        return [(section, key, value)]
    having = [section for section, kind in known.items() if name in kind.model_fields]
    if len(having) == 1:
        return [(having[0], name, value)]
    if having:
        meant = " or ".join(f"{section}.{name}" for section in having)
        raise RecipeError(f"argument {name}: is it {meant}?", f'write {having[0]}={{"{name}": {value!r:.40}}}')
    keys = sorted({*known, *(key for kind in known.values() for key in kind.model_fields)})
    close = difflib.get_close_matches(name, keys, 1)
    raise RecipeError(f"argument {name}: unknown key{f'; did you mean {close[0]}?' if close else ''}", _HINT)
