"""A request to the OpenAI-compatible API. Fields that ggufy does not support are refused, never ignored."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from ggufy.chat.model import Sampling
from ggufy.chat.web.tools import Called, Named, Tool, check_choice
from ggufy.errors import ChatError
from ggufy.model.template import Message

_USUAL = Sampling()
Finite = Annotated[float, Field(allow_inf_nan=False)]
# Meant for OpenAI's own accounts; they change no answer.
_ELSEWHERE = ("user", "metadata", "store", "safety_identifier", "service_tier", "prompt_cache_key")


class _Part(BaseModel):
    type: Literal["text"]
    text: str


def _kind(content: Any) -> str:
    """The kind of a message's content, so that an error is about that kind alone."""
    return "parts" if isinstance(content, list) else "text"


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[list[_Part], Tag("parts")], Discriminator(_kind)]
    tool_calls: list[Called] = Field(default=[])
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        """Clients send what they do not use as null, and an answer back with the lists that were empty in it."""
        if not isinstance(values, dict):
            return values
        found = {key: value for key, value in values.items() if value or key in ("role", "content")}
        return {**found, "content": ""} if found.get("tool_calls") and found.get("content") is None else found

    @model_validator(mode="after")
    def _fits_role(self) -> _Said:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant has tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of a tool, and no other, has the tool_call_id of the call that it answers")
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Schema(BaseModel):
    model_config = ConfigDict(extra="ignore")
    json_schema: dict[str, Any] = Field(alias="schema")


class _Format(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class ChatRequest(BaseModel):
    """The sampling that a request does not name is that of `ggufy chat`."""

    model_config = ConfigDict(extra="forbid")

    messages: Annotated[list[_Said], Field(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Finite, Field(ge=0)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    response_format: _Format | None = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[
        Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[Named, Tag("named")],
        Discriminator(lambda choice: "word" if isinstance(choice, str) else "named"),
    ] = "auto"
    parallel_tool_calls: bool | None = None
    n: Literal[1] | None = 1
    logprobs: Literal[False] | None = None
    # llama.cpp's own
    top_k: Annotated[int, Field(ge=0)] = _USUAL.top_k
    min_p: Annotated[Finite, Field(ge=0, le=1)] = _USUAL.min_p
    repeat_penalty: Annotated[Finite, Field(ge=0)] = _USUAL.repeat_penalty

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop is not None and "" in ([stop] if isinstance(stop, str) else stop):
            raise ValueError("an empty text would stop at once")
        return stop

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _usual(cls, choice: Any) -> Any:
        return "auto" if choice is None else choice

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        check_choice(self.tools, self.tool_choice)
        if self.offered and self.response_format is not None and self.response_format.type != "text":
            raise ValueError("an answer in the response_format could be no call: leave it out, or tools")
        return self

    @property
    def conversation(self) -> list[Message]:
        """Raises ChatError where a tool answers what was not asked of it."""
        found: list[Message] = []
        names: dict[str, str] = {}
        for number, said in enumerate(self.messages):
            message: Message = {"role": "system" if said.role == "developer" else said.role, "content": said.text}
            if said.role != "tool":
                names = {call.id: call.function.name for call in said.tool_calls}
            if said.tool_calls:
                message["tool_calls"] = [call.message for call in said.tool_calls]
            if said.tool_call_id is not None:
                if said.tool_call_id not in names:
                    raise ChatError(
                        f"messages.{number}: the tool_call_id {said.tool_call_id!r} is of no call in the assistant's "
                        "message before",
                        "invalid_tool_call_id",
                    )
                message |= {"tool_call_id": said.tool_call_id, "name": names[said.tool_call_id]}
            found.append(message)
        return found

    @property
    def offered(self) -> list[Tool]:
        """The functions that the model is shown: none where it may call none."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    @property
    def allowed(self) -> list[Tool]:
        """Of these, those of which the answer has to call one; none where it may be a text."""
        if isinstance(self.tool_choice, Named):
            return [tool for tool in self.offered if tool.function.name == self.tool_choice.function.name]
        return self.offered if self.tool_choice == "required" else []

    @property
    def length(self) -> int | None:
        """The longest answer that is asked for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def usage(self) -> bool:
        return self.stream and self.stream_options is not None and self.stream_options.include_usage

    def values(self, length: int) -> dict[str, Any]:
        """The fields of llama-cpp-python's own request."""
        return {
            "model": self.model,
            # They go to the model by another way: the type of llama-cpp-python would leave out a part of them.
            "messages": [],
            "stream": self.stream,
            "max_tokens": length,
            "temperature": _USUAL.temperature if self.temperature is None else self.temperature,
            "top_p": _USUAL.top_p if self.top_p is None else self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "stop": self.stop,
            "seed": self.seed,
        }


def read(body: bytes) -> ChatRequest:
    """Raises ChatError, which names the first thing that is wrong; its hint is the name of the parameter."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ChatError("the body is not JSON") from None
    if not isinstance(values, dict):
        raise ChatError("the body is not a JSON object")
    try:
        return ChatRequest.model_validate({key: value for key, value in values.items() if key not in _ELSEWHERE})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            # Of the whole: what it is about comes first in it.
            raise ChatError(said) from None
        if first["type"] == "extra_forbidden":
            raise ChatError(f"{place} is not supported by this server", str(first["loc"][0])) from None
        raise ChatError(f"{place}: {said}", str(first["loc"][0])) from None
