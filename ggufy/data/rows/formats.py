"""Row formats. Each is one function from a row to a sample, and one line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows import tools
from ggufy.data.rows.conversation import UNTRAINED, Conversation, Plain, Sample
from ggufy.data.rows.turns import Turns, check_order, text_of, with_system
from ggufy.errors import DataError
from ggufy.model.template import Message
from ggufy.recipe.schema import Part
from ggufy.recipe.section import template_fields

__all__ = ["FORMATS", "BadRow", "Conversation", "Format", "Plain", "Reader", "Sample", "detect"]

Row = Mapping[str, Any]

# Between Alpaca's instruction and its input, where the prompt is not a chat template's.
ALPACA_INPUT = "\n\n### Input:\n"
# Beside the columns of a format: what they mean is the same in every format with turns.
_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_PREFERENCES = ("chosen", "rejected")
_OF_TURNS = ("tool_calls", "function_call", "reasoning_content", "thinking")
_WEIGHTS = ("weight", "train")


@dataclass(frozen=True)
class Format:
    columns: tuple[str, ...]
    """Those a row must have, by their usual names."""
    convert: Callable[[Row, Reader], Sample]
    looks_like: str
    other_names: tuple[Mapping[str, str], ...] = ()
    """Other names that its columns have in known data sets, where all of them are there."""
    may: tuple[str, ...] = ()
    """Columns that are read where they are there."""


class Reader:
    """Rows of one source as samples: by its format, its names for columns, and its prompt.

    `chat` is false for a base without a chat template: a prompt with its completion is then plain text.
    """

    def __init__(self, form: str, part: Part | None = None, *, chat: bool = True) -> None:
        self.part, self.chat = part, chat
        self.prompt = part.prompt if part else None
        self.fields = template_fields(self.prompt) if self.prompt else []
        self.own = {str(ours): theirs for ours, theirs in part.columns.items()} if part else {}
        roles = dict(part.roles) if part else {}
        self.turns = {
            "sharegpt": Turns(("from", "value"), self.own, roles),
            "messages": Turns(("role", "content"), self.own, roles),
        }
        self.unread: set[str] = set()
        """Columns, and keys of turns, that were set in a row and are not read."""
        self._seen: set[tuple[str, ...]] = set()
        self._source_form = form
        self._known: dict[tuple[str, ...], tuple[str, dict[str, str]] | None] = {}
        self._take(form, self.own)

    def _take(self, form: str, names: Mapping[str, str]) -> None:
        self.name_of_form, self.form, self.names = form, FORMATS[form], dict(names)

    def read(self, row: Any) -> Sample:
        """Raises BadRow."""
        if not isinstance(row, Mapping):
            raise BadRow(f"a row is an object with columns, not {type(row).__name__}")
        self._fit(row)
        self._refuse_meaning(row)
        sample = self.form.convert(row, self)
        if isinstance(sample, Plain):
            self._refuse_around(row)
        else:
            sample = self._around(row, sample)
        self._note_unread(row)
        return sample

    def _fit(self, row: Row) -> None:
        """Read this row in its own format, where tables were joined and each row has the columns of one of them.

        That of the source comes first, whatever the rows before were, so that nothing depends on their order.
        """
        self._take(self._source_form, self.own)
        if all(row.get(self.name(ours)) is not None for ours in self.form.columns):
            return
        if self.part is not None:
            there = tuple(column for column, value in row.items() if value is not None)
            if there not in self._known:
                self._known[there] = _matching(there, self.own, self.part.format)
            if found := self._known[there]:
                self._take(*found)
                return
        for ours in self.form.columns:
            if self.name(ours) not in row:
                raise BadRow(f"no column {self.name(ours)!r}, unlike the first row")

    def _refuse_meaning(self, row: Row) -> None:
        """Raises BadRow for a column that says what the row is, and that nothing here can do justice to."""
        own = {*self.fields, *self.names.values()}
        if lost := next((name for name in _MEDIA if _is_set(row.get(name)) and name not in own), None):
            raise BadRow(f"the column {lost!r} is set, and this model reads text only")
        if lost := next((name for name in _OF_TURNS if _is_set(row.get(name)) and name not in own), None):
            raise BadRow(f"the column {lost!r} is set; it is read as a key of a turn, in `messages`")
        weights = {name: row[name] for name in _WEIGHTS if row.get(name) not in (None, 1, "") and name not in own}
        if weights:
            name, value = next(iter(weights.items()))
            raise BadRow(f"the column {name!r} is {value!r}; weights are read as keys of turns, in `messages`")
        if all(row.get(name) is not None for name in _PREFERENCES) and not own & set(_PREFERENCES):
            raise BadRow("the row is a preference (chosen and rejected), which supervised training does not learn from")
        if isinstance(row.get("label"), bool) and "label" not in self.fields:
            raise BadRow("the row is a rated completion (label is true or false); only good ones are to be learnt")

    def _refuse_around(self, row: Row) -> None:
        for name in (*_SYSTEM, *_TOOLS):
            if _is_set(row.get(name)) and name not in self.fields and name not in self.names.values():
                raise BadRow(f"the column {name!r} is set, and a plain text has no place for it")

    def _around(self, row: Row, sample: list[Message]) -> Conversation:
        """With the system text and the tools that columns of the row hold."""
        found = sample if isinstance(sample, Conversation) else Conversation(sample)
        for name in _SYSTEM:
            if name not in self.fields and (system := row.get(name)) is not None:
                found = with_system(found, text_of(system, f"the column {name!r}", needed=False))
        for name in _TOOLS:
            listed = tools.of_column(row.get(name), f"the column {name!r}") if row.get(name) is not None else None
            if listed and found.tools not in (None, listed):
                raise BadRow(f"the column {name!r} has other tools than the row names elsewhere")
            found.tools = found.tools or listed
        return found

    def _note_unread(self, row: Row) -> None:
        columns = tuple(row)
        if columns not in self._seen:
            used = {*self.names.values(), *self.form.columns, *self.form.may, *self.fields, *_SYSTEM, *_TOOLS, "id"}
            used = {self.name(name) for name in used} | used
            fresh = {name for name in columns if name not in used and row[name] is not None}
            self.unread |= fresh
            # Columns that were null so far may be set in a later row.
            if not any(row[name] is None for name in columns if name not in used):
                self._seen.add(columns)
        if self.name_of_form in self.turns:
            [column] = self.form.columns
            extra = self.turns[self.name_of_form].unread(row.get(self.name(column)))
            self.unread |= {f"{self.name(column)}[].{key}" for key in extra}

    def name(self, ours: str) -> str:
        """What this source calls a column."""
        return self.names.get(ours, ours)

    def text(self, row: Row, ours: str, *, needed: bool = True) -> str:
        """A text of a row. Raises BadRow."""
        name = self.name(ours)
        value = row.get(name)
        if value is None and not needed:
            return ""
        return text_of(value, f"the column {name!r}", needed=needed)

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
                kind = "null" if value is None else type(value).__name__
                raise BadRow(f"data.prompt names {{{field}}}, which is {kind}, not a text")
            values[field] = value if isinstance(value, str) else str(value)
        return text_of(self.prompt.format_map(values), "the prompt")


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
    if found := _matching(columns, names, part.format):
        if found[0] == "text" and part.prompt:
            raise DataError(f"{where}: data.prompt does not apply to plain text", "leave it out, or set data.format")
        return found[0]
    there = f"the columns are {', '.join(sorted(columns)) or 'none'}"
    if part.format != "auto":
        form = FORMATS[part.format]
        lacking = [names.get(column, column) for column in form.columns if names.get(column, column) not in columns]
        raise DataError(
            f"{where}: not in the format {part.format}, which needs {' and '.join(map(repr, lacking))}: {there}",
            f"map other names with data.columns, or set data.format: auto; a row of {part.format} is {form.looks_like}",
        )
    if {"chosen", "rejected"} <= set(columns):
        raise DataError(
            f"{where}: these are preferences (chosen and rejected), which supervised training does not learn from",
            "to learn the chosen answers: data.columns: {completion: chosen}",
        )
    known = "; ".join(f"{name}: {form.looks_like}" for name, form in FORMATS.items())
    raise DataError(
        f"{where}: unknown format: {there}",
        f"map other names with data.columns, as {{prompt: question, completion: answer}}; known formats are {known}",
    )


def _matching(columns: Iterable[str], names: Mapping[str, str], form: str) -> tuple[str, dict[str, str]] | None:
    """The first format whose columns are there, and what they are called."""
    there = set(columns)
    wanted = FORMATS if form == "auto" else (form,)
    for name in wanted:
        if all(names.get(column, column) in there for column in FORMATS[name].columns):
            return name, dict(names)
    plain = {column.lower(): column for column in there}
    fitting: list[tuple[str, dict[str, str]]] = []
    for name in wanted:
        for others in ({column: column for column in FORMATS[name].columns}, *FORMATS[name].other_names):
            # A column that the recipe names itself is not looked for under another name.
            if all(column in names or other in plain for column, other in others.items()):
                found = {column: plain[other] for column, other in others.items() if column not in names}
                further = {column: plain[column] for column in FORMATS[name].may if column in plain}
                fitting.append((name, {**further, **found, **names}))
    # The one that reads the most columns, and of equals the first.
    return max(fitting, key=lambda one: len(one[1]), default=None)


def names_of(columns: Iterable[str], part: Part, form: str) -> dict[str, str]:
    """What the columns of a format are called in a source, by their usual names, where that is not the usual."""
    own = {str(ours): theirs for ours, theirs in part.columns.items()}
    found = _matching(columns, own, form)
    return {ours: theirs for ours, theirs in (found[1] if found else own).items() if ours != theirs}


def _sharegpt(row: Row, reader: Reader) -> Sample:
    return _turns(row, reader, "sharegpt", "conversations")


def _messages(row: Row, reader: Reader) -> Sample:
    return _turns(row, reader, "messages", "messages")


def _turns(row: Row, reader: Reader, form: str, column: str) -> Conversation:
    conversation = reader.turns[form].read(row[reader.name(column)])
    first = next(message for message in conversation if message["role"] == "user")
    first["content"] = reader.asked(row, first["content"])
    return conversation


def _alpaca(row: Row, reader: Reader) -> Sample:
    usual, given = reader.text(row, "instruction"), reader.text(row, "input", needed=False)
    alone = usual
    if given.strip():
        usual += ("\n\n" if reader.chat else ALPACA_INPUT) + given
    asked = reader.asked(row, usual, alone=alone, given=given)
    return Conversation([*_history(row), *_exchange(asked, reader.text(row, "output"))])


def _history(row: Row) -> list[Message]:
    """The turns before an Alpaca row's instruction, each a pair of question and answer, which are trained on too."""
    found: list[Message] = []
    value = row.get("history")
    if value in (None, "", "[]", "null"):
        return found
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise BadRow("the column 'history' is a list of pairs of question and answer")
    for number, (question, answer) in enumerate(value, 1):
        where = f"the column 'history', pair {number}"
        found += _exchange(text_of(question, where), text_of(answer, where))
    return found


def _prompt_completion(row: Row, reader: Reader) -> Sample:
    given, told = row[reader.name("prompt")], row[reader.name("completion")]
    if isinstance(given, list) and isinstance(told, list):
        return _conversational(given, told, reader)
    prompt, completion = reader.asked(row, reader.text(row, "prompt")), reader.text(row, "completion")
    before = _history(row)
    if reader.chat or before:
        return Conversation([*before, *_exchange(prompt, completion)])
    return Plain(prompt, completion)


def _conversational(given: list[Any], told: list[Any], reader: Reader) -> Conversation:
    """A prompt and a completion that are turns: of these only the completion is trained on (as in trl)."""
    found = reader.turns["messages"].read([*given, *told])
    for message in found[: len(found) - len(told)]:
        if message["role"] == "assistant":
            message[UNTRAINED] = True
    check_order(found)
    return found


def _plain_text(row: Row, reader: Reader) -> Sample:
    return Plain("", reader.text(row, "text"))


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
    "text": Format(("text",), _plain_text, '{"text": "..."}'),
}


def _is_set(value: Any) -> bool:
    """Whether a column holds something: not null, empty, or a struct that a joined table left without values."""
    return (
        any(map(_is_set, value.values())) if isinstance(value, Mapping) else value is not None and value not in ("", [])
    )


def _exchange(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
