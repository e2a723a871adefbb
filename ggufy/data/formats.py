"""Row formats. Each is one function from a row to a sample, and one line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ggufy.data.files import BadRow
from ggufy.errors import DataError
from ggufy.model.template import Message
from ggufy.recipe.schema import Part, template_fields

__all__ = ["FORMATS", "BadRow", "Format", "Plain", "Reader", "Sample", "detect"]

Row = Mapping[str, Any]

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
# Between Alpaca's instruction and its input, where the prompt is not a chat template's.
ALPACA_INPUT = "\n\n### Input:\n"


@dataclass(frozen=True)
class Plain:
    """A text without turns: what is given, and what has to follow it."""

    prompt: str
    completion: str


Sample = list[Message] | Plain


@dataclass(frozen=True)
class Format:
    columns: tuple[str, ...]
    """Those a row must have, by their usual names."""
    convert: Callable[[Row, Reader], Sample]
    looks_like: str


class Reader:
    """Rows of one source as samples: by its format, its names for columns, and its prompt.

    `chat` is false for a base without a chat template: a prompt with its completion is then plain text.
    """

    def __init__(self, form: str, part: Part | None = None, *, chat: bool = True) -> None:
        self.form = FORMATS[form]
        self.names: dict[str, str] = {str(ours): theirs for ours, theirs in part.columns.items()} if part else {}
        self.prompt = part.prompt if part else None
        self.fields = template_fields(self.prompt) if self.prompt else []
        self.chat = chat

    def read(self, row: Any) -> Sample:
        """Raises BadRow."""
        if not isinstance(row, Mapping):
            raise BadRow(f"a row is an object with columns, not {type(row).__name__}")
        for ours in self.form.columns:
            if self.name(ours) not in row:
                raise BadRow(f"no column {self.name(ours)!r}, unlike the first row")
        return self.form.convert(row, self)

    def name(self, ours: str) -> str:
        """What this source calls a column."""
        return self.names.get(ours, ours)

    def text(self, row: Row, ours: str, *, needed: bool = True) -> str:
        """A text of a row. Raises BadRow."""
        name = self.name(ours)
        value = row.get(name)
        if value is None and not needed:
            return ""
        return _text(value, f"the column {name!r}", needed=needed)

    def asked(self, row: Row, usual: str, *, alone: str | None = None, given: str = "") -> str:
        """What the user says: the template filled in, or what it is without one. Raises BadRow.

        Of an Alpaca row `alone` is the instruction without its input, and `given` that input: they are told apart only
        where the template has a place for both.
        """
        if self.prompt is None:
            return usual
        # A column that happens to have one of these names holds something else: a whole prompt, or a system text.
        own = {"prompt": usual, "instruction": usual}
        if alone is not None:
            own["input"] = given
            if "input" in self.fields:
                own["instruction"] = alone
        named = {ours: row[theirs] for ours, theirs in self.names.items() if theirs in row}
        known = {**row, **named, **own}
        values = {}
        for field in self.fields:
            if field not in known:
                raise BadRow(f"data.prompt names {{{field}}}; the columns are {', '.join(sorted(row))}")
            value = known[field]
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise BadRow(f"data.prompt names {{{field}}}, which is {_kind(value)}, not a text")
            values[field] = value if isinstance(value, str) else str(value)
        return _text(self.prompt.format_map(values), "the prompt")


def detect(columns: Iterable[str], part: Part, where: str) -> str:
    """The name of the format of rows with these columns: the one the recipe names, or the first that fits."""
    columns = list(columns)
    names = {str(ours): theirs for ours, theirs in part.columns.items()}
    for ours, theirs in names.items():
        if theirs not in columns and ours not in ("role", "content"):
            raise DataError(
                f"{where}: data.columns names {theirs!r}, which is not a column; "
                f"the columns are {', '.join(columns) or 'none'}",
                "the usual name comes first, as in {instruction: question}",
            )
    for name in FORMATS if part.format == "auto" else (part.format,):
        if all(names.get(column, column) in columns for column in FORMATS[name].columns):
            if name == "text" and part.prompt:
                raise DataError(
                    f"{where}: data.prompt does not apply to plain text", "leave it out, or set data.format"
                )
            return name
    there = f"the columns are {', '.join(sorted(columns)) or 'none'}"
    if part.format != "auto":
        form = FORMATS[part.format]
        lacking = [names.get(column, column) for column in form.columns if names.get(column, column) not in columns]
        raise DataError(
            f"{where}: not in the format {part.format}, which needs {' and '.join(map(repr, lacking))}: {there}",
            f"map other names with data.columns, or set data.format: auto; a row of {part.format} is {form.looks_like}",
        )
    known = "; ".join(f"{name}: {form.looks_like}" for name, form in FORMATS.items())
    raise DataError(
        f"{where}: unknown format: {there}", f"map other names with data.columns; known formats are {known}"
    )


def _sharegpt(row: Row, reader: Reader) -> Sample:
    return _turns(row, row[reader.name("conversations")], ("from", "value"), reader)


def _messages(row: Row, reader: Reader) -> Sample:
    return _turns(row, row[reader.name("messages")], ("role", "content"), reader)


def _alpaca(row: Row, reader: Reader) -> Sample:
    usual, given = reader.text(row, "instruction"), reader.text(row, "input", needed=False)
    alone = usual
    if given.strip():
        usual += ("\n\n" if reader.chat else ALPACA_INPUT) + given
    asked = reader.asked(row, usual, alone=alone, given=given)
    return _exchange(asked, reader.text(row, "output"))


def _prompt_completion(row: Row, reader: Reader) -> Sample:
    prompt, completion = reader.asked(row, reader.text(row, "prompt")), reader.text(row, "completion")
    return _exchange(prompt, completion) if reader.chat else Plain(prompt, completion)


def _plain_text(row: Row, reader: Reader) -> Sample:
    return Plain("", reader.text(row, "text"))


FORMATS: dict[str, Format] = {
    "sharegpt": Format(("conversations",), _sharegpt, '{"conversations": [{"from": "human", "value": "..."}, ...]}'),
    "messages": Format(("messages",), _messages, '{"messages": [{"role": "user", "content": "..."}, ...]}'),
    "prompt-completion": Format(("prompt", "completion"), _prompt_completion, '{"prompt": "...", "completion": "..."}'),
    "alpaca": Format(("instruction", "output"), _alpaca, '{"instruction": "...", "input": "...", "output": "..."}'),
    "text": Format(("text",), _plain_text, '{"text": "..."}'),
}


def _exchange(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _text(value: Any, what: str, *, needed: bool = True) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{what} is {_kind(value)}, not a string")
    if needed and not value.strip():
        raise BadRow(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{what} holds half a surrogate pair, which is not a character") from None
    return value


def _turns(row: Row, turns: Any, usual: tuple[str, str], reader: Reader) -> list[Message]:
    if not isinstance(turns, list | tuple) or not turns:
        raise BadRow("no turns" if turns in ([], (), None) else f"turns are a list, not {type(turns).__name__}")
    role_key, text_key = _turn_keys(turns[0], usual, reader)
    conversation: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
            raise BadRow(f"turn {number} has no {role_key!r} and {text_key!r}")
        role = _ROLES.get(str(turn[role_key]).lower())
        if role is None:
            raise BadRow(f"turn {number}: unknown role {turn[role_key]!r}; known are {', '.join(_ROLES)}")
        text = _text(turn[text_key], f"turn {number}")
        conversation.append({"role": role, "content": text})
    _check_order(conversation)
    asked = next(message for message in conversation if message["role"] == "user")
    asked["content"] = reader.asked(row, asked["content"])
    return conversation


def _turn_keys(first: Any, usual: tuple[str, str], reader: Reader) -> tuple[str, str]:
    """The keys of role and text: the recipe's, the format's, or the other's, as many files mix the two."""
    if "role" in reader.names or "content" in reader.names:
        return reader.names.get("role", usual[0]), reader.names.get("content", usual[1])
    for keys in (usual, ("role", "content"), ("from", "value")):
        if isinstance(first, Mapping) and all(key in first for key in keys):
            return keys
    return usual


def _check_order(conversation: list[Message]) -> None:
    roles = [message["role"] for message in conversation]
    if "system" in roles[1:]:
        raise BadRow(f"turn {roles.index('system', 1) + 1}: a system turn can only come first")
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or "assistant" not in spoken:
        raise BadRow("the assistant says nothing, so there is nothing to learn")
    if spoken[0] == "assistant":
        raise BadRow("the assistant speaks first; a conversation starts with the user")
    for number, (before, after) in enumerate(pairwise(spoken), 2 + len(roles) - len(spoken)):
        if before == after:
            raise BadRow(f"turn {number}: two {after} turns in a row")
