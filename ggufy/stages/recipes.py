"""Load a recipe for a stage, and check all that can be checked without its model and data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ggufy.errors import ExportError, HubError, RecipeError
from ggufy.hub.contents import names
from ggufy.recipe import recipe
from ggufy.recipe.schema import Recipe


def check(
    what: str | os.PathLike[str] | Recipe, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Recipe:
    """Everything about a recipe that can be known without its model and data. Raises RecipeError."""
    from ggufy.export.gguf import layout

    overrides = tuple(overrides)
    if isinstance(what, Recipe):
        wanted = recipe.changed(what, overrides, values)
    else:
        wanted = recipe.load(what, overrides, values)

    def where(*key: str) -> str:
        return wanted.name if isinstance(what, Recipe) else recipe.place(what, overrides, key)

    try:
        layout.check_quants(wanted.export.quants)
    except ExportError as error:
        message = f"{where('export', 'quants')}: export.quants: {error.message}"
        raise RecipeError(message, "choose from these names") from None
    for key in ("repo", "branch", "tag"):
        try:
            names.check_one(wanted, key, wanted.name)
        except HubError as error:
            raise RecipeError(f"{where('hub', key)}: hub.{key}: {error.message}", error.hint) from None
    return wanted
