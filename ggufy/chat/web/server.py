"""The OpenAI-compatible server for a GGUF: llama-cpp-python's own server, with ggufy's prompts and limits.

Of that server the two endpoints are used that take conversations. Its text completion would read a template's marks in
what a client sends as marks; the conversations go through ggufy's own prompts, which never do.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ggufy.chat.model import ChatModel
from ggufy.chat.web import chat_request, listener
from ggufy.chat.web.grammar import of_calls, of_format
from ggufy.chat.web.limits import Limits, LimitsMiddleware, error, is_loopback
from ggufy.chat.web.tool_answers import Offer
from ggufy.errors import ChatError, GgufyError, MissingExtra
from ggufy.model.tool_calls import Syntax

log = logging.getLogger("ggufy")

_SHORTEST_KEY = 16
_PARAMETERS = {
    "max_tokens_too_large": "max_tokens",
    "context_length_exceeded": "messages",
    "invalid_json_schema": "response_format",
    "invalid_parameters": "tools",
    "invalid_tool_call_id": "messages",
    "parallel_tool_calls": "parallel_tool_calls",
}


@dataclass(frozen=True)
class Asked:
    """Of a request, what llama-cpp-python's server has no place for."""

    prompt: list[int]
    grammar: Any
    offer: Offer | None
    usage: bool


# For the answer that the task is about.
_asked: ContextVar[Asked] = ContextVar("asked")


def check(host: str, key: str | None) -> None:
    """Raise MissingExtra or ChatError for what would be refused, before a model is loaded."""
    try:
        import_module("llama_cpp.server.app")
        import_module("uvicorn")
    except ModuleNotFoundError as missing:
        raise MissingExtra("`ggufy serve`", "serve", str(missing.name)) from None
    if key is None and not is_loopback(host):
        raise ChatError(
            f"{host} can be reached by others, so an API key is needed",
            "set GGUFY_API_KEY or give --api-key-file; or leave out --host",
        )
    if key is not None and (len(key) < _SHORTEST_KEY or not key.isascii()):
        raise ChatError(
            f"the API key is shorter than {_SHORTEST_KEY} characters, or has characters outside ASCII",
            'make one with python -c "import secrets; print(secrets.token_urlsafe())"',
        )


class Service:
    """The interface to one model."""

    def __init__(self, model: ChatModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.name = model.path.stem
        self.ending = threading.Event()
        model.llama.chat_handler = self._answer

    def app(self, host: str, key: str | None) -> Any:
        from llama_cpp.server import app as theirs
        from llama_cpp.server.settings import ServerSettings
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        # Its settings come from the environment of this process where they are not given. A request does not end
        # another one, and what does not pass ggufy's limits asks for no key.
        theirs.set_server_settings(ServerSettings.model_construct(api_key=None, interrupt_requests=False))
        theirs._llama_proxy = self
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
        ]

        async def refused(request: Any, problem: Any) -> Any:
            return error(problem.status_code, f"{request.method} {request.url.path}: {problem.detail}")

        return LimitsMiddleware(
            Starlette(routes=routes, exception_handlers={HTTPException: refused}), self.limits, host, key
        )

    def __call__(self, name: str | None = None) -> Any:
        """What llama-cpp-python's server asks for a model."""
        del name
        return self.model.llama

    def __iter__(self) -> Iterator[str]:
        return iter([self.name])

    async def _models(self, request: Any) -> Any:
        from llama_cpp.server import app as theirs
        from starlette.responses import JSONResponse

        del request
        listed: dict[str, Any] = dict(await theirs.get_models(self))
        made = int(self.model.path.stat().st_mtime)
        return JSONResponse({**listed, "data": [{**one, "created": made} for one in listed["data"]]})

    async def _chat(self, request: Any) -> Any:
        from llama_cpp.server import app as theirs
        from llama_cpp.server.types import CreateChatCompletionRequest
        from starlette.responses import JSONResponse

        try:
            wanted = chat_request.read(await request.body())
        except ChatError as problem:
            return error(400, problem.message, "invalid_request", problem.hint)
        try:
            asked = self._understood(wanted)
            length = self._length(wanted, len(asked.prompt))
        except GgufyError as problem:
            code = problem.hint or "invalid_request"
            return error(400, problem.message, code, _PARAMETERS.get(code))
        if wanted.model not in (None, self.name):
            return error(
                404, f"there is no model {wanted.model!r} here, only {self.name!r}", "model_not_found", "model"
            )
        _asked.set(asked)
        try:
            # Not validated: it was, and this type lets pass what it then leaves out.
            body = CreateChatCompletionRequest.model_construct(**wanted.values(length))
            answer = await theirs.create_chat_completion(request, body)
        except Exception as problem:  # noqa: BLE001 - nothing that goes wrong in there may end the server
            log.warning("%s: %s", type(problem).__name__, problem)
            return error(500, f"{type(problem).__name__}: {problem}")
        return JSONResponse(answer) if isinstance(answer, dict) else answer

    def _understood(self, wanted: chat_request.ChatRequest) -> Asked:
        """Raises ChatError or ModelError for what the model's template, or a grammar, cannot do."""
        llama, offered = self.model.llama, wanted.offered
        offer = None
        grammar = of_format(llama, wanted.response_format)
        if offered:
            syntax = Syntax.of(self.model.template, self.model.day)
            if wanted.parallel_tool_calls and not syntax.several:
                raise ChatError(
                    "parallel_tool_calls: the model's chat template writes one call a turn", "parallel_tool_calls"
                )
            names = frozenset(tool.function.name for tool in wanted.allowed or offered)
            offer = Offer(syntax, names, syntax.several and wanted.parallel_tool_calls is not False)
            grammar = of_calls(llama, wanted.allowed, syntax) if wanted.allowed else grammar
        shown = [tool.shown for tool in offered] or None
        prompt = self.model.prompts.tokens(wanted.conversation, tools=shown)
        return Asked(prompt, grammar, offer, wanted.usage)

    def _length(self, wanted: chat_request.ChatRequest, tokens: int) -> int:
        """How long the answer may be. Raises ChatError where there is no room, or more is asked for than is given."""
        if wanted.length is not None and wanted.length > self.limits.max_tokens:
            raise ChatError(
                f"max_tokens is {wanted.length:,}; this server gives at most {self.limits.max_tokens:,}",
                "max_tokens_too_large",
            )
        if tokens >= self.model.context:
            raise ChatError(
                f"the messages are {tokens:,} tokens long, and the context holds {self.model.context:,}",
                "context_length_exceeded",
            )
        return min(wanted.length or self.limits.max_tokens, self.model.context - tokens)

    def _answer(self, *, llama: Any, stream: bool, seed: int | None, **how: Any) -> Any:
        """The chat handler of llama-cpp-python: a prompt of ggufy's, then its own completion."""
        from llama_cpp import StoppingCriteriaList
        from llama_cpp.llama_chat_format import _convert_completion_to_chat

        asked = _asked.get()
        wanted = (
            *("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"),
            *("stop", "max_tokens"),
        )
        made = llama.create_completion(
            prompt=asked.prompt,
            stream=stream,
            # Without one it would take the same for every request.
            seed=secrets.randbits(31) if seed is None else seed,
            model=self.name,
            grammar=asked.grammar,
            stopping_criteria=StoppingCriteriaList([lambda *_: self.ending.is_set()]),
            **{name: how[name] for name in wanted},
        )
        answer: Any = _convert_completion_to_chat(made, stream=stream)
        if not stream:
            return asked.offer.whole(answer) if asked.offer else answer
        return self._watched(asked.offer.stream(answer) if asked.offer else answer, llama, asked)

    def _watched(self, chunks: Iterator[Any], llama: Any, asked: Asked) -> Iterator[Any]:
        """The pieces; at their end what was used, if that was asked for, or what went wrong."""
        last: dict[str, Any] = {}
        try:
            for last in chunks:
                yield last
        except Exception as problem:  # noqa: BLE001 - the answer has begun: only this can tell its reader
            log.warning("%s: %s", type(problem).__name__, problem)
            yield {"error": {"message": str(problem), "type": "server_error", "param": None, "code": None}}
            return
        if asked.usage:
            prompt = len(asked.prompt)
            # The last token of an answer that was cut is not evaluated any more.
            used = llama.n_tokens - prompt + (last["choices"][0]["finish_reason"] == "length")
            counts = {"prompt_tokens": prompt, "completion_tokens": used, "total_tokens": prompt + used}
            yield {**last, "choices": [], "usage": counts}


def serve(service: Service, place: socket.socket, host: str, key: str | None, ready: Callable[[str], None]) -> None:
    """Answer until Ctrl-C. `ready` gets the address that clients need."""
    try:
        listener.run(service.app(host, key), place, host, lambda address: ready(f"{address}/v1"), service.ending.set)
    finally:
        service.model.close()
