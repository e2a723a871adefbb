"""An interactive conversation in a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import TextIO

from ggufy.chat.model import ChatModel, Sampling, describe, trim
from ggufy.errors import GgufyError
from ggufy.template import Message


def one_shot(model: ChatModel, prompt: str, system: str | None, sampling: Sampling) -> str:
    """Print one answer as it comes, and what it cost to standard error. Returns the answer."""
    conversation = _opening(system)
    conversation.append({"role": "user", "content": prompt})
    answer = stream(model.answer(conversation, sampling), sys.stdout)
    print(flush=True)
    print(f"[{describe(model.figures)}]", file=sys.stderr)
    return answer


def converse(model: ChatModel, system: str | None, sampling: Sampling) -> None:
    """Read, answer, repeat. Ctrl-C stops an answer, Ctrl-D leaves."""
    _enable_line_editing()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    print(f"{model.path.name}: Ctrl-C stops an answer, Ctrl-D leaves, /reset forgets the conversation", file=sys.stderr)
    conversation = _opening(system)
    while True:
        try:
            typed = _read()
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)", file=sys.stderr)
            continue
        if typed is None:
            return
        if typed == "/reset":
            conversation = _opening(system)
        elif typed:
            _exchange(model, conversation, typed, sampling)


def _read() -> str | None:
    """What was typed, or None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        if sys.stdin.isatty():
            print(file=sys.stderr)
        return None


def _exchange(model: ChatModel, conversation: list[Message], typed: str, sampling: Sampling) -> None:
    """One question and its answer. What came to nothing leaves the conversation as it was."""
    before = list(conversation)
    conversation.append({"role": "user", "content": typed})
    said: list[str] = []
    try:
        if dropped := trim(conversation, model, reserve=min(sampling.max_tokens, model.context // 4)):
            print(f"(the context is full: the {dropped} oldest exchanges are no longer seen)", file=sys.stderr)
        for piece in model.answer(conversation, sampling):
            said.append(piece)
            stream([piece], sys.stdout)
    except KeyboardInterrupt:
        pass
    except GgufyError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        conversation[:] = before
        return
    print(flush=True)
    print(f"[{describe(model.figures)}]", file=sys.stderr)
    if said:
        conversation.append({"role": "assistant", "content": "".join(said)})
    else:
        conversation[:] = before


def stream(pieces: Iterable[str], out: TextIO) -> str:
    """Write pieces as they come; returns the whole."""
    whole = []
    for piece in pieces:
        out.write(piece)
        out.flush()
        whole.append(piece)
    return "".join(whole)


def _opening(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401 - importing it gives input() line editing and a history
    except ModuleNotFoundError:
        return
