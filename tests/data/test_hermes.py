"""Hermes' data: tools in the system turn, and calls in the text of answers. What a row becomes is written by hand."""

from __future__ import annotations

import json

import pytest

from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.reader import Reader
from ggufy.recipe.schema import Part

USER, BOT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
F = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
TOOLS = f"<tools>\n[{json.dumps(F)}]\n</tools>"
# As published, and as Qwen's chat template says it.
PUBLISHED = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. "
    "You may call one or more functions to assist with the user query. Don't make assumptions about what values to "
    "plug into functions. Here are the available tools:",
    "Use the following pydantic model json schema for each tool call you will make: {'title': 'FunctionCall', 'type': "
    "'object', 'properties': {'arguments': {'title': 'Arguments', 'type': 'object'}, 'name': {'title': 'Name', 'type': "
    "'string'}}, 'required': ['arguments', 'name']} For each function call return a json object with function name and "
    "arguments within <tool_call></tool_call> XML tags as follows:\n<tool_call>\n{'arguments': <args-dict>, 'name': "
    "<function-name>}\n</tool_call>",
)
THINKING = (
    "You are a function calling AI model. You are provided with function signatures within <tools> </tools> XML tags. "
    "You may call one or more functions to assist with the user query. If available tools are not relevant in "
    "assisting with user query, just respond in natural conversational language. Don't make assumptions about what "
    "values to plug into functions. After calling & executing the functions, you will be provided with function "
    "results within <tool_response> </tool_response> XML tags.",
    "For each function call return a JSON object, with the following pydantic model json schema for each:\n{'title': "
    "'FunctionCall', 'type': 'object', 'properties': {'name': {'title': 'Name', 'type': 'string'}, 'arguments': "
    "{'title': 'Arguments', 'type': 'object'}}, 'required': ['name', 'arguments']}\nEach function call should be "
    "enclosed within <tool_call> </tool_call> XML tags.\nExample:\n<tool_call>\n{'name': <function-name>, 'arguments': "
    "<args-dict>}\n</tool_call>",
)
QWEN = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:",
    "\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> "
    'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
)


def read(system: str | None, answer: str = "A") -> Conversation:
    turns = [USER, {"role": "assistant", "content": answer}]
    found = Reader("messages", Part(source="x")).read(
        {"messages": [{"role": "system", "content": system}, *turns] if system is not None else turns}
    )
    assert isinstance(found, Conversation)
    return found


@pytest.mark.parametrize("words", [PUBLISHED, THINKING, QWEN], ids=["published", "thinking", "qwen"])
@pytest.mark.parametrize("own", ["", "You are Bob, a pirate. Always rhyme."])
@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_hermes_words_go_and_ones_own_stay(words: tuple[str, str], own: str, place: str) -> None:
    first, last = words
    text = {
        "before": f"{own} {first}\n{TOOLS}\n{last}",
        "after": f"{first}\n{TOOLS}\n{last}\n{own}",
        "between": f"{first}\n{TOOLS}\n{own}\n\n{last}",
    }[place]
    found = read(text)
    assert found.tools == [F]
    assert found == [*([{"role": "system", "content": own}] if own else []), USER, BOT]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"You are Bob. You are a function calling AI model. {TOOLS}", "You are Bob."),
        (f"You are a function calling AI model named Bob. {TOOLS}", "You are a function calling AI model named Bob."),
        (f"Monday. Call with <tool_call>. {TOOLS} Speak French.", "Monday. Call with <tool_call>.  Speak French."),
        (f"Be brief.\n\n{QWEN[0]}\n{TOOLS}\n{QWEN[1]}\n\nNever swear.", "Be brief.\n\nNever swear."),
        (f"{PUBLISHED[0]}\n```\n{TOOLS}\n```\nToday is Monday.\n{PUBLISHED[1]}", "Today is Monday."),
        (f"A function signatures expert.\n{TOOLS}", "A function signatures expert."),
    ],
)
def test_only_sentences_that_are_hermes_own_go(text: str, left: str) -> None:
    assert read(text)[0] == {"role": "system", "content": left}


G = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    "text",
    [
        "Write `<tool_call>{json}</tool_call>`.",
        "Write <tool_call>{json}</tool_call> for it.",
        "Between <tool_call> and </tool_call>, or in <tool_call></tool_call>.",
        "Begin with <tool_call>, I would say.",
        'It is <tool_call>{"name": <function-name>, "arguments": <args-dict>}</tool_call>.',
        f"Write `{G}` to call f.",
        f"Like this:\n```\n{G}\n```\nIs that clear?",
        "Like this:\n```\n<tool_call>{'name': ???}</tool_call>\n```",
    ],
)
def test_an_answer_about_the_marks_is_text(text: str) -> None:
    assert read(None, text) == [USER, {"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        (G, "", 1),
        (f"{G}\n{G}", "", 2),
        (f"Sure.\n\n{G}\n Done.", "Sure.\nDone.", 1),
        (f"I write <tool_call>. {G}", "I write <tool_call>.", 1),
        (f"It is `f`.\n{G}", "It is `f`.", 1),
        (f"```json\n{G}\n```", "", 1),
    ],
)
def test_calls_are_calls_beside_words(text: str, said: str, calls: int) -> None:
    assert read(None, text) == [USER, {"role": "assistant", "content": said, "tool_calls": [CALL] * calls}]


@pytest.mark.parametrize(
    ("text", "naming"),
    [
        ('<tool_call>{"name": "f"', "turn 2: <tool_call> is not closed"),
        (f'{G}\n<tool_call>{{"name": "f"', "turn 2: <tool_call> is not closed"),
        ('<tool_call>{"name": f}</tool_call>', "turn 2: <tool_call> is not JSON"),
        ("<tool_call>f()</tool_call>", "turn 2: <tool_call> is not JSON"),
        ("<tool_call>\n<function=f>\n</function>\n</tool_call>", "turn 2: <tool_call> is not JSON"),
        ("<tool_call>{}</tool_call>", "is not JSON|names no function"),
    ],
)
def test_what_was_to_be_a_call_and_is_none_is_refused(text: str, naming: str) -> None:
    with pytest.raises(BadRow, match=naming):
        read(None, text)
