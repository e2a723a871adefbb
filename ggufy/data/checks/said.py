"""Whether everything that a row says is in what the chat template makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import UNTRAINED, Conversation
from ggufy.model.template import Message

Render = Callable[[Conversation, bool], str]
"""The text of a conversation; with true, up to where the assistant begins to speak."""
ANY = "\u2042"
"""A text like no other."""
FEW_LETTERS = 16
"""Fewer may also stand in what a template writes by itself."""
_SHOWN = 60
_INSTEAD = "; to use `tool_use`, give the row its tools, or make it the chat_template.jinja of a copy of the base"
# The names under which templates look for reasoning, as transformers' own chat templates have them.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Trimmed(NamedTuple):
    """How many turns of a row lose spaces to the template that may mean something."""

    answers: int = 0
    """Those of the assistant that lose the spaces they begin with."""
    ends: int = 0
    """Those that lose the blank lines they end with; a line break alone is hardly meant."""
    given: int = 0
    """Those of the user or the system that lose the indentation they begin with; a space alone is hardly meant."""


NOTHING = Trimmed()


class LeftOut(BadRow):
    """Something that a turn says is not in what the template makes of the row."""


def check(conversation: Conversation, text: str, render: Render, *, answers_too: bool = False) -> Trimmed:
    """Raise LeftOut where something that is given to the assistant, or with `answers_too` what it says, is not there.
    Otherwise, which of these turns lose spaces.

    Turns are looked for one after the other; a system text anywhere, as some templates write it into a later turn.
    Of an answer that is not trained on, the template may leave out the reasoning.
    """
    at, trimmed = 0, NOTHING
    for number, message in enumerate(conversation, 1):
        content = message["content"].strip()
        if message["role"] == "assistant" and not answers_too:
            content = content.rpartition("</think>")[2].strip() if UNTRAINED in message else ""
        if not content:
            continue
        if message["role"] == "system":
            others = sum(other["content"].count(content) for other in conversation if other is not message)
            if text.count(content) > others and (
                len(content) >= FEW_LETTERS or _has_a_place(conversation, number - 1, render)
            ):
                trimmed = _more(trimmed, message, text, text.find(content))
                continue
        else:
            found, spelt = text.find(content, at), content
            if found < 0 and message["role"] == "tool":
                # Llama 3.2's template writes a result as JSON.
                spelt = json.dumps(content, ensure_ascii=False)[1:-1]
                found = text.find(spelt, at)
            if found >= 0:
                at = found + len(spelt)
                trimmed = _more(trimmed, message, text, found)
                continue
        raise LeftOut(
            f"turn {number}: the chat template leaves out what the {message['role']} turn says: {short(content)}"
        )
    for tool in conversation.tools or ():
        if tool["function"]["name"] not in text:
            raise BadRow(f"the chat template leaves out the tool {tool['function']['name']!r}")
    return trimmed


def _more(trimmed: Trimmed, message: Message, text: str, at: int) -> Trimmed:
    """With what a turn loses whose text, without spaces around it, stands at `at`."""
    content, role = message["content"], message["role"]
    if role == "assistant" and UNTRAINED not in message:
        until = at + len(content.strip())
        answers = trimmed.answers + loses_beginning(content, text[:at])
        return trimmed._replace(answers=answers, ends=trimmed.ends + loses_end(content, text[until:]))
    if role not in ("user", "system") or not content[0].isspace():
        return trimmed
    return trimmed._replace(given=trimmed.given + loses_beginning(content, text[:at], at_least=2))


def loses_beginning(content: str, before: str, at_least: int = 1) -> bool:
    """Whether the first line of a text that says something is not indented, where `before` is what comes before it.

    A tab counts for more than a space.
    """
    lead = content[: len(content) - len(content.lstrip())].rpartition("\n")[2]
    return len(lead.expandtabs()) >= at_least and not before.endswith(lead)


def loses_end(content: str, after: str) -> bool:
    """Whether the blank lines that a text ends with are not in what comes after it."""
    tail = content[len(content.rstrip()) :]
    return tail.count("\n") > 1 and not after.startswith(tail)


def _has_a_place(conversation: Conversation, index: int, render: Render) -> bool:
    """Whether the template writes a turn at all: a word of it may stand in what the template writes by itself."""
    other = Conversation(conversation, conversation.tools)
    other[index] = {**conversation[index], "content": ANY}
    # Some write it only where an answer is asked for.
    return ANY in render(other, False) or ANY in render(other[:-1], True)


def fit_to(conversation: Conversation, template: str, others: Collection[str] = ()) -> Conversation:
    """The conversation under the names that this template reads. Raises BadRow for what it has no place for.

    `others` are the names of more templates that the base has.
    """
    used = "the base's chat template has"
    if others:
        used = "only `default` of the base's chat templates is used, which has"
    instead = _INSTEAD if "tool_use" in others else ""
    if conversation.tools and "tools" not in template:
        raise BadRow(f"the row has tools, and {used} no place for them{instead}")
    if not any("tool_calls" in message or "reasoning_content" in message for message in conversation):
        if any(message["role"] == "tool" for message in conversation) and "tool" not in template:
            raise BadRow(f"the row has a tool's answers, and {used} no place for them{instead}")
        return conversation
    found = Conversation(conversation, conversation.tools)
    for index, message in enumerate(found):
        if "tool_calls" in message and "tool_calls" not in template:
            raise BadRow(f"turn {index + 1} calls a tool, and {used} no place for calls{instead}")
        if "reasoning_content" in message:
            name = next((name for name in _REASONING if name in template), None)
            if name is None:
                raise BadRow(f"turn {index + 1} has reasoning of its own, and {used} no place for it")
            found[index] = {**message, name: message["reasoning_content"]}
    return found


def texts_of(message: Message) -> list[str]:
    """Everything in a message that somebody else wrote."""
    texts = [message["content"]]
    if "tool_calls" in message:
        texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return [*texts, *(message[key] for key in ("reasoning_content", "name") if key in message)]


def has_calls(message: Message, written: str) -> bool:
    return all(call["function"]["name"] in written and _has_values(call, written) for call in message["tool_calls"])


def _has_values(call: dict[str, Any], written: str) -> bool:
    """Whether names and plain values of the arguments are there, as they are or as JSON writes them."""

    def is_there(value: Any) -> bool:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            return True
        spelt = str(value)
        as_json = (json.dumps(spelt, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
        return any(one in written for one in (spelt, *as_json))

    arguments = call["function"]["arguments"]
    return all(name in written and is_there(value) for name, value in arguments.items())


def missing(message: Message, written: str) -> str:
    content = message["content"].strip()
    if content and content not in written:
        # The longest beginning that is there, and what comes after it.
        kept = next((n for n in range(len(content), 0, -1) if n <= 2000 and content[:n] in written), 0)
        return short(content[kept:] if kept < len(content) else content)
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    return f"the call of {', '.join(names)}"


def short(text: str) -> str:
    return repr(text[:_SHOWN] + ("..." if len(text) > _SHOWN else ""))
