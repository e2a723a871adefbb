"""Recipes: what to train, on what, how, and which files to make of it.

The defaults live in the types; a recipe file states only what differs. Every mistake of a file comes in one message,
each with its line, what was expected, and the nearest name where a name is wrong.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ggufy.errors import RecipeError
from ggufy.recipe import python_values, yaml_file
from ggufy.recipe.schema import LATE_SECTIONS, Data, Recipe, Train
from ggufy.recipe.section import Section
from ggufy.recipe.validation import validate
from ggufy.recipe.yaml_file import Document, Key

__all__ = [
    "LATE_SECTIONS",
    "Data",
    "Recipe",
    "Train",
    "changed",
    "copy",
    "find",
    "from_values",
    "load",
    "names",
    "place",
    "show",
    "source",
]


def folder() -> Path:
    """Where the recipes that come with ggufy are: in the package once installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "recipes"
    return packaged if packaged.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """The names of the recipes that come with ggufy."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe, given by name or by path."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml") or len(given.parts) > 1:
        if not given.is_file():
            raise RecipeError(f"no recipe file {given.as_posix()}", "check the path, or see `ggufy recipes`")
        return given
    path = folder() / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError(
            f"unknown recipe {str(name)!r}; {_nearest(str(name), names())}", "see the names with `ggufy recipes`"
        )
    return path


def load(
    name: str | os.PathLike[str], overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe of that name or file, with `section.key=value` overrides and Python `values` on top."""
    path = find(name)
    document = python_values.document(values or {}).under(_document(path, overrides))
    document.values.setdefault("name", path.stem)
    return validate(document)


def place(name: str | os.PathLike[str], overrides: Iterable[str], key: Key) -> str:
    """Where a key of a recipe was written: `file.yaml:7`, or a --set."""
    return _document(find(name), overrides).place(key)


def changed(wanted: Recipe, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe with overrides and values on top."""
    document = Document(wanted.model_dump(mode="json"))
    for text in overrides:
        document = yaml_file.assignment(text).under(document)
    return validate(python_values.document(values or {}).under(document))


def from_values(values: Mapping[str, Any]) -> Recipe:
    """A recipe from ready values, such as those frozen in a run."""
    return validate(Document(dict(values)))


def source(name: str | os.PathLike[str]) -> str:
    """The text of a recipe's file."""
    return find(name).read_text(encoding="utf-8")


def copy(name: str | os.PathLike[str], target: Path) -> None:
    """Copy a recipe's file, never over another one. A recipe that extends a built-in one still does."""
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{target.as_posix()}: a recipe file ends in .yaml", f"for example {target.as_posix()}.yaml")
    text = source(name)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{target.as_posix()} exists already", "choose another name, or remove it first") from None


def show(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included, each key with its meaning."""
    import yaml

    lines: list[str] = []
    for key in Recipe.model_fields:
        value = getattr(recipe, key)
        if not isinstance(value, Section):
            lines.append(yaml.safe_dump({key: value}, allow_unicode=True, width=1000).rstrip())
            continue
        lines += ["", f"{key}:  # {(type(value).__doc__ or '').strip()}"]
        for inner, field in type(value).model_fields.items():
            plain = value.model_dump(mode="json")[inner]
            text = yaml.safe_dump(plain, default_flow_style=True, width=1000, allow_unicode=True)
            text = text.removesuffix("...\n").rstrip()
            lines.append(f"  {inner}: {text}" + (f"  # {field.description}" if field.description else ""))
    return "\n".join(lines) + "\n"


def _document(path: Path, overrides: Iterable[str]) -> Document:
    document = _with_parents(path, ())
    for text in overrides:
        document = yaml_file.assignment(text).under(document)
    return document


def _with_parents(path: Path, children: tuple[Path, ...]) -> Document:
    builtin = path.parent == folder()
    document = yaml_file.read(path, None if not builtin else f"{path.stem} (built in)")
    parent = document.values.pop("extends", None)
    if parent is None:
        return document
    where = document.places[("extends",)]
    if not isinstance(parent, str):
        raise RecipeError(f"{where}: extends names one recipe or file, not {parent!r}", "for example extends: 3b_qlora")
    beside = path.parent / parent
    parent_path = beside if Path(parent).suffix in (".yaml", ".yml") and beside.is_file() else None
    if parent_path is None:
        try:
            parent_path = find(parent)
        except RecipeError as error:
            raise RecipeError(f"{where}: extends: {error.message}", error.hint) from None
    if parent_path.resolve() in (p.resolve() for p in (*children, path)):
        raise RecipeError(f"{where}: extends goes in a circle, back to {parent}", "remove one of the extends lines")
    inherited = _with_parents(parent_path, (*children, path))
    inherited.values.pop("name", None)
    return document.under(inherited)


def _nearest(wrong: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(wrong, known, 3, 0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"the known ones are {', '.join(known)}"
