"""Prompts cut to `data.prompt_tokens`, so that what has to be learnt, the answer, is not what is lost.

The budget is of what the user says; the tokens that a template writes around it come on top. Where a row is then over
`model.max_length`, its prompts are cut further until it fits, but not to less than the budget holds once the template
is in it too: what the two settings leave an answer, `max_length - prompt_tokens`, an answer of that length has. An
answer that is longer by itself is `data.overflow`'s business.
"""

from __future__ import annotations

from typing import NamedTuple

from ggufy.data.files import BadRow
from ggufy.data.formats import Plain, Sample
from ggufy.data.tokenize import Example, Tokenizer
from ggufy.recipe import Data


class Cut(NamedTuple):
    """A row within its budget."""

    example: Example
    cut: bool = False
    """A prompt of it was over the budget."""
    further: bool = False
    """A prompt of it was cut to fewer tokens than the budget, so that the row fits."""


class Budget:
    def __init__(self, tokenizer: Tokenizer, data: Data, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.budget, self.side = data.prompt_tokens, data.prompt_cut

    def encode(self, sample: Sample) -> Cut:
        """Ids and labels of a row whose prompts keep to the budget. Raises BadRow."""
        if self.budget is None:
            return Cut(self.tokenizer.encode(sample))
        within = self._shortened(sample, self.budget)
        example = self.tokenizer.encode(within)
        if len(example.input_ids) <= self.max_length or not any(_prompts(within)):
            return Cut(example, within != sample)
        least = self._least(within, self.budget)
        shorter, example = self._fitted(within, example, least)
        return Cut(example, within != sample or shorter != within, shorter != within)

    def _fitted(self, within: Sample, example: Example, least: int) -> tuple[Sample, Example]:
        """With prompts of as many tokens as fit; of `least` where not even those do."""
        sizes = [self.tokenizer.count(prompt) for prompt in _prompts(within)]
        shorter, limit = within, max(sizes)
        while (surplus := len(example.input_ids) - self.max_length) > 0 and limit > least:
            longest = sum(size >= limit for size in sizes)
            limit = max(least, limit - -(-surplus // longest))
            shorter = self._shortened(within, limit)
            example = self.tokenizer.encode(shorter)
        return shorter, example

    def _least(self, within: Sample, budget: int) -> int:
        """To how many tokens prompts may be cut. Raises BadRow where the template leaves no room for an answer."""
        own, answer = self._around(within)
        least = max(1, budget - own)
        promised = self.max_length - budget
        needed = answer if answer <= promised else 1
        if own + least + needed > self.max_length:
            raise BadRow(
                f"the template takes {own:,} tokens before the answer, beside what the user says, so an answer of "
                f"{answer:,} does not fit: data.prompt_tokens is {budget:,} and model.max_length {self.max_length:,}"
            )
        return least

    def _around(self, sample: Sample) -> tuple[int, int]:
        """The tokens before the first answer without what the user says there, and those of that answer."""
        tokenizer = self.tokenizer
        if isinstance(sample, Plain):
            return int(tokenizer.bos is not None), tokenizer.count(sample.completion) + 1
        first = next(at for at, message in enumerate(sample) if message["role"] == "assistant")
        unsaid = [{**m, "content": ""} if m["role"] == "user" else m for m in sample[:first]]
        said = tokenizer.length_of(sample[: first + 1]) - tokenizer.length_of(sample[:first], generate=True)
        return tokenizer.length_of(unsaid, generate=True), said

    def _shortened(self, sample: Sample, budget: int) -> Sample:
        cut, side = self.tokenizer.cut, self.side
        if isinstance(sample, Plain):
            return Plain(cut(sample.prompt, budget, side), sample.completion)
        return [{**m, "content": cut(m["content"], budget, side)} if m["role"] == "user" else m for m in sample]


def _prompts(sample: Sample) -> list[str]:
    if isinstance(sample, Plain):
        return [sample.prompt]
    return [message["content"] for message in sample if message["role"] == "user"]
