"""Read the prompts of an evaluation: ggufy's own everyday tasks, or a file of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from ggufy.errors import EvalError
from ggufy.evaluate.metrics.answers import Question
from ggufy.model.template import Message

_SHAPES = (
    'each prompt is a text, or an object such as {"prompt": "..."} with, if wanted, id, system, expected and language, '
    'or {"messages": [...]} that ends with the user'
)
_KEYS = {"id", "prompt", "system", "messages", "expected", "language"}


def own() -> list[Question]:
    """ggufy's everyday tasks."""
    return read(Path(str(resources("ggufy") / "evaluate" / "metrics" / "prompts.yaml")))


def read(path: Path) -> list[Question]:
    """The questions in a file: .jsonl, .json, .yaml, or text with one in each line. Raises EvalError."""
    if not path.is_file():
        raise EvalError(f"no file {path.as_posix()}", "name a file with prompts: .jsonl, .yaml or .txt")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EvalError(f"{path.as_posix()}: not UTF-8 text: {error.reason}", "save the file as UTF-8") from None
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for number, (where, item) in enumerate(_items(path, text), 1):
        question = _question(item, number, where)
        if question.id in seen:
            raise EvalError(
                f"{where}: the id {question.id!r} is used twice, first at {seen[question.id]}",
                "give each prompt its own id",
            )
        seen[question.id] = where
        questions.append(question)
    if not questions:
        raise EvalError(f"{path.as_posix()}: there are no prompts in it", _SHAPES)
    return questions


def _items(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Each prompt, and where it stands."""
    name = path.as_posix()
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml", ".json"):
        found = _parsed(name, kind, text)
        if not isinstance(found, list):
            raise EvalError(f"{name}: it holds one {_kind(found)}, not a list of prompts", _SHAPES)
        for number, item in enumerate(found, 1):
            yield f"{name}: prompt {number}", item
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            where = f"{name}:{number}"
            yield where, _parsed(where, kind, line) if kind == ".jsonl" else line.strip()


def _parsed(where: str, kind: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) if kind in (".yaml", ".yml") else json.loads(text)
    except json.JSONDecodeError as error:
        raise EvalError(f"{where}: not JSON: {error.msg} at column {error.colno}", _SHAPES) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise EvalError(f"{where}{line}: not YAML: {getattr(error, 'problem', error)}", _SHAPES) from None


def _question(item: Any, number: int, where: str) -> Question:
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, dict):
        raise EvalError(f"{where}: it is a {_kind(item)}, not a prompt", _SHAPES)
    if unknown := [key for key in item if key not in _KEYS]:
        raise EvalError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}", _SHAPES)
    for key in _KEYS - {"messages", "id"}:
        if item.get(key) is not None and not (isinstance(item[key], str) and item[key].strip()):
            raise EvalError(f"{where}: {key!r} is not a text", _SHAPES)
    if "\\ud" in json.dumps(item) and _is_broken(item):
        raise EvalError(f"{where}: it has half a character (a lone surrogate)", "save the file as UTF-8 again")
    name = item.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        raise EvalError(f"{where}: 'id' is neither a text nor a number", _SHAPES)
    return Question(str(name), _conversation(item, where), item.get("expected"), item.get("language"))


def _is_broken(item: dict[str, Any]) -> bool:
    try:
        json.dumps(item, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _conversation(item: dict[str, Any], where: str) -> list[Message]:
    if ("prompt" in item) == ("messages" in item):
        problem = "both 'prompt' and 'messages'" if "prompt" in item else "neither 'prompt' nor 'messages'"
        raise EvalError(f"{where}: it has {problem}", _SHAPES)
    if "prompt" in item:
        before: list[Message] = [{"role": "system", "content": item["system"]}] if item.get("system") else []
        if not isinstance(item["prompt"], str):
            raise EvalError(f"{where}: 'prompt' is not a text", _SHAPES)
        return [*before, {"role": "user", "content": item["prompt"]}]
    turns = item["messages"]
    if "system" in item:
        raise EvalError(f"{where}: 'system' and 'messages' together", "make it the first of the messages")
    if not isinstance(turns, list) or not turns:
        raise EvalError(f"{where}: 'messages' is not a list of turns", _SHAPES)
    for turn in turns:
        if not (
            isinstance(turn, dict)
            and turn.get("role") in ("system", "user", "assistant")
            and isinstance(turn.get("content"), str)
        ):
            raise EvalError(f"{where}: a turn is not {{'role': system, user or assistant, 'content': a text}}", _SHAPES)
    if turns[-1]["role"] != "user":
        raise EvalError(f"{where}: the last turn is the {turns[-1]['role']}'s", "end it with what the user asks")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", type(None): "null", bool: "boolean"}
    return names.get(type(value), "number")
