"""Tools and calls of them, from the ways in which data sets write them to the one that chat templates take.

A template gets `tools` as JSON schemas of functions, and a call as {"type": "function", "function": {"name": ...,
"arguments": {...}}}, with its arguments as an object (transformers, "Tool use" in "Chat templates").
"""

from __future__ import annotations

import json
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows.texts import is_set


def of_column(value: Any, where: str) -> list[Any] | None:
    """The tools of a row: a list, or JSON of one. None where there are none. Raises BadRow."""
    if not is_set(value):
        return None
    if isinstance(value, str):
        value = _json(value, where)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"{where} is {type(value).__name__}, not a list of tools")
    return [tool(one, f"{where}: tool {number}") for number, one in enumerate(value, 1)] or None


def tool(value: Any, where: str) -> dict[str, Any]:
    """A tool as templates take it. Raises BadRow."""
    # What is JSON has only the nulls that somebody wrote.
    given = _json(value, where) if isinstance(value, str) else _without_nulls(value)
    if isinstance(given, dict) and isinstance(given.get("function"), dict):
        function, rest = given["function"], given
    else:
        function, rest = given, {}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(f'{where} has no name; one is {{"name": ..., "description": ..., "parameters": {{...}}}}')
    if isinstance(function.get("parameters"), str):
        function = {**function, "parameters": _json(function["parameters"], f"{where}: parameters")}
    if rest.get("type", "function") != "function":
        raise BadRow(f"{where} is of the type {rest['type']!r}; only functions can be called")
    _check_text(function, where)
    return {"type": "function", "function": function}


def calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls of an assistant's turn, from `tool_calls`, `function_call` or JSON of these. Raises BadRow."""
    value = _json(value, where) if isinstance(value, str) else value
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise BadRow(f"{where} is {'empty' if value == [] else type(value).__name__}, not a list of calls")
    return [_call(one, f"{where} {number}" if len(value) > 1 else where) for number, one in enumerate(value, 1)]


def _call(call: Any, where: str) -> dict[str, Any]:
    call = _json(call, where) if isinstance(call, str) else call
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(f'{where} names no function; a call is {{"name": ..., "arguments": {{...}}}}')
    given: Any = next(
        (function[key] for key in ("arguments", "parameters", "args") if function.get(key) is not None), {}
    )
    arguments = _json(given, f"{where}: arguments") if isinstance(given, str) and given.strip() else given or {}
    if not isinstance(arguments, dict):
        raise BadRow(f"{where}: arguments are {type(arguments).__name__}, not an object")
    if not isinstance(given, str):
        # What Arrow has filled in: the arguments that other calls have.
        arguments = {key: value for key, value in arguments.items() if value is not None}
    _check_text(arguments, f"{where}: arguments")
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def _json(text: Any, where: str) -> Any:
    if not isinstance(text, str):
        raise BadRow(f"{where} is {type(text).__name__}, not JSON")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    # Hermes and Glaive write Python's literals in places: {'name': ...}.
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise BadRow(f"{where} is not JSON: {text.strip()[:60]!r}") from None


def _check_text(value: Any, where: str) -> None:
    """Raises BadRow for what a template could not write as JSON, or a tokenizer not read."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        lone = isinstance(error, UnicodeEncodeError)
        reason = "half a surrogate pair, which is not a character" if lone else "something that JSON does not have"
        raise BadRow(f"{where} holds {reason}") from None


def _without_nulls(value: Any) -> Any:
    """Without the keys that Arrow has filled in because another tool has them."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
