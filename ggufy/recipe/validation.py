"""Validate the values of a recipe file: the result is a Recipe, or one message with every mistake.

Each mistake has its place, its key, what was expected, and the nearest name where a name is wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from ggufy.errors import RecipeError
from ggufy.recipe.schema import Model, Recipe
from ggufy.recipe.section import Section
from ggufy.recipe.yaml_file import Document, Key


def validate(document: Document) -> Recipe:
    """The recipe that a document says. Raises RecipeError with all its mistakes."""
    seen: dict[Key, str] = _fits_together(document)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(document.values)
    except ValidationError as error:
        for problem in error.errors():
            # A union reports once for each of its members, under a longer location; the key is what the user wrote.
            location = _written_key(problem["loc"])
            text = _explain(dict(problem), location, document)
            if location in seen and text not in seen[location]:
                before, _, rest = seen[location].rpartition(", not ")
                seen[location] = f"{before} or {text.partition(': expected ')[2].rpartition(', not ')[0]}, not {rest}"
            seen.setdefault(location, text)
    if recipe is not None and not seen:
        return recipe
    mistakes = [seen[key] for key in sorted(seen, key=lambda key: _line(document.place(key)))]
    hint = "see every key and its meaning with `ggufy recipes show tiny`"
    if len(mistakes) == 1:
        raise RecipeError(mistakes[0], hint)
    listed = "\n".join(f"  {mistake}" for mistake in mistakes)
    raise RecipeError(f"{len(mistakes)} mistakes in the recipe:\n{listed}", hint)


def _fits_together(document: Document) -> dict[Key, str]:
    """Mistakes that lie between two keys, by the key to point at."""

    def value(section: str, key: str) -> Any:
        keys = document.values.get(section)
        return keys.get(key) if isinstance(keys, dict) else None

    found: dict[Key, str] = {}
    apart = value("data", "eval_split") or value("data", "eval_source")
    held_out = str(value("data", "eval_size") or "").strip()
    if held_out.isdecimal() and int(held_out) and value("data", "train_size") is None and not apart:
        key: Key = ("data", "eval_size")
        found[key] = (
            f"{document.place(key)}: data.eval_size: takes the rows after the training rows: set data.train_size,"
            " or hold out a share: 10%"
        )
    if value("data", "eval_split") and value("data", "eval_source"):
        key = ("data", "eval_split")
        found[key] = (
            f"{document.place(key)}: data.eval_split: is a split of data.source; leave it out beside eval_source"
        )
    if value("eval", "steps") and not value("data", "eval_size") and not apart:
        key = ("eval", "steps")
        found[key] = f"{document.place(key)}: eval.steps: needs held-out rows: set data.eval_size or data.eval_split"
    for name in ("keep_best", "early_stopping"):
        if value("train", name) and not value("eval", "steps"):
            key = ("train", name)
            found[key] = f"{document.place(key)}: train.{name}: needs the eval loss during training: set eval.steps"
    budget, longest = (
        value("data", "prompt_tokens"),
        value("model", "max_length") or Model.model_fields["max_length"].default,
    )
    if isinstance(budget, int) and isinstance(longest, int) and budget >= longest:
        key = ("data", "prompt_tokens")
        found[key] = (
            f"{document.place(key)}: data.prompt_tokens: "
            f"{budget:,} of {longest:,} (model.max_length) leave no room for an answer"
        )
    if value("train", "packing") and value("train", "group_by_length"):
        key = ("train", "group_by_length")
        found[key] = (
            f"{document.place(key)}: train.group_by_length: "
            "has no effect with train.packing, whose rows are full; leave one of the two out"
        )
    return found


def _line(place: str) -> int:
    number = place.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def _written_key(location: Sequence[str | int]) -> Key:
    """The part of a location that a user wrote; the rest says which member of a union it was."""
    key: list[str | int] = []
    kind: Any = Recipe
    for part in location:
        origin = get_origin(kind)
        if not (_is_section(kind) or isinstance(part, int) or origin is dict):
            break
        key.append(part)
        kind = _inner(kind, part)
    return tuple(key)


def _inner(kind: Any, part: str | int) -> Any:
    """The type of a section's key, or of a list's item."""
    if _is_section(kind):
        found = kind.model_fields[part].annotation if part in kind.model_fields else None
        # A section that may be left out.
        inner = [one for one in get_args(found) if _is_section(one)] if NoneType in get_args(found) else []
        return inner[0] if inner else found
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _explain(problem: dict[str, Any], key: Key, document: Document) -> str:
    where, dotted = document.place(key), ".".join(map(str, key))
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{where}: {dotted}: unknown key; {_did_you_mean(key)}"
    if kind == "missing":
        return f"{where}: {dotted}: missing, and it has no default"
    if kind == "value_error":
        return f"{where}: {dotted + ': ' if dotted else ''}{problem['ctx']['error']}"
    expected = problem["msg"].removeprefix("Input should be ")
    expected = expected.removeprefix("a valid ").replace(", unable to parse string as an integer", "")
    expected = expected.replace(", unable to parse string as a number", "")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        expected = "a section with keys"
    if kind in ("too_short", "string_too_short"):
        expected = "at least one" if kind == "too_short" else "a text that is not empty"
    if kind == "string_pattern_mismatch":
        expected = "letters, digits, '.', '_' and '-'"
    if kind == "finite_number":
        expected = "a finite number"
    if kind == "tuple_type":
        expected = "a list such as [q_proj, v_proj]" if key[-1] == "target_modules" else "a list"
    text = f"{where}: {dotted}: expected {expected}, not {given!r}"
    if kind == "literal_error" and isinstance(given, str):
        choices = [choice.strip(" '") for choice in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        if close := difflib.get_close_matches(given, choices, 1):
            text += f"; did you mean {close[0]}?"
    return text


def _did_you_mean(key: Key) -> str:
    sections = {n: f.annotation for n, f in Recipe.model_fields.items() if _is_section(f.annotation)}
    wrong = str(key[-1])
    if len(key) > 1 and key[0] in sections:
        kind: Any = Recipe
        for part in key[:-1]:
            kind = _inner(kind, part)
        own: list[str] = list(kind.model_fields)
        if close := difflib.get_close_matches(wrong, own, 1):
            return f"did you mean {close[0]}?"
        prefix = f"the keys of {key[0]} are {', '.join(own)}"
    else:
        if close := difflib.get_close_matches(wrong, [*Recipe.model_fields, "extends"], 1):
            return f"did you mean {close[0]}?"
        prefix = f"the sections are {', '.join(sections)}"
    elsewhere = [f"{s}.{k}" for s, t in sections.items() for k in t.model_fields]  # type: ignore[union-attr]
    by_key = {dotted.partition(".")[2]: dotted for dotted in elsewhere}
    if close := difflib.get_close_matches(wrong, list(by_key), 1, 0.75):
        return f"did you mean {by_key[close[0]]}?"
    return prefix


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
