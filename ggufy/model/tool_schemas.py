"""The functions that a model may call, as chat templates are given them: in training and in `ggufy serve` alike."""

from __future__ import annotations

from typing import Any

# What they hold are values, which may be null. Null under another keyword says nothing: an unset field's.
_VALUES = frozenset(("default", "const", "enum", "example", "examples"))
# What they hold has names of its own, of parameters.
_NAMES = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))


def without_nulls(tool: dict[str, Any], *, joined: bool = False) -> dict[str, Any]:
    """A tool, or its function, without the keys that are null; those that are values of a parameter stay.

    `joined` says that a table's nulls are in it: it has the keys of all tools, so that no null of it was meant.
    """
    found: dict[str, Any] = _no_nulls(tool) if joined or _is_joined(tool) else _schema(tool)
    return found


def _schema(value: Any) -> Any:
    if isinstance(value, list):
        return [_schema(one) for one in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, one in value.items():
        if one is None:
            if key in ("default", "const"):
                found[key] = one
        elif key in _VALUES:
            found[key] = one
        else:
            named = key in _NAMES and isinstance(one, dict)
            found[key] = {name: _schema(held) for name, held in one.items()} if named else _schema(one)
    return found


def _is_joined(value: Any) -> bool:
    """Whether a parameter is null, which none can be: one that only another tool of the table has."""
    if isinstance(value, list):
        return any(map(_is_joined, value))
    if not isinstance(value, dict):
        return False
    held = [one for key, one in value.items() if key in _NAMES and isinstance(one, dict)]
    return any(None in one.values() for one in held) or any(
        _is_joined(one) for key, one in value.items() if key not in _VALUES
    )


def _no_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _no_nulls(one) for key, one in value.items() if one is not None}
    return [_no_nulls(one) for one in value] if isinstance(value, list) else value
