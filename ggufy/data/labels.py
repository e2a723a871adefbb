"""Where the assistant's answers stand in a rendered conversation, and whether the model is asked as it was trained.

A turn of the assistant is found by rendering: the text before it with the generation prompt, and the text with it. What
is between is what the model has to say. That only holds for a template that keeps to some rules, which are looked at
for each row: text that the template takes away, adds or moves is named, never trained on in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from ggufy.data.checks import said
from ggufy.data.checks.said import ANY, FEW_LETTERS, Render
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import UNTRAINED, Conversation, Plain, Sample
from ggufy.errors import ModelError
from ggufy.model.template import Message

Encoded = TypeVar("Encoded")
# Of what an answer begins with, so much may be in the generation prompt.
_LONGEST_OPENING = 40


class Rewritten(ModelError):
    """A turn is written or tokenized in another way once more turns follow, or the answer is there."""


@dataclass(frozen=True)
class Answer:
    """A turn of the assistant in the text: characters [start, stop), of which its own words end at `said`."""

    turn: int
    """Its number in the conversation, from 1."""
    start: int
    said: int
    stop: int
    last: bool
    """It ends the text."""
    trimmed: bool
    """The template takes away the spaces that it begins with."""
    shortened: bool
    """It takes away the blank lines that it ends with."""


def answers(
    conversation: Conversation, text: str, render: Render, where: str, ends: Collection[str] = ()
) -> list[Answer]:
    """The turns of the assistant in `text`, which is the whole conversation; of those that are not trained on, none.

    Raises LeftOut where the template leaves out a part of one, Rewritten where it writes one in another way once more
    turns follow, ModelError where a model that is asked by this template would not see what it was trained on. `where`
    names the template, `ends` are the tokens that stop the model.
    """
    found = []
    for index, message in enumerate(conversation):
        if message["role"] != "assistant" or UNTRAINED in message:
            continue
        before = render(conversation[:index], True)
        last = index == len(conversation) - 1
        after = text if last else render(conversation[: index + 1], False)
        if not text.startswith(after):
            after = _unclosed(after, ends)
        if not after.startswith(before):
            raise Rewritten(
                f"{where}: the generation prompt of the chat template is not how an answer begins: it is asked with "
                f"{_end(before)}, and the answer is written as {_end(_common(after, before), after)}",
                "take the template of the model's own Instruct version",
            )
        if not text.startswith(after):
            raise _moved(conversation, index, before, after, text, render, where)
        found.append(_answer(conversation, index, before, after, render, where, last=last))
    return found


def apart(encode: Callable[[Sample], Encoded], sample: Sample) -> list[Encoded]:
    """What is made of a row; of a row for each of its answers where one of them is written or tokenized in another way
    once more turns follow, as it will be asked: templates for reasoning do so.
    """
    try:
        return [encode(sample)]
    except (Rewritten, said.LeftOut):
        rows = [] if isinstance(sample, Plain) else one_each(Conversation(sample, getattr(sample, "tools", None)))
        if not rows:
            raise
        return [encode(row) for row in rows]


def one_each(conversation: Conversation) -> list[Conversation]:
    """A row for each answer that is trained on, with the turns before it, which are not; none if it is one already."""
    trained = [at for at, turn in enumerate(conversation) if turn["role"] == "assistant" and UNTRAINED not in turn]
    if trained == [len(conversation) - 1]:
        return []
    rows = []
    for last in trained:
        row = conversation[: last + 1]
        for at in range(last):
            if row[at]["role"] == "assistant":
                row[at] = {**row[at], UNTRAINED: True}
        rows.append(row)
    return rows


def as_asked(conversation: Conversation, text: str, render: Render) -> str | None:
    """The text of a conversation that ends with its only answer: what is asked, and then how the answer is written.

    Some templates write what is given in another way once the answer is there: without the system text, say. The
    answer follows in both on the same header, after what the last turn before it says; None where it does not.
    """
    asked = render(conversation[:-1], True)
    given, answer = conversation[-2]["content"].strip(), conversation[-1]["content"].strip()
    at = asked.rfind(given)
    header = asked[at:]
    until = text.rfind(answer)
    written = text.rfind(header, 0, max(until, 0))
    if not given or not answer or at < 0 or written < 0 or header == given:
        return None
    return asked + text[written + len(header) :]


def _unclosed(text: str, ends: Collection[str]) -> str:
    """A text without the token that closes a conversation after the end of its last answer, where it has both."""
    for end in ends:
        shorter = text.removesuffix(end).rstrip()
        if shorter != text and any(shorter.endswith(other) for other in ends):
            return shorter
    return text


def _answer(
    conversation: Conversation, index: int, before: str, after: str, render: Render, where: str, *, last: bool
) -> Answer:
    message = conversation[index]
    written = after[len(before) :]
    content, turn = message["content"].strip(), f"turn {index + 1}"
    place = _place(conversation, index, before, written, render)
    if place is None or (message.get("tool_calls") and not said.has_calls(message, written)):
        raise said.LeftOut(
            f"{turn}: the chat template leaves out a part of the answer: {said.missing(message, written)}"
        )
    reasoning = message.get("reasoning_content", "").strip()
    if reasoning not in written:
        raise BadRow(f"{turn}: the chat template leaves out the reasoning: {said.short(reasoning)}")
    begin, until = place
    # A few letters may be found in what the template writes before them.
    if (len(content) < FEW_LETTERS or after[len(before) : begin].strip()) and render(
        conversation[:index], False
    ) == before:
        _refuse_no_prompt(conversation[:index], before, written, render, where)
    if message.get("tool_calls"):
        until = max(until, len(before) + _end_of_calls(conversation, index, before, written, render))
    return Answer(
        turn=index + 1,
        start=len(before),
        said=until,
        stop=len(after),
        last=last,
        trimmed=said.loses_beginning(message["content"], after[:begin]),
        shortened=bool(content) and said.loses_end(message["content"], after[until:]),
    )


def _place(conversation: Conversation, index: int, before: str, written: str, render: Render) -> tuple[int, int] | None:
    """From where to where in `before` and `written`, which is what the template makes of an answer, its own text is;
    None where it is not all there.

    Its words may stand in its reasoning, or in what the template writes around them, so where they are there twice,
    another text in their place shows which are its own. It may begin in the generation prompt, as `<think>` does.
    """
    content, asked = conversation[index]["content"].strip(), len(before)
    at = written.find(content)
    if at < 0:
        return _opened(content, before, written) or _thought(content, before, written)
    if content and written.find(content, at + 1) >= 0:
        other = _instead(conversation, index, {"content": ANY}, before, render) or ""
        shown = other.find(ANY)
        if shown >= 0 and written.startswith(other[:shown] + content):
            at = shown
        else:
            reasoning = conversation[index].get("reasoning_content", "").strip()
            at = max(at, written.find(content, written.find(reasoning) + len(reasoning)))
    return asked + at, asked + at + len(content)


def _opened(content: str, before: str, written: str) -> tuple[int, int] | None:
    """Of a text that the generation prompt begins with."""
    for size in range(min(len(content) - 1, _LONGEST_OPENING), 0, -1):
        if before.endswith(content[:size]) and written.startswith(content[size:]):
            return len(before) - size, len(before) - size + len(content)
    return None


def _thought(content: str, before: str, written: str) -> tuple[int, int] | None:
    """Of a text with its thinking in it, of which the template only writes other spaces around the marks."""
    thinking, mark, answer = content.partition("</think>")
    parts = [thinking.removeprefix("<think>").strip(), mark, answer.strip()]
    if not mark or "<think>" not in before + written:
        return None
    at, begin = 0, -1
    for part in parts:
        at = written.find(part, at)
        if at < 0:
            return None
        begin = at if begin < 0 else begin
        at += len(part)
    return len(before) + begin, len(before) + at


def _end_of_calls(conversation: Conversation, index: int, before: str, written: str, render: Render) -> int:
    """Up to where in `written` the calls of a turn reach: what follows is the same, whatever is called."""
    calls = list(conversation[index]["tool_calls"])
    function = calls[-1]["function"]
    calls[-1] = {**calls[-1], "function": {**function, "name": ANY, "arguments": {ANY: ANY}}}
    own = _instead(conversation, index, {}, before, render)
    other = _instead(conversation, index, {"tool_calls": calls}, before, render)
    if own is None or other is None:
        return written.find(function["name"]) + len(function["name"])
    return len(own) - len(_common(own[::-1], other[::-1]))


def _instead(conversation: Conversation, index: int, changed: Message, before: str, render: Render) -> str | None:
    """What the template makes of a turn that says something else; None where it does not take that."""
    try:
        text = render(
            Conversation([*conversation[:index], {**conversation[index], **changed}], conversation.tools), False
        )
    except BadRow:
        return None
    return text.removeprefix(before) if text.startswith(before) else None


def _refuse_no_prompt(given: Conversation, before: str, written: str, render: Render, where: str) -> None:
    """Raise ModelError where a template that ends with the generation prompt as without writes something before any
    answer: that would be left to the model to say. `written` is an answer.
    """
    given.append({"role": "assistant", "content": ANY})
    head = _common(written, render(given, False).removeprefix(before))
    if head.strip():
        raise ModelError(
            f"{where}: the chat template has no generation prompt: with add_generation_prompt it ends as without, "
            f"so the model would be asked without {said.short(head)}",
            "end the template with {% if add_generation_prompt %}, then how an answer begins, then {% endif %}",
        )


def _moved(
    conversation: Conversation, index: int, before: str, after: str, text: str, render: Render, where: str
) -> ModelError:
    if render(conversation[:index], False) == before and render(conversation[: index + 1], True) == after:
        return ModelError(
            f"{where}: the chat template always ends with the generation prompt, also where no answer is asked for",
            "write it only {% if add_generation_prompt %}",
        )
    same = len(_common(after, text))
    return Rewritten(
        f"{where}: the chat template writes turn {index + 1} in another way once more turns follow: "
        f"{said.short(after[max(0, same - 10) :])} becomes {said.short(text[max(0, same - 10) :])}",
        "take the template of the model's own Instruct version",
    )


def _common(one: str, other: str) -> str:
    size = min(len(one), len(other))
    at = next((i for i in range(size) if one[i] != other[i]), size)
    return one[:at]


def _end(text: str, whole: str | None = None) -> str:
    """The last characters of a text, and a few that follow it in the whole."""
    after = "" if whole is None else whole[len(text) : len(text) + 20]
    return repr(text[-30:] + after)
