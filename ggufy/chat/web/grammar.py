"""Grammars for JSON answers and for calls of functions: llama.cpp then samples only tokens that the grammar allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ggufy.chat.web.tools import Tool
from ggufy.errors import ChatError
from ggufy.model.tool_calls import Syntax

_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


def of_format(llama: Any, wanted: Any) -> Any:
    """The grammar for OpenAI's `response_format`, or None for free text. Raises ChatError for a useless schema."""
    if wanted is None or wanted.type == "text":
        return None
    from llama_cpp import LlamaGrammar
    from llama_cpp.llama_grammar import JSON_GBNF

    if wanted.type == "json_object":
        return LlamaGrammar.from_string(JSON_GBNF, verbose=False)
    if wanted.json_schema is None:
        raise ChatError("response_format has no json_schema", "invalid_json_schema")
    try:
        found = LlamaGrammar.from_json_schema(json.dumps(wanted.json_schema.json_schema), verbose=False)
    except Exception as error:  # noqa: BLE001 - the converter trips over a wrong schema in many ways
        raise ChatError(f"response_format: the schema cannot be used: {error}", "invalid_json_schema") from None
    if not _usable(llama, found):
        raise ChatError("response_format: the schema cannot be used", "invalid_json_schema")
    return found


def of_calls(llama: Any, allowed: Sequence[Tool], syntax: Syntax) -> Any:
    """The grammar of one call of one of these functions, with arguments by its schema. Raises ChatError."""
    from llama_cpp import LlamaGrammar
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    names = ", ".join(tool.function.name for tool in allowed)
    try:
        apart = [_Schema(tool.function.parameters or _NOTHING, f"call{n}-ref") for n, tool in enumerate(allowed)]
        calls = [_call(tool, one.apart, syntax) for tool, one in zip(allowed, apart, strict=True)]
        schema = {"oneOf": calls, "$defs": {name: part for one in apart for name, part in one.parts.items()}}
        rules = json_schema_to_gbnf(json.dumps(schema)).splitlines()
    except Exception as error:  # noqa: BLE001 - as above
        raise ChatError(f"tools: the parameters of {names} cannot be used: {error}", "invalid_parameters") from None
    [root] = [rule for rule in rules if rule.startswith("root ::= ")]
    lead, tail = json.dumps(syntax.lead, ensure_ascii=False), json.dumps(syntax.tail.rstrip(), ensure_ascii=False)
    whole = [f"root ::= {lead} the-call {tail}", f"the-call ::= {root.removeprefix('root ::= ')}"]
    found = LlamaGrammar.from_string("\n".join([*whole, *(rule for rule in rules if rule != root)]), verbose=False)
    if not _usable(llama, found):
        raise ChatError(f"tools: the parameters of {names} cannot be used", "invalid_parameters")
    return found


def _call(tool: Tool, parameters: Any, syntax: Syntax) -> dict[str, Any]:
    """The schema of a call as the template writes it."""
    # An id, or the like, is any text: the client gets one of ours.
    keys: dict[str, Any] = {key: {"type": "string", "maxLength": 9} for key in syntax.keys}
    keys |= {syntax.name: {"const": tool.function.name}, syntax.arguments: parameters}
    return {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}


class _Schema:
    """A schema that becomes a part of another one: the parts that it names get names that no other schema has."""

    def __init__(self, schema: dict[str, Any], name: str) -> None:
        self.whole, self.name = schema, name
        self.parts: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self.apart = self._renamed({key: one for key, one in schema.items() if key not in ("$defs", "definitions")})

    def _renamed(self, schema: Any) -> Any:
        if isinstance(schema, list):
            return [self._renamed(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        place = schema.get("$ref")
        if not isinstance(place, str):
            return {key: self._renamed(one) for key, one in schema.items()}
        if place not in self._names:
            name = self._names[place] = f"{self.name}{len(self._names)}"
            self.parts[name] = self._renamed(self._part(place))
        return {"$ref": f"#/$defs/{self._names[place]}"}

    def _part(self, place: str) -> Any:
        """Raises ValueError for what is no part of this schema."""
        start, *keys = place.split("/")
        found: Any = self.whole
        for key in keys:
            key = key.replace("~1", "/").replace("~0", "~")
            found = found.get(key) if isinstance(found, dict) else None
        if start != "#" or found is None:
            raise ValueError(f"{place} is no part of the schema")
        return found


def _usable(llama: Any, grammar: Any) -> bool:
    """Whether llama.cpp can read it: it gives nothing for one that it cannot, and would then read that nothing."""
    from llama_cpp import llama_sampler_free, llama_sampler_init_grammar

    trial = llama_sampler_init_grammar(llama._model.vocab, grammar._grammar.encode(), grammar._root.encode())
    if trial:
        llama_sampler_free(trial)
    return bool(trial)
