"""Probe texts for comparing a file with its base: texts that are hard to tokenize, and a short conversation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from ggufy.errors import ModelError
from ggufy.model.template import ChatTemplate, Message

PROBES = (
    "Hello, world!",
    "  two  spaces, a tab\tand\n\n\nlines  ",
    "1 12 123 1234 12345678 3.14",
    "I'm sure they're here; WE'VE DON'T",
    "naïve café Straße ﬁ",
    "Привет, мир! Γειά σου",
    "مرحبا بالعالم שלום",
    "你好，世界。こんにちは 안녕하세요",
    "ที่นี่ हिन्दी বাংলা",
    "🌻👩‍👩‍👧 ✅ ½ ∑",
    "def f(x):\n    return x**2  # ok\n",
    "<html>&amp;</html> {json: [1, 2]}",
)
TURNS: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 🌻"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
)
DAY = date(2026, 1, 2)


def after_answer(shown: Sequence[str]) -> str:
    """What stands after the answer in what `rendered` gives; empty where there is none."""
    return next((text.rpartition("Hello.")[2] for text in shown if "Hello." in text and "Why?" not in text), "")


def leading(ids: Sequence[int], token: int | None) -> int:
    """How many of a token a text begins with: some templates write the BOS before every turn."""
    return next((at for at, other in enumerate(ids) if other != token), len(ids))


def rendered(template: ChatTemplate) -> list[str]:
    """The probe conversation at three of its turns, without what this template refuses, such as a system prompt."""
    for turns in (TURNS, TURNS[1:], TURNS[1:2]):
        try:
            stops = sorted({1, len(turns) - 1, len(turns)} - {0})
            return [template.render(turns[:stop], DAY, generate=turns[stop - 1]["role"] == "user") for stop in stops]
        except ModelError:
            continue
    return []
