"""What Hermes' data writes as text: tools in the system turn, calls in the assistant's, results in the tool's.

A system turn is "You are a function calling AI model. ... <tools>[...]</tools> ... <tool_call>...</tool_call>". Qwen's
chat templates, and the data that was rendered by them, say it in nearly the same words.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows import tools

_CALL, _END = "<tool_call>", "</tool_call>"
_RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.DOTALL)
_FENCE = "```"
_EMPTY_FENCE = re.compile(r"```\w*\s*```")
# Where somebody writes about calls: nothing, "and", {json}, <call>, ..., or an object with <name> for a value.
_STAND_IN = re.compile(r"""(?:\{[\w .-]+\}|<[\w -]+>|\.\.\.|…|and|or|to)?|\{.*:\s*["']?<[\w -]+>.*\}""", re.DOTALL)
# One that was to be a call, whether or not it could be read.
_BEGINS_LIKE_ONE = re.compile(r"[\[{]|<function")

_TAGS = "<{0}> ?</{0}>"
_OBJECT = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
# The sentences of Hermes that say how Hermes is given functions, and calls: the template says how this model does.
# Whatever else is in a system text somebody wrote for this one.
_SENTENCES = (
    r"You are a function calling AI (?:model|agent)\.",
    r"(?:# Tools )?You may call one or more functions to assist with the user query\.",
    rf"You are provided with function signatures within {_TAGS.format('tools')} (?:XML )?tags ?[.:]",
    r"If available tools are not relevant in assisting with user query, "
    r"just respond in natural conversational language\.",
    r"Don[’']t make assumptions about what values to plug into functions?(?: arguments)?\.",
    rf"After calling (?:&|and) executing the functions?, you will be provided with function results within "
    rf"{_TAGS.format('tool_response')} XML tags\.",
    r"Here are the available tools ?:",
    r"Use the following (?:pydantic model )?json schema for each tool call you will make ?: "
    rf"(?:``` ?)?{_OBJECT}(?: ?```)?",
    r"For each function call,? return a json object, with the following pydantic model json schema(?: for each)? ?: "
    rf"{_OBJECT}",
    rf"Each function call should be enclosed within {_TAGS.format('tool_call')} (?:XML )?tags\."
    rf"(?: Example ?: <tool_call> ?{_OBJECT} ?</tool_call>)?",
    r"For each function call,? return a (?:valid )?json object (?:\(using double quotes\) )?with (?:the )?function "
    rf"name and arguments within [`]?{_TAGS.format('tool_call')}[`]? (?:XML )?tags"
    rf"(?: as follows| with the following schema)? ?[.:](?: (?:``` ?)?<tool_call> ?{_OBJECT} ?</tool_call>(?: ?```)?)?",
)
_KNOWN = re.compile("|".join(one.replace(" ?", r"\s*").replace(" ", r"\s+") for one in _SENTENCES), re.IGNORECASE)


def in_text(text: str, where: str) -> tuple[str, list[dict[str, Any]]]:
    """What an assistant says, and the calls that are written into it. Raises BadRow.

    What stands in code, or holds something in the place of a call, is about calls: text.
    """
    if _CALL not in text:
        return text, []
    said, made, at = "", [], 0
    while (start := text.find(_CALL, at)) >= 0:
        begin = start + len(_CALL)
        end = text.find(_END, begin)
        body = text[begin : end if end >= 0 else None].strip()
        said += text[at:start]
        likely = _BEGINS_LIKE_ONE.match(body) is not None
        if _is_quoted(said, text, end) or (not likely and (end < 0 or _CALL in body)):
            said, at = said + _CALL, begin
            continue
        if end < 0:
            raise BadRow(f"{where}: {_CALL} is not closed by {_END}")
        at = end + len(_END)
        try:
            made += tools.calls(body, f"{where}: {_CALL}")
        except BadRow:
            if not _STAND_IN.fullmatch(body):
                raise
            said += text[start:at]
        else:
            said, at = f"{said.rstrip()}\n", at + len(text[at:]) - len(text[at:].lstrip())
    if not made:
        return text, []
    return _EMPTY_FENCE.sub("", said + text[at:]).strip(), made


def _is_quoted(before: str, text: str, end: int) -> bool:
    """Whether a mark after this text, which ends there, is in code: between backticks, or in a block beside words."""
    if before.count(_FENCE) % 2:
        return bool(before.rpartition(_FENCE)[0].strip() or text.rpartition(_FENCE)[2].strip())
    line = before.rpartition("\n")[2]
    return bool(line.count("`") % 2) and "`" in text[max(end, 0) :].partition("\n")[0]


def result(text: str) -> str:
    """What a tool gave back, without the marks around it."""
    found = _RESULT.findall(text)
    return "\n".join(found) if found and not _RESULT.sub("", text).strip() else text


def in_system(text: str) -> tuple[str, list[Any] | None]:
    """A system turn without the tools that are listed in it, and without Hermes' words about them; and these tools."""
    # The instructions around them name the marks too, with nothing between.
    for match in _TOOLS.finditer(text):
        lines = match[1].strip()
        try:
            found = json.loads(lines)
        except ValueError:
            try:
                found = [json.loads(line) for line in lines.splitlines() if line.strip()]
            except ValueError:
                continue
        listed = found if isinstance(found, list) else [found]
        if not listed:
            continue
        rest = _own(text[: match.start()], text[match.end() :])
        return rest, [tools.tool(one, f"<tools>: tool {number}") for number, one in enumerate(listed, 1)]
    return text, None


def _own(before: str, after: str) -> str:
    """What somebody wrote around the tools."""
    if not _KNOWN.search(before) and not _KNOWN.search(after):
        return f"{before}{after}".strip()
    # Fences that were around the tools or an example are left with nothing between them.
    pieces = [piece.strip() for part in (before, after) for piece in _KNOWN.split(part)]
    return _EMPTY_FENCE.sub("", "\n\n".join(piece for piece in pieces if piece)).strip()
