"""Glaive's function calling data, as published and as converted to turns; what it becomes is written out by hand."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ggufy.data import prepare, source
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.detect import detect
from ggufy.data.rows.reader import Reader
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.errors import DataError
from ggufy.model import tiny
from ggufy.recipe.schema import Data, Part

DAY = date(2026, 3, 7)
LLAMA = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates/meta-llama-Llama-3.2-3B-Instruct.jinja"
RATE = {
    "name": "get_exchange_rate",
    "description": "Get the exchange rate between two currencies",
    "parameters": {
        "type": "object",
        "properties": {"base": {"type": "string"}, "target": {"type": "string"}},
        "required": ["base", "target"],
    },
}
NEWS = {"name": "get_news", "description": "Get the {latest} news", "parameters": {"type": "object", "properties": {}}}
LISTED = f"{json.dumps(RATE, indent=4)}\n\n{json.dumps(NEWS, indent=4)}\n"
PROSE = "You are a helpful assistant with access to the following functions. Use them if required -\n"
NONE = "You are a helpful assistant, with no access to external functions."
CALL = '<functioncall> {"name": "get_exchange_rate", "arguments": \'{"base": "USD", "target": "EUR"}\'}'
END = " <|endoftext|>"
CHAT = (
    f"USER: What is a dollar in euros?\n\n\nASSISTANT: {CALL}{END}\n\n\n"
    'FUNCTION RESPONSE: {"rate": 0.85}\n\n\n'
    f"ASSISTANT: It is 0.85 euros.{END}\n\n\nUSER: Thanks!\n\n\n"
    f"ASSISTANT: You are welcome.\n\nAnything else?{END}\n\n\n"
)
ROW = {"system": f"SYSTEM: {PROSE}{LISTED}", "chat": CHAT}
TOOLS = [{"type": "function", "function": one} for one in (RATE, NEWS)]
CALLED = {
    "type": "function",
    "function": {"name": "get_exchange_rate", "arguments": {"base": "USD", "target": "EUR"}},
}
MESSAGES = [
    {"role": "user", "content": "What is a dollar in euros?"},
    {"role": "assistant", "content": "", "tool_calls": [CALLED]},
    {"role": "tool", "content": '{"rate": 0.85}'},
    {"role": "assistant", "content": "It is 0.85 euros."},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "You are welcome.\n\nAnything else?"},
]
SHAREGPT = [
    {"from": "human", "value": "What is a dollar in euros?"},
    {"from": "gpt", "value": f"{CALL}{END}"},
    {"from": "observation", "value": '{"rate": 0.85}'},
    {"from": "gpt", "value": f"It is 0.85 euros.{END}"},
    {"from": "human", "value": "Thanks!"},
    {"from": "gpt", "value": f"You are welcome.\n\nAnything else?{END}"},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model under Llama 3.2's own template, which has a place for tools."""
    folder = Path(shutil.copytree(tiny.ensure(source.sample_texts()), tmp_path_factory.mktemp("llama") / "base"))
    shutil.copy(LLAMA, folder / "chat_template.jinja")
    return folder


def read(row: dict[str, Any], **part: Any) -> Conversation:
    settings = Part(source="x", **part)
    found = Reader(detect(row, settings, "x:1"), settings).read(row)
    assert isinstance(found, Conversation)
    return found


def chat(*turns: str) -> dict[str, str]:
    return {"system": f"SYSTEM: {NONE}\n", "chat": "\n\n\n".join(turns)}


SAME: dict[str, dict[str, Any]] = {
    "as published": ROW,
    "without lines between": {"system": ROW["system"], "chat": CHAT.replace("\n\n\n", "\n")},
    "with Windows' lines": {"system": ROW["system"], "chat": CHAT.replace("\n\n\n", "\r\n\r\n\r\n")},
    "turns": {"conversations": [{"from": "system", "value": PROSE + LISTED}, *SHAREGPT]},
    "turns with SYSTEM:": {"conversations": [{"from": "system", "value": ROW["system"]}, *SHAREGPT]},
    "functions as one list": {
        "conversations": [{"from": "system", "value": PROSE + json.dumps([RATE, NEWS])}, *SHAREGPT]
    },
    "functions wrapped": {
        "conversations": [{"from": "system", "value": PROSE + "\n".join(map(json.dumps, TOOLS))}, *SHAREGPT]
    },
    "a system column": {"system": PROSE + LISTED, "conversations": SHAREGPT},
    "functions in a column too": {
        "tools": json.dumps(TOOLS),
        "conversations": [{"from": "system", "value": PROSE + LISTED}, *SHAREGPT],
    },
    "functions in a column alone": {"tools": json.dumps([RATE, NEWS]), "conversations": SHAREGPT},
    "calls as turns": {
        "tools": json.dumps([RATE, NEWS]),
        "conversations": [
            SHAREGPT[0],
            {"from": "function_call", "value": json.dumps(CALLED["function"])},
            *SHAREGPT[2:],
        ],
    },
    "calls as turns, as Glaive has them": {
        "conversations": [
            {"from": "system", "value": PROSE + LISTED},
            SHAREGPT[0],
            {"from": "function_call", "value": f"{CALL}{END}"},
            *SHAREGPT[2:],
        ],
    },
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME.keys())
def test_a_row_becomes_these_messages_and_tools(row: dict[str, Any]) -> None:
    found = read(row)
    assert found == MESSAGES
    assert found.tools == TOOLS


def test_it_is_rendered_as_transformers_does_and_trained_on(llama: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(llama)
    expected = theirs.apply_chat_template(MESSAGES, tools=TOOLS, date_string="07 Mar 2026")["input_ids"]
    example = Tokenizer(llama, DAY, "responses").encode(read(ROW))
    assert example.input_ids == expected
    assert theirs.decode([label for label in example.labels if label != IGNORED]) == (
        '{"name": "get_exchange_rate", "parameters": {"base": "USD", "target": "EUR"}}<|eot_id|>'
        "It is 0.85 euros.<|eot_id|>You are welcome.\n\nAnything else?<|eot_id|>"
    )


def test_the_whole_way(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "glaive.jsonl"
    rows = [
        ROW,
        chat("USER: Hi.", f"ASSISTANT: Hello.{END}"),
        {"system": None, "chat": f"USER: a?\n\n\nASSISTANT: b.{END}"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = Data(source=path.as_posix())
    counts = prepare.prepare(source.locate(data, offline=True), data, llama, 2048, DAY, tmp_path / "out")["train"]
    assert (counts.used, counts.answers, counts.ended) == (3, 5, 5)
    assert (dict(counts.formats), dict(counts.has), counts.unread) == ({"glaive": 3}, {"tools": 1, "system": 1}, [])


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"text": "It\'s fine, isn\'t it?"}', {"text": "It's fine, isn't it?"}),
        ('{"text": "It\\\'s fine"}', {"text": "It's fine"}),
        ('{"code": "a\\nb \\"c\\""}', {"code": 'a\nb "c"'}),
        ('{"at": null, "list": [1, {"b": true}]}', {"at": None, "list": [1, {"b": True}]}),
        ("{}", {}),
        ("", {}),
    ],
)
@pytest.mark.parametrize("as_turns", [False, True])
def test_arguments_are_json_in_single_quotes(written: str, arguments: dict[str, Any], as_turns: bool) -> None:
    call = f'<functioncall> {{"name": "f", "arguments": \'{written}\'}}'
    row: dict[str, Any] = chat("USER: Do it.", f"ASSISTANT: {call}{END}")
    if as_turns:
        row = {"conversations": [{"from": "human", "value": "Do it."}, {"from": "gpt", "value": f"{call}{END}"}]}
    [made] = read(row)[-1]["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": arguments}


def test_a_call_may_follow_a_text() -> None:
    before = {"role": "user", "content": "Do it."}
    called = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    after = {"role": "assistant", "content": "I will.", "tool_calls": [called]}
    call = """<functioncall> {"name": "f", "arguments": '{"a": 1}'}"""
    for turns in ((f"ASSISTANT: I will. {call}{END}",), (f"ASSISTANT: I will.{END}", f"ASSISTANT: {call}{END}")):
        assert read(chat("USER: Do it.", *turns))[1:] == [before, after]


SYSTEMS = {
    "none": (NONE, [{"role": "system", "content": NONE}], None),
    "empty": ("", [], None),
    "another assistant": (
        f"You are a pirate with access to the following functions. Use them if required -\n{LISTED}",
        [{"role": "system", "content": "You are a pirate."}],
        TOOLS,
    ),
    "what comes after": (
        f"{PROSE}{LISTED}\nAnswer in French.",
        [{"role": "system", "content": "Answer in French."}],
        TOOLS,
    ),
    "what comes before": (
        f"Today is Monday. You have access to the following functions. Use them if needed:\n{LISTED}",
        [{"role": "system", "content": "Today is Monday."}],
        TOOLS,
    ),
    "words of version 1": (
        "You are an helpful assistant who has access to the following functions to help the user, you can use the "
        f"functions if needed-\n{LISTED}",
        [],
        TOOLS,
    ),
}


@pytest.mark.parametrize(("system", "messages", "tools"), SYSTEMS.values(), ids=SYSTEMS.keys())
def test_of_the_system_text_stays_what_is_not_about_functions(system: str, messages: Any, tools: Any) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    for row in (
        {"system": f"SYSTEM: {system}", "chat": f"USER: Q\n\n\nASSISTANT: A{END}"},
        {"messages": [{"role": "system", "content": system}, *turns]},
    ):
        found = read(row)
        assert found == [*messages, *turns]
        assert found.tools == tools


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a function that is none": (
        {"system": f"SYSTEM: {PROSE}{json.dumps(RATE)}\n\n" + '{"name": "g", "parameters": {', "chat": CHAT},
        r"^the column 'system': function 2 is not JSON: '\{\"name\": \"g\"",
    ),
    "a function without a name": (
        {"system": f'SYSTEM: {PROSE}{{"description": "x"}}', "chat": CHAT},
        "^the column 'system': function 1 has no name",
    ),
    "a function that is none in a turn": (
        {"conversations": [{"from": "system", "value": PROSE + '{"name": "g"'}, *SHAREGPT]},
        "^turn 1: function 1 is not JSON",
    ),
    "other functions in a column": (
        {"tools": [NEWS], "conversations": [{"from": "system", "value": PROSE + LISTED}, *SHAREGPT]},
        "the column 'tools' has other tools",
    ),
    "a call that is none": (
        chat("USER: a", 'ASSISTANT: <functioncall> {"name": "f", "arguments": \'{"a": }\'}' + END),
        "^turn 2: <functioncall>: arguments is not JSON: '{\"a\": }'",
    ),
    "a call cut short": (
        chat("USER: a", 'ASSISTANT: <functioncall> {"name": "f", "argu'),
        "^turn 2: <functioncall> is not JSON",
    ),
    "an answer that goes on": (
        chat("USER: a", f"ASSISTANT: b{END} and c"),
        r"^the column 'chat', turn 2: ASSISTANT: goes on after <\|endoftext\|>",
    ),
    "a text without turns": ({"system": "SYSTEM: x", "chat": "Hello there."}, "'chat' begins neither with USER:"),
    "no text": ({"system": "SYSTEM: x", "chat": ""}, "'chat' begins neither with USER:"),
    "an assistant who begins": (chat(f"ASSISTANT: b{END}", "USER: a"), "the assistant speaks first"),
    "no answer": (chat("USER: a"), "the assistant says nothing"),
    "an empty answer": (chat("USER: a", f"ASSISTANT:{END}"), "turn 2 is empty"),
    "an empty answer in a turn": (
        {"conversations": [{"from": "system", "value": NONE}, SHAREGPT[0], {"from": "gpt", "value": END}]},
        "turn 3 is empty",
    ),
    "turns": (
        {"system": "x", "chat": [{"role": "user", "content": "a"}]},
        r"'chat' is list, not a text of USER: and ASSISTANT:; data.columns: \{messages: chat\} reads turns",
    ),
}


@pytest.mark.parametrize(("row", "naming"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_refused_in_one_line(row: dict[str, Any], naming: str) -> None:
    with pytest.raises(BadRow, match=naming) as caught:
        read(row)
    assert "\n" not in str(caught.value)


def test_turns_in_a_column_chat_can_be_read() -> None:
    row = {"system": "Be brief.", "chat": MESSAGES[4:]}
    assert read(row, columns={"messages": "chat"}) == [{"role": "system", "content": "Be brief."}, *MESSAGES[4:]]
    assert read({"sys": ROW["system"], "dialogue": CHAT}, columns={"system": "sys", "chat": "dialogue"}) == MESSAGES


OTHERS = {
    "an answer about the mark": [("human", "What ends a text of GPT-2?"), ("gpt", "It is <|endoftext|>")],
    "an answer that ends with it": [("human", "Write it."), ("gpt", "Here: <|endoftext|>")],
    "an answer about calls": [("human", "How does Glaive call?"), ("gpt", "It writes <functioncall> before them.")],
    "roles in an answer": [("human", "A dialogue."), ("gpt", "USER: hi\n\n\nASSISTANT: hello")],
    "words about functions": [
        ("system", "You know maths, with access to the following functions: {sin}, {cos}."),
        ("human", "a?"),
        ("gpt", "b."),
    ],
    "calls of others": [
        ("human", "Look up what ends a text."),
        ("function_call", '{"name": "f", "arguments": {}}'),
        ("observation", "<|endoftext|>"),
        ("gpt", "It is <|endoftext|>"),
        ("human", "Sure?"),
        ("gpt", "Yes."),
    ],
}


@pytest.mark.parametrize("turns", OTHERS.values(), ids=OTHERS.keys())
def test_the_data_of_others_keeps_these_marks(turns: list[tuple[str, str]]) -> None:
    found = read(
        {"conversations": [{"from": who, "value": text} for who, text in turns], "source": "web", "score": 5.1}
    )
    said = [(message["role"], message["content"]) for message in found if not message.get("tool_calls")]
    names = {"human": "user", "gpt": "assistant", "observation": "tool", "system": "system"}
    assert said == [(names[who], text) for who, text in turns if who in names]
    assert found.tools is None


def test_the_format_is_told_and_named() -> None:
    assert detect(ROW, Part(source="x"), "x:1") == "glaive"
    assert detect({"system", "chat", "messages"}, Part(source="x"), "x:1") == "messages"
    with pytest.raises(DataError, match="not in the format glaive, which needs 'chat'"):
        detect({"system", "text"}, Part(source="x", format="glaive"), "x:1")
