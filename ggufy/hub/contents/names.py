"""Names of repositories, branches and tags: filled in from a run, and checked before the Hub is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from ggufy.errors import HubError
from ggufy.recipe.schema import Recipe
from ggufy.recipe.sharing import check_placeholders

_PART = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_REF = re.compile(r"[A-Za-z0-9_](?:[\w./+-]*[A-Za-z0-9_+])?", re.ASCII)


def fill(text: str, run: str, frozen: Mapping[str, Any], conversations: int | None) -> str:
    """A name with {recipe}, {run}, {r} and {n} filled in."""
    try:
        check_placeholders(text)
    except ValueError as error:
        raise HubError(str(error), "to write a brace, double it: {{") from None
    recipe = frozen["recipe"]
    n = recipe["data"]["train_size"] or conversations
    if counts(text) and n is None:
        raise HubError(
            f"{text}: {{n}} is not known before the data is prepared", "set data.train_size, or leave {n} out"
        )
    return text.format(recipe=recipe["name"], run=run, r=recipe["lora"]["r"], n=n)


def counts(text: str | None) -> bool:
    """Whether a name has {n} in it, which may be known only when the data was prepared."""
    return any(field == "n" for _, field, _, _ in Formatter().parse(text or ""))


def check_one(recipe: Recipe, key: str, run: str) -> None:
    """Raises HubError where hub.repo, hub.branch or hub.tag of a recipe cannot be one; whatever {n} will be."""
    text = getattr(recipe.hub, key)
    if text:
        filled = text.format(recipe=recipe.name, run=run, r=recipe.lora.r, n=recipe.data.train_size or 1)
        check_repository(filled) if key == "repo" else check_ref(filled, key)


def check_repository(name: str) -> str:
    """Raises HubError for what cannot be the name of a repository."""
    owner, slash, rest = name.partition("/")
    if not slash:
        raise HubError(f"{name!r} has no user name", f"--repo user/{name or 'name'}")
    good = all(_PART.fullmatch(part) and ".." not in part and "--" not in part for part in (owner, rest))
    if not good or len(name) > 96 or rest.endswith(".git"):
        raise HubError(
            f"{name!r} cannot be the name of a repository",
            "user/name, of letters, digits, '.', '_' and '-', not two of '.' or '-' in a row",
        )
    return name


def check_ref(name: str, what: str) -> str:
    """Raises HubError for what cannot be the name of a branch or tag."""
    if not _REF.fullmatch(name) or ".." in name or "//" in name or name.startswith("refs/") or name.endswith(".lock"):
        raise HubError(f"{name!r} cannot be the name of a {what}", "use letters, digits, '.', '_', '-' and '/'")
    return name


def check_path(path: str) -> str:
    """A path inside a repository or a run. Raises HubError for one that leads out of it."""
    parts = path.split("/")
    odd = any(character in "\\:" or not character.isprintable() for character in path)
    if not path or odd or path.startswith(("/", "~")) or {"", ".", ".."} & set(parts):
        raise HubError(
            f"{path!r} cannot be the name of a file in a repository",
            "nothing was written; the repository is not ggufy's",
        )
    return path
