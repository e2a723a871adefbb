"""Ask one question and print the answer, for scripts."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from ggufy.chat.session import Session, Side
from ggufy.chat.terminal import display
from ggufy.errors import ChatError


def ask(session: Session, prompt: str, *, raw: bool = False) -> bool:
    """Print the answer as it comes, and what it cost to standard error. Returns whether Ctrl-C stopped it."""
    if not prompt.strip():
        raise ChatError("the question is empty", "give it with --prompt, or on standard input")
    return session.ask(prompt, display.screen([side.name for side in session.sides], raw=raw))


def ask_json(session: Session, prompt: str) -> bool:
    """Print one JSON object: the answer, and what it cost. Returns whether Ctrl-C stopped it."""
    if not prompt.strip():
        raise ChatError("the question is empty", "give it with --prompt, or on standard input")
    kept = _Kept(len(session.sides))
    stopped = session.ask(prompt, kept)
    found = [_values(side, text) for side, text in zip(session.sides, kept.texts, strict=True)]
    values = {**found[0], "sampling": dataclasses.asdict(session.sampling)}
    print(json.dumps({**values, "compared": found[1]} if session.comparing else values, ensure_ascii=False))
    sys.stdout.flush()
    return stopped


class _Kept:
    """A screen that shows nothing."""

    def __init__(self, sides: int) -> None:
        self.texts = [""] * sides

    def begin(self, side: int) -> None:
        pass

    def add(self, side: int, text: str) -> None:
        self.texts[side] += text

    def end(self, side: int, note: str) -> None:
        pass

    def close(self) -> None:
        pass


def _values(side: Side, text: str) -> dict[str, Any]:
    figures = side.model.figures
    return {
        "model": side.model.path.as_posix(),
        "text": text,
        "finish_reason": figures.finish_reason,
        "prompt_tokens": figures.prompt_tokens,
        "tokens": figures.tokens,
        "first_token_seconds": round(figures.first_token_seconds, 4),
        "seconds": round(figures.seconds, 4),
        "tokens_per_second": round(figures.tokens_per_second, 2),
        "context": side.model.context,
        "threads": side.model.threads.answering,
    }
