"""Plan the questions to a judge, and estimate their cost, before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggufy.evaluate.judge import prompt
from ggufy.evaluate.judge.cache import Cache
from ggufy.evaluate.judge.endpoint import Endpoint
from ggufy.evaluate.judge.prompt import Grades
from ggufy.model.template import Message
from ggufy.system import digest

BASE, TUNED = "base", "tuned"
# English text has about four bytes a token, and every turn a few tokens around it.
_BYTES, _AROUND = 4, 4
# Of a reply, for each answer: the numbers, their names, and a reason of two sentences.
_GRADES = 90


@dataclass(frozen=True)
class Item:
    """An answer to be judged, beside the base's answer to the same question where there is one."""

    id: str
    """The question's name."""
    model: str
    """Whose answer it is."""
    conversation: Sequence[Message]
    tuned: str
    base: str | None = None
    expected: str | None = None


@dataclass(frozen=True)
class Call:
    """One thing to ask: an item with its answers in one of the two orders."""

    item: int
    order: tuple[str, ...]
    messages: list[Message]
    key: str
    """What the reply depends on: the endpoint, its model, and every word it is sent."""


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in whatever currency the user thinks in."""

    tokens_in: float
    tokens_out: float

    def of(self, tokens_in: float, tokens_out: float) -> float:
        return (self.tokens_in * tokens_in + self.tokens_out * tokens_out) / 1e6


@dataclass(frozen=True)
class Estimate:
    calls: int
    """To be asked; each once, also where several runs share it."""
    known: int
    tokens_in: int
    tokens_out: int
    most_out: int
    """If every reply were as long as is allowed."""

    def text(self, price: Price | None) -> str:
        asked = f"{self.calls:,} to ask" + (f", {self.known:,} known from before" if self.known else "")
        if not self.calls:
            return asked
        size = f"about {self.tokens_in:,} tokens in and {self.tokens_out:,} out"
        if price is None:
            return f"{asked}; {size}; the cost is unknown without --judge-price"
        most = price.of(self.tokens_in, self.most_out)
        cost = _money(price.of(self.tokens_in, self.tokens_out))
        return f"{asked}; {size}; cost about {cost}, at most {_money(most)} without retries, by --judge-price"


class Plan:
    """All calls for some items. Those whose reply is in the cache are not asked again, unless `afresh`."""

    def __init__(self, items: Sequence[Item], where: Endpoint, cache: Cache, *, afresh: bool = False) -> None:
        self.items, self.where, self.cache = list(items), where, cache
        self.calls = [call for index, item in enumerate(self.items) for call in _calls(index, item, where)]
        self.known: dict[str, list[Grades]] = {}
        self.open: dict[str, Call] = {}
        for call in self.calls:
            grades = None if afresh else self._from_cache(call)
            if grades:
                self.known[call.key] = grades
            else:
                # Equal answers look the same in both orders; so do answers that two runs share.
                self.open.setdefault(call.key, call)

    def estimate(self, most_tokens: int) -> Estimate:
        answers = sum(len(call.order) for call in self.open.values())
        sent = sum(tokens(message["content"]) for call in self.open.values() for message in call.messages)
        return Estimate(len(self.open), len(self.known), sent, answers * _GRADES, len(self.open) * most_tokens)

    def _from_cache(self, call: Call) -> list[Grades] | None:
        reply = self.cache.reply(call.key)
        if reply is None:
            return None
        try:
            return prompt.parse(reply, len(call.order))
        except ValueError:
            # Another ggufy took it; this one is stricter.
            return None


def tokens(text: str) -> int:
    """About how many tokens a text is to a judge, whose tokenizer nobody here knows."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES) + _AROUND


def _calls(index: int, item: Item, where: Endpoint) -> list[Call]:
    orders = [(BASE, TUNED), (TUNED, BASE)] if item.base is not None else [(TUNED,)]
    calls = []
    for order in orders:
        answers = [item.tuned if who == TUNED else item.base or "" for who in order]
        messages = prompt.messages(item.conversation, answers, item.expected)
        key = digest.of_values([where.url, where.model, messages])
        calls.append(Call(index, order, messages, key))
    return calls


def _money(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 1 else f"{amount:.2g}"
