"""Functions that a client offers and calls that it sends back, as OpenAI's interface has them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from ggufy.model.tool_schemas import without_nulls

_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class _Function(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A function, with a JSON schema of its arguments."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: _Function
    _given: dict[str, Any] = PrivateAttr(default={})

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, values: Any, made: Any) -> Tool:
        tool: Tool = made(values)
        tool._given = values
        return tool

    @property
    def shown(self) -> dict[str, Any]:
        """As the template gets it: its keys in the client's order, and of nulls, as in training, only values."""
        return {"type": "function", "function": without_nulls(self._given)["function"]}


class _Named(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str


class Named(BaseModel):
    """The one function that has to be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: _Named


class _Made(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, arguments: str) -> str:
        try:
            if not arguments.strip() or isinstance(json.loads(arguments), dict):
                return arguments
        except (ValueError, RecursionError):
            pass
        raise ValueError("is not JSON of an object")


class Called(BaseModel):
    """A call that the assistant made in an earlier turn."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: _Made

    @property
    def message(self) -> dict[str, Any]:
        """As templates take it: with its arguments as an object."""
        arguments = json.loads(self.function.arguments.strip() or "{}")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


def check_choice(offered: list[Tool] | None, choice: str | Named) -> None:
    """Raise ValueError where the choice is not among the tools, or cannot be kept to."""
    names = [tool.function.name for tool in offered or ()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"tools: two of them are called {twice!r}")
    if isinstance(choice, Named):
        if choice.function.name not in names:
            raise ValueError(f"tool_choice: {choice.function.name!r} is none of the tools")
    elif choice == "required" and not names:
        raise ValueError("tool_choice is required, and there are no tools")
    elif choice == "auto" and (strict := next((tool for tool in offered or () if tool.function.strict), None)):
        raise ValueError(
            f"tools: {strict.function.name!r} is strict. Arguments are held to the schema where tool_choice is "
            "required or names the function, and not where the model may also answer with a text"
        )
