"""Save and load conversations. A file is a JSON object whose `messages` can serve as a row of training data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ggufy.chat.conversation import Conversation
from ggufy.errors import ChatError

_LARGEST = 50_000_000
_HINT = "name a file that /save wrote"


def save(path: Path, talks: Sequence[tuple[str, Conversation]], *, replace: bool = False) -> None:
    """Write what was said, with the names of the models. A file that is there is kept. Raises ChatError."""
    found = [{"model": name, "messages": talk.everything()} for name, talk in talks]
    values = {**found[0], **({"compared": found[1]} if len(found) > 1 else {})}
    text = json.dumps(values, ensure_ascii=False) + "\n"
    try:
        with path.open("w" if replace else "x", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except FileExistsError:
        raise ChatError(f"{path.as_posix()} exists already", "choose another name") from None
    except OSError as error:
        raise ChatError(f"{path.as_posix()} cannot be written: {error.strerror}", "choose another place") from None


def load(path: Path) -> list[Conversation]:
    """The conversation in a file, and the one beside it where two models were compared. Raises ChatError."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ChatError(f"{path.as_posix()} is too large for a conversation", _HINT)
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ChatError(f"{path.as_posix()} cannot be read: {error.strerror}", "check the path") from None
    except (ValueError, RecursionError):
        raise ChatError(f"{path.as_posix()} is not JSON", _HINT) from None
    try:
        first = _of(values)
        return [first, _of(values["compared"])] if "compared" in values else [first]
    except ValueError as error:
        raise ChatError(f"{path.as_posix()}: {error}", _HINT) from None


def _of(values: Any) -> Conversation:
    messages = values.get("messages") if isinstance(values, dict) else None
    if not isinstance(messages, list):
        raise ValueError("there are no messages in it")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(f"message {number} has no role and content")
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError("user and assistant do not take turns in it")
    said = [message["content"] for message in messages]
    return Conversation(system, list(zip(said[::2], said[1::2], strict=True)))
