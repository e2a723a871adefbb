"""Read a model's JSON config files, and check the keys that an export uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from ggufy.errors import ExportError, GgufyError, ModelError
from ggufy.system import collector


class Settings(BaseModel):
    """Some keys of a file. Nothing is converted, so a value that passes is used as it stands; other keys may be any."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


S = TypeVar("S", bound=Settings)


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file, without keys that are null. Raises ExportError."""
    return {key: value for key, value in read_whole(path, ExportError).items() if value is not None}


def read_whole(path: Path, kind: type[GgufyError] = ModelError) -> dict[str, Any]:
    """The JSON object in a file, as it stands there. Raises an error of this kind."""
    try:
        # For a vocabulary of 17 MB this takes half the time of the standard library's.
        with collector.held():
            found = from_json(path.read_bytes(), cache_strings="keys")
    except (OSError, ValueError) as error:
        raise kind(f"{path.as_posix()} cannot be read: {error}", "copy the folder again") from None
    if not isinstance(found, dict):
        raise kind(f"{path.as_posix()} is not a JSON object", "copy the folder again")
    return found


def check(kind: type[S], values: dict[str, Any], path: Path) -> S:
    """The values as `kind`. Raises ExportError that names file, key and value of the first mistake."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _mistake(error, path) from None


def _mistake(error: ValidationError, path: Path) -> ExportError:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        what = f"{key} is missing"
    elif first["type"] == "value_error":
        what = f"{key}: {first['ctx']['error']}"
    else:
        # pydantic says "Input should be a valid integer", "Input should be greater than 0" and so on.
        what = f"{key} {first['msg'].removeprefix('Input ')}, not {first['input']!r:.60}"
    return ExportError(f"{path.as_posix()}: {what}", "copy the folder again, or correct that key")
