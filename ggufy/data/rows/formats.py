"""Row formats. Each is one function from a row to a sample, and one line in FORMATS."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows import glaive
from ggufy.data.rows.cells import Cells, Row
from ggufy.data.rows.conversation import UNTRAINED, Conversation, Plain, Sample
from ggufy.data.rows.texts import is_set, text_of
from ggufy.data.rows.turns import check_order, with_system
from ggufy.model.template import Message

# Between Alpaca's instruction and its input, where the prompt is not a chat template's.
ALPACA_INPUT = "\n\n### Input:\n"


@dataclass(frozen=True)
class Format:
    columns: tuple[str, ...]
    """Those a row must have, by their usual names."""
    convert: Callable[[Row, Cells], Sample]
    looks_like: str
    other_names: tuple[Mapping[str, str], ...] = ()
    """Other names that its columns have in known data sets, where all of them are there."""
    may: tuple[str, ...] = ()
    """Columns that are read where they are there."""


def _sharegpt(row: Row, cells: Cells) -> Sample:
    return _turns(row, cells, "sharegpt", "conversations")


def _messages(row: Row, cells: Cells) -> Sample:
    return _turns(row, cells, "messages", "messages")


def _turns(row: Row, cells: Cells, form: str, column: str) -> Conversation:
    name = cells.name(column)
    system = row.get(cells.name("system"))
    return _with_prompt(row, cells, cells.conversation(form, {name: row[name]}, system))


def _with_prompt(row: Row, cells: Cells, conversation: Conversation) -> Conversation:
    first = next(message for message in conversation if message["role"] == "user")
    first["content"] = cells.asked(row, first["content"])
    return conversation


def _alpaca(row: Row, cells: Cells) -> Sample:
    usual, given = cells.text(row, "instruction"), cells.text(row, "input", needed=False)
    alone = usual
    if given.strip():
        usual += ("\n\n" if cells.chat else ALPACA_INPUT) + given
    asked = cells.asked(row, usual, alone=alone, given=given)
    return Conversation([*_history(row, cells), *_exchange(asked, cells.text(row, "output"))])


def _history(row: Row, cells: Cells) -> list[Message]:
    """The turns before an Alpaca row's instruction, each a pair of question and answer, which are trained on too."""
    found: list[Message] = []
    name = cells.name("history")
    value = row.get(name)
    if not is_set(value):
        return found
    if isinstance(value, str):
        value = _parsed(value, name)
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise BadRow(f"the column {name!r} is a list of pairs of question and answer")
    for number, (question, answer) in enumerate(value, 1):
        where = f"the column {name!r}, pair {number}"
        found += _exchange(text_of(question, where), text_of(answer, where))
    return found


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow(f"the column {name!r} is a list of pairs of question and answer, or JSON of one") from None


def _prompt_completion(row: Row, cells: Cells) -> Sample:
    if all(isinstance(row[cells.name(ours)], list) for ours in ("prompt", "completion")):
        return _conversational(row, cells)
    prompt, completion = cells.asked(row, cells.text(row, "prompt")), cells.text(row, "completion")
    before = _history(row, cells)
    if cells.chat or before:
        return Conversation([*before, *_exchange(prompt, completion)])
    return Plain(prompt, completion)


def _conversational(row: Row, cells: Cells) -> Conversation:
    """A prompt and a completion that are turns: of these only the completion is trained on (as in trl)."""
    if _history(row, cells):
        raise BadRow(f"the column {cells.name('history')!r} is set, and so is a prompt that holds what came before")
    given, told = cells.name("prompt"), cells.name("completion")
    found = cells.conversation("messages", {given: row[given], told: row[told]})
    for message in found[: len(found) - len(row[told])]:
        if message["role"] == "assistant":
            message[UNTRAINED] = True
    check_order(found)
    return _with_prompt(row, cells, found)


def _glaive(row: Row, cells: Cells) -> Sample:
    """Glaive's function calling data as published: a system text with functions, and a text of turns."""
    system, chat = (cells.name(ours) for ours in ("system", "chat"))
    given = text_of(row[system], f"the column {system!r}", needed=False) if row[system] is not None else ""
    text, listed = glaive.in_system(given.strip().removeprefix("SYSTEM:").strip(), f"the column {system!r}")
    found = cells.turns["glaive"].read(glaive.turns(row[chat], f"the column {chat!r}"))
    found = with_system(found, text)
    found.tools = listed
    return _with_prompt(row, cells, found)


def _plain_text(row: Row, cells: Cells) -> Sample:
    return Plain("", cells.text(row, "text"))


FORMATS: dict[str, Format] = {
    "sharegpt": Format(("conversations",), _sharegpt, '{"conversations": [{"from": "human", "value": "..."}, ...]}'),
    "messages": Format(("messages",), _messages, '{"messages": [{"role": "user", "content": "..."}, ...]}'),
    "prompt-completion": Format(
        ("prompt", "completion"),
        _prompt_completion,
        '{"prompt": "...", "completion": "..."}',
        ({"prompt": "question", "completion": "answer"}, {"prompt": "prompt", "completion": "response"}),
        ("history",),
    ),
    "alpaca": Format(
        ("instruction", "output"),
        _alpaca,
        '{"instruction": "...", "input": "...", "output": "..."}',
        (
            {"instruction": "instruction", "output": "response", "input": "context"},
            {"instruction": "instruction", "output": "response"},
            {"instruction": "question", "output": "answer", "input": "context"},
            {"instruction": "question", "output": "answer", "input": "input"},
        ),
        ("input", "history"),
    ),
    "glaive": Format(
        ("system", "chat"),
        _glaive,
        '{"system": "SYSTEM: ...", "chat": "USER: ...\\n\\n\\nASSISTANT: ... <|endoftext|>"}',
    ),
    "text": Format(("text",), _plain_text, '{"text": "..."}'),
}


def _exchange(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
