"""Chat templates: Jinja programs from model repositories, rendered in a sandbox with a pinned date.

Training and chat render through the same class, so what the model saw is what it is asked with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from ggufy.errors import ModelError

Message = dict[str, Any]
"""A turn: its `role` and `content`; of some also `tool_calls`, `name`, `tool_call_id`, `reasoning_content`."""

_TOOL_USE = "tool_use"
KEY = "tokenizer.chat_template"
TOOLS_KEY = f"{KEY}.{_TOOL_USE}"
"""Where a GGUF has its template, and that for tools."""
_MAX_TEMPLATE = 200_000
_MAX_RANGE = 10_000
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class ChatTemplate:
    """A chat template with the special tokens it names. Rendering follows what transformers gives to templates."""

    def __init__(self, text: str, special: dict[str, str], where: str) -> None:
        if len(text) > _MAX_TEMPLATE:
            raise ModelError(
                f"{where}: the chat template is {len(text):,} characters long; at most {_MAX_TEMPLATE:,} are read"
            )
        self.text, self.special, self.where = text, special, where
        self.others: tuple[str, ...] = ()
        """The names of more templates that the model has."""
        self.tool_use: ChatTemplate | None = None
        """The one that conversations with tools are written by, where the model has one of its own for them."""
        if not text:
            raise ModelError(f"{where}: there is no chat template", "use an Instruct model, which has one")
        import jinja2

        try:
            self._compiled: Any = _environment().from_string(text)
        except jinja2.TemplateError as error:
            raise ModelError(
                f"{where}: the chat template is not valid: {error}", "take the base's original one"
            ) from None

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """The template of a model folder: chat_template.jinja, else the one in tokenizer_config.json."""
        named = named_templates(folder)
        special, where = cls.specials(folder), folder.as_posix()
        found = cls(named.pop("default", ""), special, where)
        found.others = tuple(sorted(named))
        if text := named.get(_TOOL_USE):
            found.tool_use = cls(text, special, where)
        return found

    @classmethod
    def from_keys(cls, texts: Mapping[str, str], special: dict[str, str], where: str) -> ChatTemplate:
        """The templates of a GGUF, by its keys KEY and TOOLS_KEY."""
        found = cls(texts.get(KEY, ""), special, where)
        if text := texts.get(TOOLS_KEY):
            found.tool_use, found.others = cls(text, special, where), (_TOOL_USE,)
        return found

    def used(self, tools: list[Any] | None) -> ChatTemplate:
        """The template that a conversation with these tools is written by, as transformers chooses it."""
        return self if tools is None or self.tool_use is None else self.tool_use

    @staticmethod
    def specials(folder: Path) -> dict[str, str]:
        """The special tokens that a model folder names: {"bos_token": "<|begin_of_text|>", ...}."""
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        named = named_specials(folder, config)
        return {key: text for key, value in named.items() if (text := content_of(value))}

    def render(
        self, messages: Sequence[Message], day: date, *, generate: bool = False, tools: list[Any] | None = None
    ) -> str:
        """The text of a conversation on a day; with `generate`, up to where the assistant begins to speak.

        `tools` are JSON schemas of the functions that the assistant may call.
        """
        import jinja2

        if (other := self.used(tools)) is not self:
            return other.render(messages, day, generate=generate, tools=tools)
        try:
            text = self._compiled.render(
                messages=list(messages),
                add_generation_prompt=generate,
                tools=tools,
                documents=None,
                date_string=f"{day.day:02d} {_MONTHS[day.month - 1]} {day.year}",
                strftime_now=lambda form: datetime(day.year, day.month, day.day).strftime(form),
                **self.special,
            )
            return str(text)
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"{self.where}: the chat template refuses this conversation: {error}") from None


def named_specials(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The special tokens that a folder names, as they are written there: texts, or texts with flags.

    `config` is its tokenizer_config.json. As transformers does: where the added tokens are not listed there,
    special_tokens_map.json has the last word.
    """
    config = with_special_tokens_map(folder, config)
    named = {key: value for key, value in config.items() if key.endswith("_token") and value}
    return {key: value for key, value in named.items() if isinstance(value, str | dict)}


def with_special_tokens_map(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with what special_tokens_map.json says, where that counts. Raises ModelError."""
    beside = folder / "special_tokens_map.json"
    if not beside.is_file() or "added_tokens_decoder" in config:
        return config
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise ModelError(
            f"{beside.as_posix()} cannot be read: {error}", "copy the tokenizer's files again, or remove this one"
        ) from None
    return {**config, **said}


def content_of(token: Any) -> str | None:
    """The text of a special token, which may be written with its flags."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def text_of(folder: Path) -> str:
    """The text of a model folder's template; empty for a base model, which has none."""
    return named_templates(folder).get("default", "")


def named_templates(folder: Path) -> dict[str, str]:
    """The templates of a model folder by name, from where transformers reads them; a lone one is `default`."""
    beside, more = folder / "chat_template.jinja", folder / "additional_chat_templates"
    found = {path.stem: _text(path) for path in sorted(more.glob("*.jinja"))}
    if beside.is_file():
        return {**found, "default": _text(beside)}
    given = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template") or ""
    if isinstance(given, list):
        try:
            given = {entry["name"]: entry["template"] for entry in given}
        except (TypeError, KeyError) as error:
            raise ModelError(
                f"{(folder / 'tokenizer_config.json').as_posix()}: its chat_template cannot be read: {error!r}; of "
                "several each has a name and a template",
                "copy it again",
            ) from None
    if not isinstance(given, dict):
        given = {"default": given}
    return {**{name: str(text) for name, text in given.items()}, **found}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path.as_posix()} is not UTF-8: {error}", "save the chat template in UTF-8") from None


def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """transformers marks the assistant's part with {% generation %}; it renders as what it encloses."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Sandbox(ImmutableSandboxedEnvironment):
        def call(__self, __context, __obj, *args, **kwargs):  # type: ignore[no-untyped-def] # noqa: N805
            if __obj is range and len(range(*args)) > _MAX_RANGE:
                raise TemplateError(f"a range of more than {_MAX_RANGE}")
            return super().call(__context, __obj, *args, **kwargs)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """With the arguments of transformers' own, in their order."""
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment
