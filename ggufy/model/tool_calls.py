"""Calls of functions in what a model says, in the syntax of its own chat template.

Which syntax that is, is told from how the template writes a call that was made up for it: Llama 3.2 writes the JSON
object {"name": ..., "parameters": {...}} and nothing else, Hermes and Qwen put {"name": ..., "arguments": {...}}
between <tool_call> and </tool_call>, Mistral a list of them after [TOOL_CALLS]. No name of a model decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

from ggufy.errors import ModelError
from ggufy.model.template import ChatTemplate, Message

_NAME, _OTHER_NAME, _ID, _SAID = "ggufy_function", "ggufy_other", "ggufyCall", "ggufy said this"
_ARGUMENTS = {"ggufy_argument": "ggufy_value"}
_ASKED: list[Message] = [{"role": "user", "content": "ggufy asks"}]
# Models of Llama 3 begin a call with it where the template has them do so; it says nothing by itself.
_PYTHON_TAG = "<|python_tag|>"
_ARGUMENT_KEYS = ("parameters", "arguments")
# What a call may say beside its name and its arguments.
_BESIDE = {"id", "type"}
_SPECIAL_AT_END = re.compile(r"(<\|[^|<>]*\|>|</s>)\s*$")


@dataclass(frozen=True)
class Call:
    """One call, as a model made it."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Syntax:
    """How a chat template writes a call: a JSON object with something before and after it."""

    lead: str
    """Before the object, as "<tool_call>\\n"; empty for Llama 3.2."""
    keys: dict[str, Any]
    """The object's keys in their order. Of those that are neither the name nor the arguments: the value."""
    name: str
    arguments: str
    tail: str
    several: bool
    """A turn may hold more than one call."""

    @property
    def mark(self) -> str:
        """The text by which a call is known, or nothing: then the answer is the call and nothing else."""
        return self.lead.strip()

    @classmethod
    def of(cls, template: ChatTemplate, day: date) -> Syntax:
        """Raises ModelError where the template has no place for tools, or writes calls in another way than as JSON."""
        probe: list[Any] = [{"type": "function", "function": {"name": _NAME, "description": "", "parameters": {}}}]
        before = template.render(_ASKED, day, generate=True, tools=probe)
        if _NAME not in before:
            raise ModelError(f"{template.where}: the model's chat template has no place for tools")
        call = _message(_NAME)
        written = _said(template, day, before, call, probe)
        found = next(_objects(written), None)
        if found is None:
            raise ModelError(
                f"{template.where}: the model's chat template does not write calls as JSON objects with a name and "
                f"arguments, so what the model says cannot be read: {written[:120]!r}"
            )
        start, stop, value = found
        head, end = _around(_said(template, day, before, {"role": "assistant", "content": _SAID}, probe))
        lead, tail = written[:start].removeprefix(head), written[stop:].rstrip()
        tail = tail.removesuffix(end) if end and tail.endswith(end) else _SPECIAL_AT_END.sub("", tail)
        arguments = next(key for key, one in value.items() if one == _ARGUMENTS)
        name = next(key for key, one in value.items() if one == _NAME)
        return cls(lead.lstrip(), value, name, arguments, tail, _several(template, day, before, call, probe))

    def read(self, text: str, offered: Collection[str] | None = None) -> tuple[str, list[Call]]:
        """What a model says, and its calls of functions that were offered to it: of any where that is not known.

        A text that is no such call stays text: nothing is made of a call of another function, of one that was cut
        short, or of several where the template writes one.
        """
        at = text.find(self.mark) if self.mark else -1
        said, rest = (text[:at], text[at:]) if at >= 0 else ("", text)
        calls = self._calls(rest)
        wrong = offered is not None and any(call.name not in offered for call in calls)
        wrong = wrong or (len(calls) > 1 and not self.several)
        return (text, []) if wrong or not calls else (said.strip(), calls)

    def begins(self, text: str, *, alone: bool) -> int:
        """From which character on a text that goes on may be a call; its length where that is ruled out so far.

        `alone`: nothing was said before this text.
        """
        start = text.lstrip()
        if alone and (not start or start[0] in "{[" or _PYTHON_TAG.startswith(start[: len(_PYTHON_TAG)])):
            return 0
        if not self.mark:
            return len(text)
        at = text.find(self.mark)
        if at < 0:
            # The mark may be there up to a part of it.
            sizes = range(min(len(self.mark) - 1, len(text)), 0, -1)
            at = len(text) - next((size for size in sizes if text.endswith(self.mark[:size])), 0)
        # The spaces before a call are no part of what is said.
        return len(text[:at].rstrip())

    def _calls(self, text: str) -> list[Call]:
        """Of a text that holds calls and nothing else; else none."""
        found: list[Call] = []
        rest = text.strip().removeprefix(_PYTHON_TAG).lstrip()
        while rest:
            # A mark that is a special token of the model's is not in its text.
            rest = rest.removeprefix(self.mark).lstrip()
            try:
                value, end = _DECODER.raw_decode(rest)
            except (ValueError, RecursionError):
                return []
            for one in value if isinstance(value, list) else [value]:
                call = self._call(one)
                if call is None:
                    return []
                found.append(call)
            rest = rest[end:].lstrip().removeprefix(self.tail.strip()).lstrip(" \n,;")
        return found

    def _call(self, value: Any) -> Call | None:
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            value = value["function"]
        if not isinstance(value, dict) or not isinstance(value.get(self.name), str):
            return None
        # Models that learnt the one name of the arguments from one set of data and the other from the next.
        key = next((key for key in (self.arguments, *_ARGUMENT_KEYS) if isinstance(value.get(key), dict)), None)
        if key is None or value.keys() - {self.name, key, *self.keys, *_BESIDE}:
            return None
        try:
            json.dumps(value[key], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return None
        return Call(value[self.name], value[key])


def said(message: Message) -> str:
    """What a turn says, for people: its text and its calls."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    made = [json.dumps({"name": c["name"], "arguments": c["arguments"]}, ensure_ascii=False) for c in calls]
    return "\n".join([*([message["content"]] if message["content"] or not made else []), *made])


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def _message(*names: str) -> Message:
    calls = [
        # Mistral's template asks for nine letters.
        {"id": f"{_ID[:-1]}{at}", "type": "function", "function": {"name": name, "arguments": _ARGUMENTS}}
        for at, name in enumerate(names)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _said(template: ChatTemplate, day: date, before: str, message: Message, tools: list[Any]) -> str:
    """What the template writes for a turn of the assistant after `before`, the prompt for one.

    Some templates have a model begin with a thought, and then do not write it down: what a turn begins with then stays.
    """
    after = template.render([*_ASKED, message], day, tools=tools)
    return after.removeprefix(before if after.startswith(before) else template.render(_ASKED, day, tools=tools))


def _around(plain: str) -> tuple[str, str]:
    """What a template writes before and after everything that the assistant says."""
    before, _, after = plain.partition(_SAID)
    return before, after.rstrip()


def _objects(text: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The objects in a text that hold the made-up call: from where, to where, and what they say."""
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            value, end = None, at
        if isinstance(value, dict) and _NAME in value.values() and _ARGUMENTS in value.values():
            yield at, end, value
        at = text.find("{", at + 1)


def _several(template: ChatTemplate, day: date, before: str, call: Message, tools: list[Any]) -> bool:
    """Whether the template writes two calls into one turn."""
    both = {**call, "tool_calls": _message(_NAME, _OTHER_NAME)["tool_calls"]}
    try:
        written = _said(template, day, before, both, tools)
    except ModelError:
        return False
    return _NAME in written and _OTHER_NAME in written
