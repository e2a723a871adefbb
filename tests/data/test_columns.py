"""Columns, keys and roles that mean something: used, or refused where one is set; the others are listed.

What a row becomes is written out here by hand, in the form that transformers' chat templates take.
"""

from __future__ import annotations

import json
import logging
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ggufy.data import prepare, source
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation, Plain, Sample
from ggufy.data.rows.detect import detect
from ggufy.data.rows.reader import Reader
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.errors import DataError
from ggufy.model import tiny
from ggufy.recipe import recipe
from ggufy.recipe.schema import Data, Part
from ggufy.runs.run import Run
from ggufy.stages import data as stage
from ggufy.stages import provenance

DAY = date(2026, 3, 7)
LLAMA = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates/meta-llama-Llama-3.2-3B-Instruct.jinja"
USER, BOT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "Be brief."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
CALLED = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "clear"}'},
    {"role": "assistant", "content": "Clear."},
]


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


@pytest.fixture(scope="module")
def llama(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model under Llama 3.2's own template, which has a place for tools."""
    folder = Path(shutil.copytree(base, tmp_path_factory.mktemp("llama") / "base"))
    shutil.copy(LLAMA, folder / "chat_template.jinja")
    return folder


def reader_of(row: dict[str, Any], **part: Any) -> Reader:
    settings = Part(source="x", **part)
    return Reader(detect([name for name, value in row.items() if value is not None], settings, "x:1"), settings)


def read(row: dict[str, Any], **part: Any) -> Sample:
    return reader_of(row, **part).read(row)


ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "a system column": ({"system": "Be brief.", "instruction": "Q", "output": "A"}, [SYSTEM, USER, BOT]),
    "a system_prompt column": ({"system_prompt": "Be brief.", "prompt": "Q", "completion": "A"}, [SYSTEM, USER, BOT]),
    "a system column beside turns": ({"system": "Be brief.", "messages": [USER, BOT]}, [SYSTEM, USER, BOT]),
    "a system column that says the same": (
        {"system": "Be brief.", "messages": [SYSTEM, USER, BOT]},
        [SYSTEM, USER, BOT],
    ),
    "an empty system column": ({"system": "", "messages": [USER, BOT]}, [USER, BOT]),
    "a system column that is null": ({"system": None, "messages": [USER, BOT]}, [USER, BOT]),
    "an empty system turn": ({"messages": [{"role": "system", "content": ""}, USER, BOT]}, [USER, BOT]),
    "a system turn of null": ({"messages": [{"role": "system", "content": None}, USER, BOT]}, [USER, BOT]),
    "history": (
        {"instruction": "Q", "output": "A", "history": [["q0", "a0"], ["q1", "a1"]]},
        [
            {"role": "user", "content": "q0"},
            {"role": "assistant", "content": "a0"},
            {"role": "user", "content": "q1"},
            {"role": "assistant", "content": "a1"},
            USER,
            BOT,
        ],
    ),
    "history that is null": ({"instruction": "Q", "output": "A", "history": None}, [USER, BOT]),
    "question and answer": ({"question": "Q", "answer": "A"}, [USER, BOT]),
    "prompt and response": ({"prompt": "Q", "response": "A"}, [USER, BOT]),
    "dolly": (
        {"instruction": "Q", "context": "C", "response": "A", "category": "qa"},
        [{"role": "user", "content": "Q\n\nC"}, BOT],
    ),
    "large letters": (
        {"Instruction": "Q", "Input": "C", "Output": "A"},
        [{"role": "user", "content": "Q\n\nC"}, BOT],
    ),
    "parts of text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, BOT]},
        [USER, BOT],
    ),
    "turns as JSON": ({"messages": json.dumps([USER, BOT])}, [USER, BOT]),
    "turns by key": ({"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}}, [USER, BOT]),
    "keys of two tables": (
        {
            "conversations": [
                {"from": "human", "value": "Q", "role": None, "content": None},
                {"role": "assistant", "content": "A", "from": None, "value": None},
            ]
        },
        [USER, BOT],
    ),
    "roles by other names": (
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "prompter", "content": "Q"},
                {"role": "AI", "content": "A"},
            ]
        },
        [SYSTEM, USER, BOT],
    ),
    "turns in prompt and completion": ({"prompt": [SYSTEM, USER], "completion": [BOT]}, [SYSTEM, USER, BOT]),
    "reasoning": (
        {"messages": [USER, {**BOT, "reasoning_content": "Because."}]},
        [USER, {**BOT, "reasoning_content": "Because."}],
    ),
    "weights of 1": ({"messages": [{**USER, "weight": 1}, {**BOT, "weight": 1.0, "train": True}]}, [USER, BOT]),
    "a weight of 0": (
        {"messages": [USER, {**BOT, "weight": 0}, USER, BOT]},
        [USER, {**BOT, "untrained": True}, USER, BOT],
    ),
}


@pytest.mark.parametrize(("row", "messages"), ROWS.values(), ids=ROWS.keys())
def test_a_row_becomes_these_messages(row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert read(row) == messages


TOOLS: dict[str, dict[str, Any]] = {
    "OpenAI": {
        "tools": [WEATHER],
        "messages": [
            CALLED[0],
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Oslo"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "clear"}'},
            CALLED[3],
        ],
    },
    "OpenAI's older way": {
        "functions": [WEATHER["function"]],
        "messages": [
            CALLED[0],
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "weather", "arguments": '{"place": "Oslo"}'},
            },
            {"role": "function", "name": "weather", "content": '{"sky": "clear"}'},
            CALLED[3],
        ],
    },
    "ShareGPT": {
        "tools": json.dumps([WEATHER["function"]]),
        "conversations": [
            {"from": "human", "value": "Weather in Oslo?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"place": "Oslo"}}'},
            {"from": "observation", "value": '{"sky": "clear"}'},
            {"from": "gpt", "value": "Clear."},
        ],
    },
    "Hermes": {
        "conversations": [
            {
                "from": "system",
                "value": f"You are a function calling AI model.\n<tools>\n{json.dumps(WEATHER)}\n</tools>\n",
            },
            {"from": "human", "value": "Weather in Oslo?"},
            {"from": "gpt", "value": "<tool_call>\n{'arguments': {'place': 'Oslo'}, 'name': 'weather'}\n</tool_call>"},
            {"from": "tool", "value": '<tool_response>\n{"sky": "clear"}\n</tool_response>'},
            {"from": "gpt", "value": "Clear."},
        ],
    },
    "Glaive": {
        "tools": [json.dumps(WEATHER["function"])],
        "conversations": [
            {"from": "human", "value": "Weather in Oslo?"},
            {
                "from": "gpt",
                "value": '<functioncall> {"name": "weather", "arguments": \'{"place": "Oslo"}\'} <|endoftext|>',
            },
            {"from": "function_response", "value": '{"sky": "clear"}'},
            {"from": "gpt", "value": "Clear."},
        ],
    },
    "arguments that Arrow has filled in": {
        "tools": [{**WEATHER, "strict": None}],
        "messages": [
            CALLED[0],
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo", "unit": None}}}
                ],
            },
            {"role": "ipython", "content": '{"sky": "clear"}', "tool_calls": None},
            {**CALLED[3], "tool_calls": None},
        ],
    },
}


@pytest.mark.parametrize("row", TOOLS.values(), ids=TOOLS.keys())
def test_calls_are_rendered_as_transformers_does_and_trained_on(row: dict[str, Any], llama: Path) -> None:
    sample = read(row)
    assert isinstance(sample, Conversation)
    assert sample.tools == [WEATHER]
    theirs = AutoTokenizer.from_pretrained(llama)
    expected = theirs.apply_chat_template(CALLED, tools=[WEATHER], date_string="07 Mar 2026")["input_ids"]
    ours = Tokenizer(llama, DAY, "responses")
    example = ours.encode(sample)
    assert example.input_ids == expected
    said = theirs.decode([label for label in example.labels if label != IGNORED])
    assert said == '{"name": "weather", "parameters": {"place": "Oslo"}}<|eot_id|>Clear.<|eot_id|>'


def test_several_calls_in_a_turn_are_refused_by_this_template(llama: Path) -> None:
    talk = Conversation([CALLED[0], {**CALLED[1], "tool_calls": [CALL, CALL]}, *CALLED[2:]], [WEATHER])
    with pytest.raises(BadRow, match="only supports single tool-calls at once"):
        Tokenizer(llama, DAY, "responses").encode(talk)


@pytest.mark.parametrize(
    ("messages", "tools", "naming"),
    [
        (CALLED, [WEATHER], "the row has tools, and the base's chat template has no place for them"),
        (CALLED, None, "turn 2 calls a tool, and the base's chat template has no place for calls"),
    ],
)
def test_tools_without_a_place_for_them_are_refused(messages: Any, tools: Any, naming: str, base: Path) -> None:
    with pytest.raises(BadRow, match=naming):
        Tokenizer(base, DAY, "responses").encode(Conversation(messages, tools))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a picture": (
        {"image": "a.jpg", "messages": [USER, BOT]},
        "the column 'image' is set, and this model reads text only",
    ),
    "pictures": ({"images": [b"x"], "messages": [USER, BOT]}, "the column 'images' is set"),
    "a sound": ({"audio": {"path": "a.wav"}, "messages": [USER, BOT]}, "the column 'audio' is set"),
    "a part that is a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}, BOT]},
        "turn 1 has a part of the type 'image_url'",
    ),
    "a turn with pictures": ({"messages": [{**USER, "images": ["a.png"]}, BOT]}, "turn 1 has 'images'"),
    "a preference": (
        {"prompt": "Q", "completion": "A", "chosen": "A", "rejected": "B"},
        r"the row is a preference \(chosen and rejected\)",
    ),
    "a rated completion": ({"prompt": "Q", "completion": "A", "label": False}, "the row is a rated completion"),
    "a completion rated 0": ({"prompt": "Q", "completion": "A", "label": 0}, r"a bad one \(label is 0\)"),
    "a completion rated in CSV": ({"prompt": "Q", "completion": "A", "label": "False"}, r"\(label is 'False'\)"),
    "a completion rated in pandas": ({"question": "Q", "answer": "A", "label": 0.0}, r"\(label is 0.0\)"),
    "a completion of turns rated": ({"prompt": [USER], "completion": [BOT], "label": 0}, r"\(label is 0\)"),
    "turns that are rated": ({"messages": [USER, BOT], "label": False}, r"\(label is False\)"),
    "a rating by LLaMA-Factory": ({"instruction": "Q", "output": "A", "kto_tag": False}, r"\(kto_tag is False\)"),
    "tools in a turn": ({"messages": [{**SYSTEM, "tools": [WEATHER]}, USER, BOT]}, "turn 1 has 'tools'; they are read"),
    "history beside turns": (
        {"prompt": [USER], "completion": [BOT], "history": [["q", "a"]]},
        "the column 'history' is set, and so is a prompt",
    ),
    "a call that is another one": (
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "function_call", "value": '{"name": "f"}', "tool_calls": [CALL]},
            ]
        },
        "turn 2 calls two things",
    ),
    "half a weight": ({"messages": [USER, {**BOT, "weight": 0.5}]}, "turn 2: weight is 0.5; 0 or false"),
    "two system texts": (
        {"system": "Be kind.", "messages": [SYSTEM, USER, BOT]},
        "a system turn and a system column that",
    ),
    "history of another form": ({"instruction": "Q", "output": "A", "history": "q0 a0"}, "a list of pairs of question"),
    "a tool nobody called": (
        {"messages": [USER, {"role": "tool", "content": "x"}, BOT]},
        "turn 2: a tool answers, and",
    ),
    "a call of nothing": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
        "turn 2: tool_calls names no function",
    ),
    "arguments that are no JSON": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{place"}}]}]},
        "turn 2: tool_calls: arguments is not JSON",
    ),
    "a tool without a name": (
        {"tools": [{"description": "x"}], "messages": [USER, BOT]},
        "the column 'tools': tool 1 has no name",
    ),
    "an unknown role": (
        {"messages": [USER, {"role": "robot", "content": "A"}]},
        "unknown role 'robot'.* data.roles maps",
    ),
}


@pytest.mark.parametrize(("row", "naming"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_refused(row: dict[str, Any], naming: str) -> None:
    with pytest.raises(BadRow, match=naming):
        read(row)


def test_pictures_that_are_not_there_are_no_reason_to_refuse() -> None:
    for empty in (None, [], ""):
        assert read({"images": empty, "messages": [USER, BOT]}) == [USER, BOT]


def test_preferences_are_named_where_nothing_else_is_there() -> None:
    with pytest.raises(DataError, match="these are preferences"):
        detect(["prompt", "chosen", "rejected"], Part(source="x"), "x:1")
    chosen = Part(source="x", columns={"completion": "chosen"})
    assert detect(["prompt", "chosen", "rejected"], chosen, "x:1") == "prompt-completion"


def test_roles_can_be_mapped() -> None:
    row = {"messages": [{"role": "client", "content": "Q"}, {"role": "Agent", "content": "A"}]}
    assert read(row, roles={"client": "user", "agent": "assistant"}) == [USER, BOT]


def test_what_was_not_read_is_listed_and_formats_are_counted(base: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": 1,
            "source": "web",
            "score": 4.5,
            "messages": [{**USER, "lang": "en"}, BOT],
            "instruction": None,
            "output": None,
        },
        {"id": 2, "source": None, "messages": None, "instruction": "Q", "output": "A", "system": "Be brief."},
        {"id": 3, "messages": [SYSTEM, USER, BOT], "instruction": None, "output": None},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = Data(source=path.as_posix())
    counts = prepare.prepare(source.locate(data, offline=True), data, base, 256, DAY, tmp_path / "out")["train"]
    assert dict(counts.formats) == {"messages": 2, "alpaca": 1}
    assert dict(counts.has) == {"system": 2}
    assert counts.unread == ["messages[].lang", "score", "source"]
    assert counts.used == 3


READ_OR_LISTED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a quality": ({"messages": [USER, BOT], "score": 4.5}, ["score"]),
    "a good answer": ({"prompt": "Q", "completion": "A", "label": True}, ["label"]),
    "a good answer, as a number": ({"prompt": "Q", "completion": "A", "label": 1}, ["label"]),
    "the number of a class": ({"prompt": "Q", "completion": "A", "label": 2}, ["label"]),
    "the number of a class beside a text": ({"text": "T", "label": 0}, ["label"]),
    "the number of a class beside an instruction": ({"instruction": "Q", "output": "A", "label": 0}, ["label"]),
    "an empty column": ({"messages": [USER, BOT], "images": [], "note": "", "tags": None}, []),
    "a user's name": ({"messages": [{**USER, "name": "Ann"}, BOT]}, ["messages[].name"]),
    "an assistant's name": ({"messages": [USER, {**BOT, "name": "Bob"}]}, ["messages[].name"]),
    "a tool's name": (
        {"messages": [CALLED[0], CALLED[1], {**CALLED[2], "name": "weather", "tool_call_id": "c1"}, CALLED[3]]},
        [],
    ),
    "a number of a call": (
        {"messages": [CALLED[0], CALLED[1], {**CALLED[2], "tool_call_id": 1}, CALLED[3]]},
        ["messages[].tool_call_id"],
    ),
    "a user's turn to be learnt": ({"messages": [{**USER, "weight": 1}, BOT]}, ["messages[].weight"]),
    "a user's turn not to be learnt": ({"messages": [{**USER, "weight": 0}, {**BOT, "weight": 1}]}, []),
    "no calls of a user": ({"messages": [{**USER, "tool_calls": [], "thinking": ""}, BOT]}, []),
    "keys of ShareGPT": (
        {"conversations": [{"from": "human", "value": "Q", "lang": "en"}, {"from": "gpt", "value": "A", "ok": False}]},
        ["conversations[].lang", "conversations[].ok"],
    ),
    "turns as JSON": ({"messages": json.dumps([{**USER, "lang": "en"}, BOT])}, ["messages[].lang"]),
    "turns by key": (
        {"messages": {"role": ["user", "assistant"], "content": ["Q", "A"], "lang": ["en", None]}},
        ["messages[].lang"],
    ),
    "turns in prompt and completion": (
        {"prompt": [{**USER, "lang": "en"}], "completion": [{**BOT, "model": "m"}]},
        ["completion[].model", "prompt[].lang"],
    ),
}


@pytest.mark.parametrize(("row", "listed"), READ_OR_LISTED.values(), ids=READ_OR_LISTED.keys())
def test_what_is_set_and_not_read_is_listed(row: dict[str, Any], listed: list[str]) -> None:
    reader = reader_of(row)
    reader.read(row)
    assert sorted(reader.unread) == listed


MAPPED: dict[str, tuple[dict[str, Any], dict[str, str], list[dict[str, Any]], list[str]]] = {
    "system": (
        {"persona": "Be brief.", "instruction": "Q", "output": "A"},
        {"system": "persona"},
        [SYSTEM, USER, BOT],
        [],
    ),
    "system of turns": (
        {"persona": "Be brief.", "messages": [USER, BOT]},
        {"system": "persona"},
        [SYSTEM, USER, BOT],
        [],
    ),
    "system of another name than it has": (
        {"persona": "Be brief.", "system": "cli-7", "messages": [USER, BOT]},
        {"system": "persona"},
        [SYSTEM, USER, BOT],
        ["system"],
    ),
    "system_prompt": (
        {"persona": "Be brief.", "prompt": "Q", "completion": "A"},
        {"system_prompt": "persona"},
        [SYSTEM, USER, BOT],
        [],
    ),
    "history": (
        {"before": [["q0", "a0"]], "prompt": "Q", "response": "A"},
        {"history": "before"},
        [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}, USER, BOT],
        [],
    ),
    "input": (
        {"instruction": "Q", "given": "C", "output": "A"},
        {"input": "given"},
        [{"role": "user", "content": "Q\n\nC"}, BOT],
        [],
    ),
    "input where there is none": (
        {"prompt": "Q", "given": "C", "completion": "A"},
        {"input": "given"},
        [USER, BOT],
        ["given"],
    ),
    "a system text that is not set": ({"persona": "", "messages": [USER, BOT]}, {"system": "persona"}, [USER, BOT], []),
}


@pytest.mark.parametrize(("row", "columns", "messages", "listed"), MAPPED.values(), ids=MAPPED.keys())
def test_columns_beside_a_format_can_be_mapped(
    row: dict[str, Any], columns: Any, messages: list[dict[str, Any]], listed: list[str]
) -> None:
    reader = reader_of(row, columns=columns)
    assert reader.read(row) == messages
    assert sorted(reader.unread) == listed


def test_tools_can_be_mapped() -> None:
    found = read({"apis": json.dumps([WEATHER]), "messages": CALLED}, columns={"tools": "apis"})
    assert isinstance(found, Conversation)
    assert found.tools == [WEATHER]


def test_a_mapped_system_text_has_no_place_in_a_plain_text() -> None:
    with pytest.raises(BadRow, match="the column 'persona' is set, and a plain text has no place for it"):
        read({"text": "T", "persona": "Be brief."}, columns={"system": "persona"})


def test_a_column_in_capitals_is_read_beside_others_in_capitals() -> None:
    assert read({"System": "Be brief.", "Instruction": "Q", "Output": "A"}) == [SYSTEM, USER, BOT]


def test_a_prompt_of_turns_is_made_as_others_are() -> None:
    row = {"prompt": [SYSTEM, USER], "completion": [BOT], "TASK": "sum"}
    assert read(row, prompt="[{TASK}] {prompt}") == [SYSTEM, {**USER, "content": "[sum] Q"}, BOT]


def test_a_training_says_what_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"messages": [{**USER, "lang": "en"}, BOT], "score": 4.5, "source": "web"}
    path.write_text(json.dumps(row) + "\n", "utf-8")
    for name, said in ((path.as_posix(), ["not read: columns messages[].lang, score, source"]), (source.BUILTIN, [])):
        data = {"source": name, "train_size": 1}
        wanted = recipe.from_values({"model": {"base": "builtin:tiny", "max_length": 128}, "data": data})
        found, rows = provenance.base(wanted, None), provenance.rows(wanted, None)
        caplog.clear()
        with caplog.at_level(logging.INFO, "ggufy"):
            stage.of_run(Run(tmp_path / "run"), wanted, found, rows, {"date": "2026-03-07"})
        assert [line for line in caplog.messages if line.startswith("not read")] == said


LATER: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "history beside a prompt": (
        {"prompt": "Q", "response": "A", "history": [["q0", "a0"]]},
        [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}, USER, BOT],
    ),
    "a history as JSON": (
        {"instruction": "Q", "output": "A", "history": '[["q0", "a0"]]'},
        [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}, USER, BOT],
    ),
    "a system text in capitals": ({"System": "Be brief.", "messages": [USER, BOT]}, [SYSTEM, USER, BOT]),
    "another one": ({"SYSTEM_PROMPT": "Be brief.", "prompt": "Q", "completion": "A"}, [SYSTEM, USER, BOT]),
    "an input in capitals": (
        {"instruction": "Q", "Input": "C", "output": "A"},
        [{"role": "user", "content": "Q\n\nC"}, BOT],
    ),
    "a history in capitals": (
        {"prompt": "Q", "completion": "A", "History": [["q0", "a0"]]},
        [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}, USER, BOT],
    ),
    "a history of nothing beside turns": ({"messages": [USER, BOT], "history": []}, [USER, BOT]),
    "a history of nothing": ({"instruction": "Q", "output": "A", "history": "[]"}, [USER, BOT]),
    "a question with a context": (
        {"question": "Q", "context": "C", "answer": "A"},
        [{"role": "user", "content": "Q\n\nC"}, BOT],
    ),
    "spaces for a system turn": ({"messages": [{"role": "system", "content": "  "}, USER, BOT]}, [USER, BOT]),
    "a picture of nulls": ({"image": {"bytes": None, "path": None}, "messages": [USER, BOT]}, [USER, BOT]),
    "no calls": ({"messages": [USER, {**BOT, "tool_calls": "[]"}], "tools": "null"}, [USER, BOT]),
    "a tool that gives an object": (
        {"messages": [CALLED[0], CALLED[1], {"role": "tool", "content": {"sky": "clear"}}, CALLED[3]]},
        CALLED,
    ),
    "a tool that gives nothing": (
        {"messages": [CALLED[0], CALLED[1], {"role": "tool", "content": ""}, CALLED[3]]},
        [CALLED[0], CALLED[1], {"role": "tool", "content": ""}, CALLED[3]],
    ),
    "words of one's own around Hermes' tools": (
        {
            "messages": [
                {"role": "system", "content": f"Speak French.\n<tools>[{json.dumps(WEATHER)}]</tools>"},
                USER,
                BOT,
            ]
        },
        [{"role": "system", "content": "Speak French."}, USER, BOT],
    ),
}


@pytest.mark.parametrize(("row", "messages"), LATER.values(), ids=LATER.keys())
def test_nothing_of_a_row_is_lost(row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert read(row) == messages


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "a row of weight 0": ({"prompt": "Q", "completion": "A", "weight": 0}, "the column 'weight' is 0"),
    "history beside turns": (
        {"messages": [USER, BOT], "history": [["q0", "a0"]]},
        "the column 'history' is set; it is read beside a prompt or an instruction",
    ),
    "history as JSON beside turns": (
        {
            "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
            "History": '[["q0", "a0"]]',
        },
        "the column 'History' is set",
    ),
    "history beside a text": ({"text": "Q", "history": "Before."}, "the column 'history' is set"),
    "history that is no list": ({"prompt": "Q", "completion": "A", "history": "Before."}, "a list of pairs .* or JSON"),
    "pictures in capitals": ({"messages": [USER, BOT], "Images": ["a.png"]}, "the column 'Images' is set"),
    "calls in a column": ({"prompt": "Q", "completion": "A", "tool_calls": [CALL]}, "the column 'tool_calls' is set"),
    "reasoning in a column": ({"question": "Q", "answer": "A", "thinking": "T"}, "the column 'thinking' is set"),
    "two lists of tools": (
        {"tools": [WEATHER], "functions": [{"name": "f"}], "messages": [USER, BOT]},
        "has other tools",
    ),
    "two calls that differ": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL], "function_call": {"name": "f"}}]},
        "tool_calls and function_call, which differ",
    ),
    "two thoughts that differ": (
        {"messages": [USER, {**BOT, "thinking": "a", "reasoning_content": "b"}]},
        "reasoning_content and thinking, which differ",
    ),
    "two texts that differ": ({"messages": [USER, {**BOT, "from": "gpt", "value": "B"}]}, "a turn says two things"),
    "a user who calls": (
        {"messages": [{**USER, "tool_calls": [CALL]}, BOT]},
        "turn 1 is a user turn that calls a tool",
    ),
    "calls that are no literals": (
        {"messages": [USER, {"role": "assistant", "content": '<tool_call>{{"name": "f"}}</tool_call>'}]},
        "<tool_call> is not JSON",
    ),
    "a set for arguments": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "<tool_call>{'name': 'f', 'arguments': {'a': {1, 2}}}</tool_call>"},
            ]
        },
        "holds something that JSON does not have",
    ),
    "half a character in a tool": (
        {"tools": [{"name": "f", "description": "\ud83d"}], "messages": [USER, BOT]},
        "holds half a surrogate pair",
    ),
}


@pytest.mark.parametrize(("row", "naming"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_says_two_things_is_refused(row: dict[str, Any], naming: str) -> None:
    with pytest.raises(BadRow, match=naming):
        read(row)


def test_the_chosen_answers_can_be_learnt() -> None:
    row = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    assert read(row, columns={"completion": "chosen"}) == [USER, BOT]


@pytest.mark.parametrize("column", ["system", "tools", "history", "images", "weight"])
@pytest.mark.parametrize("none", [None, "", "[]", "{}", "null", "None", "NaN", [], {}, float("nan")])
def test_what_stands_for_nothing_is_nothing(column: str, none: Any) -> None:
    if column != "system" or none in (None, ""):
        assert read({"messages": [USER, BOT], column: none}) == [USER, BOT]
    assert read({"text": "Q", column: none}) == Plain("", "Q")


@pytest.mark.parametrize("column", ["system", "tools"])
def test_a_plain_text_has_no_place_for_it(column: str) -> None:
    row = {"prompt": "Q", "completion": "A", column: "Be brief." if column == "system" else [WEATHER]}
    with pytest.raises(BadRow, match=f"the column '{column}' is set, and a plain text has no place for it"):
        Reader("prompt-completion", Part(source="x"), chat=False).read(row)


def test_a_mark_in_a_tool_is_refused(llama: Path) -> None:
    tool = {"type": "function", "function": {**WEATHER["function"], "description": "Ends <|eot_id|> here."}}
    with pytest.raises(BadRow, match=r"a tool contains the special token <\|eot_id\|>"):
        Tokenizer(llama, DAY, "responses").encode(Conversation(CALLED, [tool]))


def test_the_format_of_a_row_does_not_depend_on_the_rows_before() -> None:
    both = {
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
        "instruction": "q",
        "output": "a",
    }
    only = {"conversations": both["conversations"], "instruction": None, "output": None}
    for rows in ([both], [only, both], [both, only, both]):
        reader = Reader("alpaca", Part(source="x"))
        assert [reader.read(row) for row in rows][-1] == [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ]
