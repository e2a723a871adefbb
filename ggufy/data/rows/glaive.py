"""What Glaive's function calling data (version 2) writes as text: functions, turns, calls, and the end of answers.

As published a row is {"system": "SYSTEM: ...", "chat": "USER: ...\\n\\n\\nASSISTANT: ... <|endoftext|>"}. Conversions
to turns often keep some of that: the functions in the system turn, <functioncall> in answers, <|endoftext|> after them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows import tools

END = "<|endoftext|>"
"""What stands after each answer. In the data of others it is text like any other."""

_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_MARK = r"(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*"
# As published, empty lines are between turns; copies without them have one turn a line.
_APART = re.compile(rf"(?:\A|(?:\r?\n[ \t]*){{3,}}){_MARK}")
_LINES = re.compile(rf"(?:\A|\r?\n[ \t]*){_MARK}")
# A call is an object. Somebody may write about the mark itself.
_CALL = re.compile(r"<functioncall>\s*(?=\{)")
_QUOTED = re.compile(r"""\{\s*"name"\s*:\s*("[^"]*")\s*,\s*"arguments"\s*:\s*'(.*)'\s*\}""", re.DOTALL)
# Of the system text what only leads to the functions; who else the assistant is stays.
_PROSE = re.compile(
    r"(?:\bYou are an? helpful assistant\b)?[ ,]*(?:\b(?:with|who has|that has|and have|(?:and )?you have)\b[ ]*)?"
    r"\baccess to the following functions\b(?: to help the user)?[.,:;]?\s*"
    r"(?:(?:you can )?use (?:them|the functions) if (?:required|needed)\s*[-:.]*)?",
    re.IGNORECASE,
)
_NONE = re.compile(r"\bno access to external functions\b", re.IGNORECASE)
_OBJECT = re.compile(r'\[\s*\{\s*"|\{\s*"')
_BETWEEN = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder()


def turns(chat: Any, where: str) -> list[dict[str, str]]:
    """The turns of a published row, with calls as they are in its text. Raises BadRow."""
    if not isinstance(chat, str):
        hint = "; data.columns: {messages: chat} reads turns" if isinstance(chat, list) else ""
        raise BadRow(f"{where} is {type(chat).__name__}, not a text of USER: and ASSISTANT:{hint}")
    chat = chat.strip()
    begin, *parts = _APART.split(chat)
    if len(parts) <= 2:
        begin, *parts = _LINES.split(chat)
    if begin or not parts:
        raise BadRow(f"{where} begins neither with USER: nor with another role of Glaive's: {chat[:40]!r}")
    found: list[dict[str, str]] = []
    for number, (name, text) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1):
        role, text = _ROLES[name], without_end(text.strip())
        if END in text and (role == "assistant" or _LINES.search(text)):
            raise BadRow(f"{where}, turn {number}: {name}: goes on after {END}")
        if role == "assistant" and found and found[-1]["role"] == "assistant" and _CALL.match(text):
            # Said and called by the same, one after the other.
            found[-1]["content"] += f"\n\n{text}"
        else:
            found.append({"role": role, "content": text})
    return found


def without_end(text: str) -> str:
    """An answer without the mark after it."""
    while text.rstrip().endswith(END):
        text = text.rstrip().removesuffix(END).rstrip()
    return text


def in_text(text: str, where: str) -> tuple[str, list[dict[str, Any]]]:
    """What an assistant says, and the calls that Glaive writes after it. Raises BadRow."""
    if "<functioncall>" not in text:
        return text, []
    said, *written = _CALL.split(text)
    if not written:
        return text, []
    return without_end(said).strip(), [one for call in written for one in calls(call, f"{where}: <functioncall>")]


def calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls that a turn is, as others write them, or as Glaive does: with JSON in single quotes. Raises BadRow."""
    if not isinstance(value, str):
        return tools.calls(value, where)
    text = without_end(_CALL.sub("", value)).strip()
    if quoted := _QUOTED.fullmatch(text):
        # An apostrophe inside these quotes is there as it is, or after a backslash, which JSON does not have.
        given = next((one for one in (quoted[2], quoted[2].replace("\\'", "'")) if _is_json(one)), quoted[2])
        value = {"name": json.loads(quoted[1]), "arguments": given}
        return tools.calls(value, where)
    return tools.calls(text, where)


def in_system(text: str, where: str) -> tuple[str, list[Any] | None]:
    """A system text without the functions that Glaive lists in it, and these functions. Raises BadRow."""
    prose = _PROSE.search(text) if "following functions" in text else None
    opens = _OBJECT.search(text, prose.end()) if prose else None
    if prose is None or opens is None:
        return text, None
    found: list[Any] = []
    end, at = opens.start(), opens.start()
    while _OBJECT.match(text, at):
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            raise BadRow(f"{where}: function {len(found) + 1} is not JSON: {text[at : at + 60]!r}") from None
        found += value if isinstance(value, list) else [value]
        at = _after(text, end)
    before = text[: prose.start()].strip().removeprefix("SYSTEM:")
    # "You are a pirate with access to ..." is a sentence without what follows, too.
    own = [f"{before}." if before[-1:].isalnum() else before, text[prose.end() : opens.start()], text[end:]]
    rest = "\n\n".join(piece.strip() for piece in own if piece.strip())
    return rest, [tools.tool(one, f"{where}: function {number}") for number, one in enumerate(found, 1)]


def is_own(system: str, said: Iterable[str], *, calls: bool) -> bool:
    """Whether turns are Glaive's, so that the mark after answers is one.

    By what the system text says of functions, by a call in an answer, or, where calls are turns of their own, by the
    mark after every answer.
    """
    texts = list(said)
    if _PROSE.search(system) or _NONE.search(system) or any(map(_CALL.search, texts)):
        return True
    return calls and all(text.rstrip().endswith(END) for text in texts)


def _after(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    assert found is not None
    return found.end()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
