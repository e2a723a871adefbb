"""Where the assistant's answers stand in a rendered conversation, and whether the model is asked as it was trained.

A turn of the assistant is found by rendering: the text before it with the generation prompt, and the text with it. What
is between is what the model has to say. That only holds for a template that keeps to some rules, which are looked at
for each row: text that the template takes away, adds or moves is named, never trained on in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import UNTRAINED, Conversation
from ggufy.errors import ModelError
from ggufy.model.template import Message

Render = Callable[[Conversation, bool], str]
"""The text of a conversation; with true, up to where the assistant begins to speak."""
_SHOWN = 60
# The names under which templates look for reasoning, as transformers' own chat templates have them.
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Answer:
    """A turn of the assistant in the text: characters [start, stop), of which its own words end at `said`."""

    turn: int
    """Its number in the conversation, from 1."""
    start: int
    said: int
    stop: int
    trained: bool
    last: bool
    """It ends the text."""
    trimmed: bool
    """The template takes away the spaces that it begins with."""


def answers(conversation: Conversation, text: str, render: Render, where: str) -> list[Answer]:
    """The turns of the assistant in `text`, which is the whole conversation.

    Raises BadRow where the template leaves out a part of one, ModelError where a model that is asked by this template
    would not see what it was trained on; `where` names the template.
    """
    found = []
    for index, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        before = render(conversation[:index], True)
        last = index == len(conversation) - 1
        after = text if last else render(conversation[: index + 1], False)
        if not after.startswith(before):
            raise ModelError(
                f"{where}: the generation prompt of the chat template is not how an answer begins: it is asked with "
                f"{_end(before)}, and the answer is written as {_end(_common(after, before), after)}",
                "take the template of the model's own Instruct version",
            )
        if not text.startswith(after):
            raise _moved(conversation, index, before, after, text, render, where)
        found.append(_answer(conversation, index, before, after, render, where, last=last))
    return found


def _answer(
    conversation: Conversation, index: int, before: str, after: str, render: Render, where: str, *, last: bool
) -> Answer:
    message = conversation[index]
    written = after[len(before) :]
    content, turn = message["content"].strip(), f"turn {index + 1}"
    at = written.find(content)
    if at < 0 or (message.get("tool_calls") and not _has_calls(message, written)):
        raise BadRow(f"{turn}: the chat template leaves out a part of the answer: {_missing(message, written)}")
    reasoning = message.get("reasoning_content", "").strip()
    if reasoning not in written:
        raise BadRow(f"{turn}: the chat template leaves out the reasoning: {_short(reasoning)}")
    if (not content or written[:at].strip()) and render(conversation[:index], False) == before:
        # What the template writes before an answer would be left to the model to say.
        raise ModelError(
            f"{where}: the chat template has no generation prompt: with add_generation_prompt it ends as without, "
            f"so the model would be asked without {_short(written[:at] or written)}",
            "end the template with {% if add_generation_prompt %}, then how an answer begins, then {% endif %}",
        )
    # The indentation of the first line that says something.
    lead = message["content"][: len(message["content"]) - len(message["content"].lstrip())].rpartition("\n")[2]
    return Answer(
        turn=index + 1,
        start=len(before),
        said=len(before) + at + len(content),
        stop=len(after),
        trained=UNTRAINED not in message,
        last=last,
        trimmed=bool(lead) and not written[:at].endswith(lead),
    )


def check_said(conversation: Conversation, text: str, *, answers_too: bool = False) -> None:
    """Raise BadRow where something that is given to the assistant, or with `answers_too` what it says, is not there.

    Turns are looked for one after the other; a system text anywhere, as some templates write it into a later turn.
    """
    at = 0
    for number, message in enumerate(conversation, 1):
        content = message["content"].strip()
        if not content or (message["role"] == "assistant" and not answers_too):
            continue
        if message["role"] == "system":
            others = sum(other["content"].count(content) for other in conversation if other is not message)
            if text.count(content) > others:
                continue
        else:
            found, spelt = text.find(content, at), content
            if found < 0 and message["role"] == "tool":
                # Llama 3.2's template writes a result as JSON.
                spelt = json.dumps(content, ensure_ascii=False)[1:-1]
                found = text.find(spelt, at)
            if found >= 0:
                at = found + len(spelt)
                continue
        raise BadRow(
            f"turn {number}: the chat template leaves out what the {message['role']} turn says: {_short(content)}"
        )
    for tool in conversation.tools or ():
        if tool["function"]["name"] not in text:
            raise BadRow(f"the chat template leaves out the tool {tool['function']['name']!r}")


def fit_to(conversation: Conversation, template: str) -> Conversation:
    """The conversation under the names that this template reads. Raises BadRow for what it has no place for."""
    if conversation.tools and "tools" not in template:
        raise BadRow("the row has tools, and the base's chat template has no place for them")
    if not any("tool_calls" in message or "reasoning_content" in message for message in conversation):
        if any(message["role"] == "tool" for message in conversation) and "tool" not in template:
            raise BadRow("the row has a tool's answers, and the base's chat template has no place for them")
        return conversation
    found = Conversation(conversation, conversation.tools)
    for index, message in enumerate(found):
        if "tool_calls" in message and "tool_calls" not in template:
            raise BadRow(f"turn {index + 1} calls a tool, and the base's chat template has no place for calls")
        if "reasoning_content" in message:
            name = next((name for name in _REASONING if name in template), None)
            if name is None:
                raise BadRow(
                    f"turn {index + 1} has reasoning of its own, and the base's chat template has no place for it"
                )
            found[index] = {**message, name: message["reasoning_content"]}
    return found


def texts_of(message: Message) -> list[str]:
    """Everything in a message that somebody else wrote."""
    texts = [message["content"]]
    if "tool_calls" in message:
        texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return [*texts, *(message[key] for key in ("reasoning_content", "name") if key in message)]


def _has_calls(message: Message, written: str) -> bool:
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


def _moved(
    conversation: Conversation, index: int, before: str, after: str, text: str, render: Render, where: str
) -> ModelError:
    if render(conversation[:index], False) == before and render(conversation[: index + 1], True) == after:
        return ModelError(
            f"{where}: the chat template always ends with the generation prompt, also where no answer is asked for",
            "write it only {% if add_generation_prompt %}",
        )
    same = len(_common(after, text))
    return ModelError(
        f"{where}: the chat template writes turn {index + 1} in another way once more turns follow: "
        f"{_short(after[max(0, same - 10) :])} becomes {_short(text[max(0, same - 10) :])}",
        "make a row of each answer, with what came before it; or train on everything: data.train_on: all",
    )


def always_prompts(where: str, rest: str) -> ModelError:
    """Of a template that goes on after the end of an answer, though nothing follows."""
    return ModelError(
        f"{where}: the chat template writes {_short(rest)} after the end of an answer, also where none is asked for",
        "write the generation prompt only {% if add_generation_prompt %}",
    )


def _missing(message: Message, written: str) -> str:
    content = message["content"].strip()
    if content and content not in written:
        # The longest beginning that is there, and what comes after it.
        kept = next((n for n in range(len(content), 0, -1) if n <= 2000 and content[:n] in written), 0)
        return _short(content[kept:] if kept < len(content) else content)
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    return f"the call of {', '.join(names)}"


def _common(one: str, other: str) -> str:
    size = min(len(one), len(other))
    at = next((i for i in range(size) if one[i] != other[i]), size)
    return one[:at]


def _end(text: str, whole: str | None = None) -> str:
    """The last characters of a text, and a few that follow it in the whole."""
    after = "" if whole is None else whole[len(text) : len(text) + 20]
    return repr(text[-30:] + after)


def _short(text: str) -> str:
    return repr(text[:_SHOWN] + ("..." if len(text) > _SHOWN else ""))
