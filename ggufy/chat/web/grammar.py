"""Grammars for JSON answers: llama.cpp then samples only tokens that the grammar allows."""

from __future__ import annotations

import json
from typing import Any

from ggufy.errors import ChatError


def of_format(llama: Any, wanted: Any) -> Any:
    """The grammar for OpenAI's `response_format`, or None for free text. Raises ChatError for a useless schema."""
    if wanted is None or wanted.type == "text":
        return None
    from llama_cpp import LlamaGrammar, llama_sampler_free, llama_sampler_init_grammar
    from llama_cpp.llama_grammar import JSON_GBNF

    if wanted.type == "json_object":
        return LlamaGrammar.from_string(JSON_GBNF, verbose=False)
    if wanted.json_schema is None:
        raise ChatError("response_format has no json_schema", "invalid_json_schema")
    try:
        found = LlamaGrammar.from_json_schema(json.dumps(wanted.json_schema.json_schema), verbose=False)
    except Exception as error:  # noqa: BLE001 - the converter trips over a wrong schema in many ways
        raise ChatError(f"response_format: the schema cannot be used: {error}", "invalid_json_schema") from None
    # llama.cpp gives nothing for a grammar that it cannot read, and would then read that nothing.
    trial = llama_sampler_init_grammar(llama._model.vocab, found._grammar.encode(), found._root.encode())
    if not trial:
        raise ChatError("response_format: the schema cannot be used", "invalid_json_schema")
    llama_sampler_free(trial)
    return found
