"""Cut prompts to `data.prompt_tokens`, so that the answers, which have to be learnt, are kept.

The budget is of what the user says; the tokens that a template writes around it come on top. Where a row is then over
`model.max_length`, its prompts are cut further until it fits, but not to less than the budget holds once the template
is in it too: what the two settings leave an answer, `max_length - prompt_tokens`, an answer of that length has. An
answer that is longer by itself is `data.overflow`'s business.
"""

from __future__ import annotations

from typing import NamedTuple

from ggufy.data import labels
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation, Plain, Sample
from ggufy.data.tokenize import Example, Tokenizer
from ggufy.model.template import Message
from ggufy.recipe.schema import Data


class Cut(NamedTuple):
    """A row within its budget."""

    sample: Sample
    example: Example
    cut: bool = False
    """A prompt of it was over the budget."""
    further: bool = False
    """A prompt of it was cut to fewer tokens than the budget, so that the row fits."""


class Budget:
    def __init__(self, tokenizer: Tokenizer, data: Data, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.budget, self.side = data.prompt_tokens, data.prompt_cut

    def encode(self, sample: Sample) -> list[Cut]:
        """Ids and labels of a row whose prompts keep to the budget, of several rows where the template needs one for
        each answer. Raises BadRow.
        """
        return labels.apart(self._encode, sample)

    def _encode(self, sample: Sample) -> Cut:
        if self.budget is None:
            return Cut(sample, self.tokenizer.encode(sample))
        within = self._shortened(sample, self.budget)
        example = self.tokenizer.encode(within)
        if len(example.input_ids) <= self.max_length or not any(_prompts(within)):
            return Cut(within, example, within != sample)
        shorter = self._give_way(within, example, self.budget)
        return Cut(shorter, self.tokenizer.encode(shorter), shorter != sample, shorter != within)

    def _give_way(self, within: Sample, example: Example, budget: int) -> Sample:
        """With prompts so much shorter that the row fits, or where it cannot, that its first answer has its room."""
        least, fits = self._least(within, budget)
        # A prompt inside a template may have a token more than by itself, so an answer that has to fit is tried out.
        lowest = 1 if fits else least
        if isinstance(within, Plain) or len(_prompts(within)) == 1:
            return self._fitted(within, example, lowest)
        shorter = self._fitted(within, example, least)
        if len(self.tokenizer.encode(shorter).input_ids) <= self.max_length:
            return shorter
        end = _first_answer(within) + 1
        head = self._fitted(within[:end], self.tokenizer.encode(within[:end]), lowest)
        assert not isinstance(head, Plain)
        return _like(within, [*head, *within[end:]])

    def _fitted(self, within: Sample, example: Example, least: int) -> Sample:
        """With prompts of as many tokens as fit; of `least` where not even those do."""
        sizes = [self.tokenizer.count(prompt) for prompt in _prompts(within)]
        shorter, limit, room = within, max(sizes), sum(sizes)
        while (surplus := len(example.input_ids) - self.max_length) > 0 and limit > least:
            # So many tokens are left to the prompts together; the longest give theirs first.
            room -= surplus
            limit = max(least, next((n for n in range(limit - 1, 0, -1) if sum(min(n, s) for s in sizes) <= room), 1))
            shorter = self._shortened(within, limit)
            example = self.tokenizer.encode(shorter)
        return shorter

    def _least(self, within: Sample, budget: int) -> tuple[int, bool]:
        """To how many tokens prompts may be cut, and whether the first answer is no longer than the room left for it.

        Raises BadRow where the template leaves no room for an answer.
        """
        own, answer = self._around(within)
        least = max(1, budget - own)
        fits = answer <= self.max_length - budget
        needed = answer if fits else 1
        if own + least + needed > self.max_length:
            raise BadRow(
                f"the template takes {own:,} tokens before the answer, not counting the user's text, so an answer of "
                f"{answer:,} does not fit: data.prompt_tokens is {budget:,} and model.max_length {self.max_length:,}"
            )
        return least, fits

    def _around(self, sample: Sample) -> tuple[int, int]:
        """The tokens before the first answer without what the user says there, and those of that answer."""
        tokenizer = self.tokenizer
        if isinstance(sample, Plain):
            return int(tokenizer.bos is not None), tokenizer.count(sample.completion) + 1
        first = _first_answer(sample)
        unsaid = _like(sample, [{**m, "content": ""} if m["role"] == "user" else m for m in sample[:first]])
        said = tokenizer.length_of(sample[: first + 1]) - tokenizer.length_of(sample[:first], generate=True)
        return tokenizer.length_of(unsaid, generate=True), said

    def _shortened(self, sample: Sample, budget: int) -> Sample:
        cut, side = self.tokenizer.cut, self.side
        if isinstance(sample, Plain):
            return Plain(cut(sample.prompt, budget, side), sample.completion)
        cuts = [{**m, "content": cut(m["content"], budget, side)} if m["role"] == "user" else m for m in sample]
        return _like(sample, cuts)


def _like(sample: list[Message], turns: list[Message]) -> Conversation:
    """These turns, with the tools that the sample has."""
    return Conversation(turns, getattr(sample, "tools", None))


def _first_answer(conversation: list[Message]) -> int:
    return next(at for at, message in enumerate(conversation) if message["role"] == "assistant")


def _prompts(sample: Sample) -> list[str]:
    if isinstance(sample, Plain):
        return [sample.prompt]
    return [message["content"] for message in sample if message["role"] == "user"]
