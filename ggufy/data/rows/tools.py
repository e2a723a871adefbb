"""Tools and calls of them, from the ways in which data sets write them to the one that chat templates take.

A template gets `tools` as JSON schemas of functions, and a call as {"type": "function", "function": {"name": ...,
"arguments": {...}}}, with its arguments as an object (transformers, "Tool use" in "Chat templates").
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows.texts import is_set
from ggufy.model.template import Message
from ggufy.model.tool_schemas import without_nulls


class Filled(dict[str, Any]):
    """Arguments of a call with nulls in them, which a table may have filled in: those that other calls have."""


def of_column(value: Any, where: str, *, joined: bool = False) -> list[Any] | None:
    """The tools of a row: a list, or JSON of one; `joined` as nulls are. None where there are none. Raises BadRow."""
    if not is_set(value):
        return None
    if isinstance(value, str):
        # What is JSON has only the nulls that somebody wrote.
        value, joined = _json(value, where), False
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"{where} is {type(value).__name__}, not a list of tools")
    return [tool(one, f"{where}: tool {number}", joined=joined) for number, one in enumerate(value, 1)] or None


def tool(value: Any, where: str, *, joined: bool = False) -> dict[str, Any]:
    """A tool as templates take it. Raises BadRow."""
    given, joined = (_json(value, where), False) if isinstance(value, str) else (value, joined)
    if isinstance(given, dict):
        given = without_nulls(given, joined=joined)
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
    written = isinstance(value, str)
    value = _json(value, where) if written else value
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise BadRow(f"{where} is {'empty' if value == [] else type(value).__name__}, not a list of calls")
    places = [f"{where} {number}" if len(value) > 1 else where for number in range(1, len(value) + 1)]
    return [_call(one, place, written=written) for one, place in zip(value, places, strict=True)]


def _call(call: Any, where: str, *, written: bool) -> dict[str, Any]:
    """A call; one that was `written` as JSON has only the nulls that somebody wrote."""
    call, written = (_json(call, where), True) if isinstance(call, str) else (call, written)
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(f'{where} names no function; a call is {{"name": ..., "arguments": {{...}}}}')
    given: Any = next(
        (function[key] for key in ("arguments", "parameters", "args") if function.get(key) is not None), {}
    )
    arguments = _json(given, f"{where}: arguments") if isinstance(given, str) and given.strip() else given or {}
    if not isinstance(arguments, dict):
        raise BadRow(f"{where}: arguments are {type(arguments).__name__}, not an object")
    if not written and not isinstance(given, str) and _holds_null(arguments):
        arguments = Filled(arguments)
    _check_text(arguments, f"{where}: arguments")
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def _holds_null(value: Any) -> bool:
    """Whether a key is null, however deep."""
    if isinstance(value, list):
        return any(map(_holds_null, value))
    return isinstance(value, dict) and any(one is None or _holds_null(one) for one in value.values())


def settle_nulls(messages: Iterable[Message], tools: list[Any] | None, *, joined: bool) -> None:
    """Take out of the calls the nulls that a table has filled in.

    In the rows of a table, which are `joined`, all are; in JSON those of arguments that the function does not have.
    """
    for message in messages:
        for call in message.get("tool_calls", ()):
            function = call["function"]
            if isinstance(given := function["arguments"], Filled):
                known = None if joined else _parameters(function["name"], tools)
                kept = {key: one for key, one in given.items() if one is not None or known is None or key in known}
                function["arguments"] = without_nulls(given, joined=True) if joined else kept


def _parameters(name: str, tools: list[Any] | None) -> Container[str] | None:
    """The parameters of a function; None where it is not known, or takes others too."""
    of_it = (tool["function"].get("parameters") for tool in tools or () if tool["function"]["name"] == name)
    parameters = next(of_it, None)
    if not isinstance(parameters, dict) or parameters.get("additionalProperties"):
        return None
    held = parameters.get("properties")
    return held if isinstance(held, dict) else None


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
