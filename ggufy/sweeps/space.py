"""The search space of a sweep: `--grid key=a,b` and `--range key=low..high`, their points, refused keys."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from ggufy.errors import RecipeError
from ggufy.recipe.python_values import sections
from ggufy.recipe.schema import LATE_SECTIONS, Recipe
from ggufy.recipe.validation import validate
from ggufy.recipe.yaml_file import Document

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Point = dict[str, Any]
"""Recipe key -> value, as JSON has it."""

GRID_EXAMPLE = "for example --grid lora.r=8,16,32"
RANGE_EXAMPLE = "for example --range train.learning_rate=1e-5..1e-3:log or --range lora.r=8..64:int"
MOST_POINTS = 1_000

_RANGE = re.compile(r"(.+?)\.\.([^:]+)((?::\w+)*)")
_HOW_ONLY = "does not change the adapter, so every trial would be the same training"
_OTHER_ROWS = "changes the held-out conversations or which of their tokens count, so the losses could not be compared"
# Keys that a sweep is of no use for, and why.
_REFUSED = {
    "eval": "only says when and how the held-out loss is measured",
    "train.backend": _HOW_ONLY,
    "train.gpus": _HOW_ONLY,
    "train.save_steps": _HOW_ONLY,
    "train.keep_checkpoints": _HOW_ONLY,
    "train.gradient_checkpointing": _HOW_ONLY,
    "model.max_length": _OTHER_ROWS,
    "data": _OTHER_ROWS,
}
# Of data these may vary where the held-out rows are not counted off after the training rows.
_FREE_DATA = ("data.train_size", "data.shuffle_seed", "data.split")


@dataclass(frozen=True)
class Axis:
    """One key that varies: over `choices`, else from `low` to `high`. `where` is the option that said so."""

    key: str
    where: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    whole: bool = False

    def values(self) -> dict[str, Any]:
        """As it is kept with the sweep."""
        if self.choices:
            return {"key": self.key, "choices": list(self.choices)}
        return {"key": self.key, "low": self.low, "high": self.high, "log": self.log, "whole": self.whole}

    def text(self) -> str:
        """For people: 8, 16, 32 or 1e-05 to 0.001 (log)."""
        if self.choices:
            return ", ".join(map(shown, self.choices))
        return f"{shown(self.low)} to {shown(self.high)}{' (log)' if self.log else ''}"

    def distribution(self, *, ordered: bool) -> BaseDistribution:
        """Optuna's. With `ordered` numbers that are listed become a range, to which numbers can be added later."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices and not (ordered and self.is_numeric):
            return CategoricalDistribution([stored(value) for value in self.choices])
        low, high = (min(self.choices), max(self.choices)) if self.choices else (self.low, self.high)
        whole = all(isinstance(value, int) for value in self.choices) if self.choices else self.whole
        if whole:
            return IntDistribution(int(low), int(high), log=self.log)
        return FloatDistribution(float(low), float(high), log=self.log)

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.choices)

    def read(self, kept: Any) -> Any:
        """The value that Optuna has kept as `kept`. A number drawn is rounded to what a person would write."""
        if self.choices:
            return next((value for value in self.choices if stored(value) == kept), kept)
        if self.whole or isinstance(kept, int):
            return kept
        return min(self.high, max(self.low, float(f"{kept:.3g}")))


def stored(value: Any) -> Any:
    """A value in the form of a choice of Optuna's, which cannot be a list."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def shown(value: Any) -> str:
    """A value for people, and as it can be typed again."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{','.join(map(shown, value))}]" if isinstance(value, list) else str(value)


def text(point: Mapping[str, Any]) -> str:
    """A point for people."""
    return "  ".join(f"{key}={shown(value)}" for key, value in point.items())


def identity(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def axes(base: Recipe, grid: Iterable[str], ranges: Iterable[str]) -> tuple[Axis, ...]:
    """The axes that these options name. Raises RecipeError for the first that cannot be one."""
    found = [_choices(base, given) for given in grid] + [_range(base, given) for given in ranges]
    if not found:
        raise RecipeError("a sweep needs something to vary", f"{GRID_EXAMPLE}; --range is for --sampler tpe")
    for number, axis in enumerate(found):
        for other in found[:number]:
            if axis.key == other.key:
                raise RecipeError(f"{axis.where}: {axis.key} is varied already, by {other.where}", "name each key once")
    return tuple(found)


def points(base: Recipe, varied: Sequence[Axis]) -> Iterator[Point]:
    """Every combination, the last key varying fastest. Each is a right recipe, or RecipeError."""
    count = math.prod(len(axis.choices) for axis in varied)
    if count > MOST_POINTS:
        raise RecipeError(
            f"the grid has {count:,} points, more than {MOST_POINTS:,}", "vary fewer values, or use --sampler tpe"
        )
    where = {axis.key: axis.where for axis in varied}
    for values in itertools.product(*(axis.choices for axis in varied)):
        point = {axis.key: value for axis, value in zip(varied, values, strict=True)}
        apply(base, point, where)
        yield point


def apply(base: Recipe, point: Mapping[str, Any], where: Mapping[str, str] | None = None) -> Recipe:
    """The recipe with these values. Raises RecipeError, which names the option `where` a wrong one came from."""
    document = Document(base.model_dump(mode="json"))
    for dotted, value in point.items():
        section, _, name = dotted.partition(".")
        place = (where or {}).get(dotted, dotted)
        document = Document({section: {name: value}}, {(section,): place, (section, name): place}).under(document)
    return validate(document)


def refuse(base: Recipe, key: str, where: str) -> None:
    """Raise RecipeError for a key that a sweep cannot vary."""
    section = key.partition(".")[0]
    if section in LATE_SECTIONS:
        raise RecipeError(
            f"{where}: {section} only says what is done with a run, so every trial would be the same training",
            "vary keys of lora, train or model",
        )
    apart = base.data.eval_split or base.data.eval_source
    if key in _FREE_DATA and apart:
        return
    reason = _REFUSED.get(key) or _REFUSED.get(section)
    if reason:
        hold = "hold out rows with data.eval_split or data.eval_source, which are always the same"
        hint = (
            hold
            if key in _FREE_DATA
            else f"vary keys of lora, train or model; or set it for all trials with --set {key}=..."
        )
        raise RecipeError(f"{where}: {key} {reason}", hint)


def _choices(base: Recipe, given: str) -> Axis:
    where = f"--grid {given}"
    key, text = _split(given, where, GRID_EXAMPLE)
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise RecipeError(f"{where}: the values are not a list", GRID_EXAMPLE) from None
    if not isinstance(values, list) or not values or not text.strip(", "):
        raise RecipeError(f"{where}: no values", GRID_EXAMPLE)
    read = [_normal(base, key, value, where) for value in values]
    refuse(base, key, where)
    return Axis(key, where, tuple(value for number, value in enumerate(read) if value not in read[:number]))


def _range(base: Recipe, given: str) -> Axis:
    where = f"--range {given}"
    key, text = _split(given, where, RANGE_EXAMPLE)
    found = _RANGE.fullmatch(text.strip())
    flags = found[3].split(":")[1:] if found else []
    if not found or not set(flags) <= {"log", "int"}:
        raise RecipeError(f"{where}: expected key=low..high, with :log or :int after it if wanted", RANGE_EXAMPLE)
    no_number = RecipeError(f"{where}: {key} is not a number", f"list its values: --grid {key}=...")
    section, _, name = key.partition(".")
    if isinstance(base.model_dump().get(section, {}).get(name), bool):
        raise no_number
    low, high = (_normal(base, key, yaml.safe_load(end), where) for end in (found[1], found[2]))
    refuse(base, key, where)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        raise no_number
    whole = "int" in flags or (isinstance(low, int) and isinstance(high, int))
    if whole and (low != int(low) or high != int(high)):
        raise RecipeError(f"{where}: the ends of a range of whole numbers must be whole numbers", RANGE_EXAMPLE)
    if low >= high:
        raise RecipeError(f"{where}: {shown(low)} is not below {shown(high)}", RANGE_EXAMPLE)
    if "log" in flags and low <= 0:
        raise RecipeError(f"{where}: a :log range must begin above 0", RANGE_EXAMPLE)
    return Axis(key, where, (), low, high, "log" in flags, whole)


def _split(given: str, where: str, example: str) -> tuple[str, str]:
    key, equals, text = given.partition("=")
    key = key.strip()
    if not equals or not all(key.partition(".")):
        raise RecipeError(f"{where}: expected section.key=values", example)
    return key, text


def _normal(base: Recipe, key: str, value: Any, where: str) -> Any:
    """A value as the recipe has it, so that 5e-5 and 0.00005 are one. Raises RecipeError."""
    section, _, name = key.partition(".")
    if section in Recipe.model_fields and section not in sections():
        raise RecipeError(f"{where}: {section} is not a section of a recipe", "vary keys of lora, train or model")
    return apply(base, {key: value}, {key: where}).model_dump(mode="json")[section][name]
