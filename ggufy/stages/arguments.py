"""Check the arguments of ggufy's Python functions.

A wrong type or name is a GgufyError of one line, as in a recipe, and not a TypeError from deep inside.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ggufy.errors import GgufyError
from ggufy.recipe.schema import Recipe
from ggufy.runs.run import Run

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """What an argument may be."""

    expected: str
    """For people."""
    read: Callable[[Any], Any]
    """Gives the value to go on with; raises TypeError for another kind of value."""
    hint: str = ""

    @property
    def optional(self) -> Kind:
        return Kind(f"{self.expected}, or None", lambda value: None if value is None else self.read(value), self.hint)


def _only(*types: type, but: tuple[type, ...] = ()) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, types) or isinstance(value, but):
            raise TypeError
        return value

    return read


def _path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise TypeError
    return Path(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TypeError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise TypeError
    texts = tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    return texts


def _one_or_more(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else _texts(value)


def _choice(*known: str) -> Kind:
    def read(value: Any) -> str:
        if value not in known or not isinstance(value, str):
            raise TypeError
        return value

    return Kind(" or ".join(map(repr, known)), read)


TEXT = Kind("a text", _only(str))
FLAG = Kind("True or False", _only(bool))
COUNT = Kind("a whole number from 1", _count)
PATH = Kind("a path", _path)
DAY = Kind("a datetime.date", _only(date, but=(datetime,)))
RECIPE = Kind(
    "a recipe's name, a YAML file or a ggufy.Recipe",
    _only(str, os.PathLike, Recipe),
    'see the names with `ggufy recipes`, such as "tiny"',
)
RUN = Kind(
    "a run's name, a folder, a file or a ggufy.Run", _only(str, os.PathLike, Run), "see the runs with `ggufy runs`"
)
SETTINGS = Kind(
    'a list of texts as --set takes them, such as ["lora.r=8"]',
    _texts,
    'or use `lora={"r": 8}` or `**{"lora.r": 8}`',
)
TYPES = Kind('texts such as ["attn_v=q6_k"]', _one_or_more, "each is PATTERN=TYPE, as for llama-quantize")
QUANTS = Kind('names such as ["q8_0"]', _one_or_more, "use llama.cpp's names; see `ggufy export --help`")

TRAIN = {"what": RECIPE, "run_name": TEXT.optional, "overrides": SETTINGS, "fresh": FLAG, "change_gpus": FLAG}
PLAN = {"what": RECIPE, "overrides": SETTINGS, "gpu": TEXT.optional}
EXPORT = {
    "what": RUN.optional,
    "base": TEXT.optional,
    "out": PATH.optional,
    "quants": QUANTS.optional,
    "merged": _choice("f16", "bf16").optional,
    "imatrix_data": PATH.optional,
    "imatrix_file": PATH.optional,
    "tensor_types": TYPES,
    "ollama": TEXT.optional,
    "kernels": TEXT,
    **dict.fromkeys(("tensor_type_file", "types_from"), PATH.optional),
    **dict.fromkeys(("output_tensor_type", "token_embedding_type"), TEXT.optional),
    **dict.fromkeys(("imatrix_tokens", "split_max_size", "threads"), COUNT.optional),
    **dict.fromkeys(("adapter_gguf", "imatrix", "leave_output_tensor", "pure"), FLAG),
    **dict.fromkeys(("force", "check_files", "check_logits"), FLAG),
}
CHAT = {
    "what": RUN.optional,
    "quant": TEXT.optional,
    "context": COUNT,
    "threads": COUNT.optional,
    "day": DAY.optional,
    "branch": TEXT.optional,
}


def checked(kinds: Mapping[str, Kind], *, others: bool = False) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Look at the arguments of a function before it runs; `others` lets it take keywords that are not named here."""

    def around(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        name = f"ggufy.{function.__name__}"
        rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

        @functools.wraps(function)
        def call(*args: P.args, **named: P.kwargs) -> T:
            unknown = [] if others else [key for key in named if key not in kinds]
            if unknown:
                raise GgufyError(f"{name}: unknown argument {unknown[0]}{_nearest(unknown[0], kinds)}", f"help({name})")
            try:
                bound = signature.bind(*args, **named)
            except TypeError as error:
                raise GgufyError(f"{name}: {error}", f"see its arguments with help({name})") from None
            for place in (bound.arguments, bound.arguments.get(rest, {})):
                for key in kinds.keys() & place.keys():
                    place[key] = _read(name, key, place[key], kinds[key])
            return function(*bound.args, **bound.kwargs)

        return call

    return around


def _read(function: str, key: str, value: Any, kind: Kind) -> Any:
    try:
        return kind.read(value)
    except TypeError:
        hint = kind.hint or f"see its arguments with help({function})"
        raise GgufyError(f"{function}: argument {key}: expected {kind.expected}, not {value!r:.60}", hint) from None


def _nearest(wrong: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(known), 1)
    return f"; did you mean {close[0]}?" if close else f"; those are {', '.join(known)}"
