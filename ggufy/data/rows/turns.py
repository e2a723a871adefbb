"""The turns of a row as messages: roles under their many names, texts in parts, calls, reasoning, and weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows import glaive, hermes, tools, weights
from ggufy.data.rows.conversation import Conversation
from ggufy.data.rows.texts import is_parts, is_set, text_of
from ggufy.model.template import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "observation": "tool",
}
PAIRS = (("role", "content"), ("from", "value"))
_PAIRED = frozenset(key for pair in PAIRS for key in pair)
_REASONING = ("reasoning_content", "thinking", "reasoning")
_CALLS = ("tool_calls", "function_call")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_OF_RESULTS = ("name", "tool_call_id")
_TOOLS = ("tools", "functions")
_NOT_OF_TURNS = frozenset({*_MEDIA, *_TOOLS})


class Turns:
    """How the turns of one source are read: under which keys, and which of its own names its roles have."""

    def __init__(self, usual: tuple[str, str], names: Mapping[str, str], roles: Mapping[str, str]) -> None:
        own = "role" in names or "content" in names
        self.keys = (names.get("role", usual[0]), names.get("content", usual[1])) if own else None
        self.usual = usual
        self.roles = {**ROLES, **{name.lower(): role for name, role in roles.items()}}

    def listed(self, turns: Any, column: str) -> Sequence[Any]:
        """The turns that a column holds, also as JSON, or by key. Raises BadRow."""
        if isinstance(turns, str) and turns.lstrip().startswith("["):
            turns = _parsed(turns)
        if isinstance(turns, Mapping):
            turns = _by_turn(turns)
        if not isinstance(turns, list | tuple) or not turns:
            none = "null" if turns is None else "empty" if turns in ([], ()) else ""
            here = f"the column {column!r}"
            raise BadRow(f"no turns: {here} is {none}" if none else f"turns are a list, not {_kind(turns)}, in {here}")
        return turns

    def read(self, turns: Sequence[Any], system: Any = None) -> Conversation:
        """Turns as messages, beside a column with this system text. Raises BadRow."""
        glaives: bool | None = None
        found = Conversation()
        for number, turn in enumerate(turns, 1):
            message = self._message(turn, f"turn {number}")
            if message is None:
                continue
            if message["role"] == "system":
                message["content"], found.tools = in_system(message["content"], f"turn {number}")
                if not message["content"]:
                    continue
            if message["role"] == "assistant" and glaive.END in message["content"]:
                glaives = self._are_glaives(turns, system) if glaives is None else glaives
                if glaives and not _end(message) and not message.get("tool_calls"):
                    raise BadRow(f"turn {number} is empty")
            found.append(message)
        if not found:
            raise BadRow("no turns")
        check_order(found)
        return found

    def _are_glaives(self, turns: Sequence[Any], system: Any) -> bool:
        texts: dict[str, list[str]] = {}
        for turn in turns:
            if (keys := self._keys(turn)) and (role := self.roles.get(str(turn[keys[0]]).lower())):
                texts.setdefault(role, []).append(str(turn.get(keys[1])))
        told = "\n".join([str(system or ""), *texts.get("system", [])])
        return glaive.is_own(told, texts.get("assistant", []), calls="call" in texts)

    def unread(self, turns: Sequence[Any]) -> set[str]:
        """Keys that nothing here reads of the turns they are set in, which `read` has taken."""
        return {
            key
            for turn in turns
            # A role and a text alone are the rule.
            if len(turn) > 2
            for key, value in turn.items()
            if is_set(value) and not self._reads(turn, key, value)
        }

    def _reads(self, turn: Mapping[str, Any], key: str, value: Any) -> bool:
        """Whether a key means something in a turn of this role, and that is done."""
        if key in (self.keys or _PAIRED) or key in _MEDIA:
            return True
        if key in weights.KEYS and weights.is_learnt(key, value) is False:
            return True
        keys = self._keys(turn)
        role = self.roles[str(turn[keys[0]]).lower()] if keys else ""
        if role in ("assistant", "call"):
            return key in (*weights.KEYS, *_REASONING, *_CALLS)
        return role == "tool" and key in _OF_RESULTS and isinstance(value, str)

    def _message(self, turn: Any, where: str) -> Message | None:
        """None for an empty system turn, which means that there is none."""
        keys = self._keys(turn)
        if keys is None:
            usual = self.keys or self.usual
            raise BadRow(f"{where} has no {usual[0]!r} and {usual[1]!r}")
        role = self.roles.get(str(turn[keys[0]]).lower())
        if role is None:
            known = ", ".join(name for name in ROLES if name != "call")
            raise BadRow(f"{where}: unknown role {turn[keys[0]]!r}; known are {known}; data.roles maps others")
        if not _NOT_OF_TURNS.isdisjoint(turn):
            _refuse_keys(turn, where)
        said = turn.get(keys[1])
        called = _one_of(turn, _CALLS, where)
        reasoning = _one_of(turn, _REASONING, where)
        if role not in ("assistant", "call") and (called is not None or reasoning is not None):
            what = "calls a tool" if called is not None else "has reasoning"
            raise BadRow(f"{where} is a {role} turn that {what}; only the assistant does")
        if role == "call":
            message = _call(said, called, where)
            return weights.marked(_with_reasoning(message, reasoning, where), turn, where)
        if said is None and (called is not None or role == "system"):
            said = ""
        if role == "tool" and isinstance(said, dict | list) and not is_parts(said):
            said = json.dumps(said, ensure_ascii=False)
        if not isinstance(said, str | list):
            kind = "null" if said is None else _kind(said)
            raise BadRow(f"{where} is {kind}, not a string, under its key {keys[1]!r}")
        text = text_of(said, where, needed=called is None and role not in ("system", "tool"))
        if role == "system" and not text.strip():
            return None
        message = {"role": role, "content": text}
        if role == "tool":
            message["content"] = hermes.result(text)
            message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
        if role == "assistant":
            message = _answer(text, called, where)
        return weights.marked(_with_reasoning(message, reasoning, where), turn, where)

    def _keys(self, turn: Any) -> tuple[str, str] | None:
        """The keys of role and text: the recipe's, the format's, or the other's, as many files mix the two.

        Tables that were joined have the keys of both, and null under those that are not a turn's own.
        """
        if not isinstance(turn, Mapping):
            return None
        pairs = (self.keys,) if self.keys else (self.usual, *PAIRS)
        held = [keys for keys in pairs if turn.get(keys[0]) is not None and keys[1] in turn]
        texts = [turn[keys[1]] for keys in held if turn[keys[1]] is not None]
        if any(text != texts[0] for text in texts):
            raise BadRow("a turn says two things, under the keys of two formats")
        called = [keys for keys in pairs if turn.get(keys[0]) is not None and any(turn.get(key) for key in _CALLS)]
        return next((keys for keys in held if turn[keys[1]] is not None), next(iter([*held, *called]), None))


def _kind(value: Any) -> str:
    return type(value).__name__


def in_system(text: str, where: str) -> tuple[str, list[Any] | None]:
    """A system text without the tools that Hermes or Glaive write into it, and these tools. Raises BadRow."""
    rest, listed = hermes.in_system(text)
    return (rest, listed) if listed else glaive.in_system(text, where)


def _end(message: Message) -> str:
    """The text of an answer of Glaive's, from now on without the mark after it."""
    message["content"] = glaive.without_end(message["content"])
    return str(message["content"])


def _refuse_keys(turn: Mapping[str, Any], where: str) -> None:
    """Raises BadRow where a key is set that means something, but not in a turn, or not to this model."""
    if lost := next((key for key in _MEDIA if turn.get(key)), None):
        raise BadRow(f"{where} has {lost!r}, and this model reads text only")
    if lost := next((key for key in _TOOLS if is_set(turn.get(key))), None):
        raise BadRow(f"{where} has {lost!r}; they are read as a column of the row")


def _answer(text: str, called: Any, where: str) -> Message:
    """A turn of the assistant, with the calls under a key of their own and those in its text. Raises BadRow."""
    made = tools.calls(called, f"{where}: tool_calls") if called is not None else []
    text, written = hermes.in_text(text, where)
    text, called_by_glaive = glaive.in_text(text, where)
    message: Message = {"role": "assistant", "content": text}
    if made or written or called_by_glaive:
        message["tool_calls"] = [*made, *written, *called_by_glaive]
    return message


def _call(said: Any, called: Any, where: str) -> Message:
    """A turn that is a call: as its text, or under a key of its own. Raises BadRow."""
    made = glaive.calls(said if said is not None else called, where)
    if said is not None and called is not None and tools.calls(called, where) != made:
        raise BadRow(f"{where} calls two things, under two keys")
    return {"role": "assistant", "content": "", "tool_calls": made}


def _one_of(turn: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:
    """What one of these keys holds, None where none is set. Raises BadRow where two differ."""
    held = {name: turn[name] for name in names if turn.get(name) and turn[name] != "[]"}
    values = list(held.values())
    if any(value != values[0] for value in values):
        raise BadRow(f"{where} has {' and '.join(held)}, which differ")
    return values[0] if values else None


def _with_reasoning(message: Message, reasoning: Any, where: str) -> Message:
    if reasoning is not None:
        message["reasoning_content"] = text_of(reasoning, f"{where}: the reasoning")
    return message


def check_order(conversation: Conversation) -> None:
    """Raises BadRow where the turns do not follow each other as those of a conversation."""
    roles = [message["role"] for message in conversation]
    if "system" in roles[1:]:
        raise BadRow(f"turn {roles.index('system', 1) + 1}: a system turn can only come first")
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or "assistant" not in spoken:
        raise BadRow("the assistant says nothing, so there is nothing to learn")
    if spoken[0] != "user":
        who = "the assistant" if spoken[0] == "assistant" else "a tool"
        raise BadRow(f"{who} speaks first; a conversation starts with the user")
    ahead = len(roles) - len(spoken)
    for number, (before, after) in enumerate(pairwise(conversation[ahead:]), 2 + ahead):
        if before["role"] == after["role"] and after["role"] != "tool":
            raise BadRow(f"turn {number}: two {after['role']} turns in a row")
        if after["role"] == "tool" and before["role"] != "tool" and not before.get("tool_calls"):
            raise BadRow(f"turn {number}: a tool answers, and the turn before calls none")


def with_system(conversation: Conversation, system: str, names: Sequence[str] = ()) -> Conversation:
    """With a system turn first that a column of its row holds. Raises BadRow where there is another one.

    `names` are the columns that said so, this one last.
    """
    if not system.strip():
        return conversation
    if conversation[0]["role"] != "system":
        return Conversation([{"role": "system", "content": system}, *conversation], conversation.tools)
    if conversation[0]["content"].strip() != system.strip():
        both = " and ".join(map(repr, names))
        what = f"the columns {both} differ" if len(names) > 1 else "a system turn and a system column that differ"
        raise BadRow(f"{what}: which one holds is not said")
    return conversation


def _by_turn(columns: Mapping[str, Any]) -> Any:
    """Turns that a table holds by key, as {"role": [...], "content": [...]}; else what is given."""
    lists = list(columns.values())
    if not lists or not all(isinstance(values, list) and len(values) == len(lists[0]) for values in lists):
        return columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow("turns are a list, not a text; it begins like JSON, and is none") from None
