"""Tokenize one sample: from its text to token ids and labels.

A conversation is rendered once by the base's template and tokenized once. What the assistant says is found by
rendering (`labels.py`). Labels are the ids of each answer, up to and including the token that stops the model, and -100
elsewhere. Where the ids of what a model is asked are not the beginning of the row's ids, because a token reaches over
the place where the answer begins, the row is tokenized in two pieces, as it will be asked; a conversation with such an
answer before its last becomes a row for each answer, as what is asked later holds that answer tokenized at once.

A base without a chat template gets Alpaca's. A prompt with its completion is then plain text: the two are tokenized
apart, as the prompt will be when it is asked, and the labels are the completion's ids and the token that ends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ggufy.data import labels
from ggufy.data.checks import ends, marks, said
from ggufy.data.checks.said import NOTHING, Trimmed
from ggufy.data.files import BadRow
from ggufy.data.ids import Ids
from ggufy.data.labels import Answer, Rewritten
from ggufy.data.rows.alpaca import ALPACA
from ggufy.data.rows.conversation import UNTRAINED, Conversation, Plain, Sample
from ggufy.errors import ModelError
from ggufy.model import stops
from ggufy.model.template import ChatTemplate, Message, text_of
from ggufy.model.tokenizer.folder import open_backend

IGNORED = -100


@dataclass(frozen=True)
class Example:
    input_ids: list[int]
    labels: list[int]
    ends: tuple[int, ...] = ()
    """Of each answer that is trained on, where the token is that stops the model."""
    trimmed: Trimmed = NOTHING
    """What its turns lose to the template."""

    @cached_property
    def trained(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED)


class Tokenizer:
    """The tokenizer and the template of a base model, on one day."""

    def __init__(self, base: Path, day: date, train_on: str) -> None:
        from tokenizers import processors

        self.chat = bool(text_of(base))
        special = ChatTemplate.specials(base)
        self.template = ChatTemplate.from_folder(base) if self.chat else ChatTemplate(ALPACA, special, base.as_posix())
        self.day, self.train_on = day, train_on
        self._end = special.get("eos_token", "")
        self.rust: Any = open_backend(base)
        self.bos = self._leading_bos()
        # The template writes the special tokens; the default would cut the spaces off the offsets.
        self.rust.post_processor = processors.ByteLevel(trim_offsets=False)
        self._end_id: int | None = self.rust.token_to_id(self._end) if self._end else None
        self.stopping = stops.of(base, self._end_id)
        self.special = marks.of(
            self.rust, marks.written(self.template.text, self._render), special.values(), self.stopping
        )
        if not self.chat and self._end_id is None:
            raise ModelError(
                f"{base.as_posix()}: neither a chat template nor an eos_token, so no answer could ever end",
                "name the eos_token in its tokenizer_config.json, or use an Instruct model",
            )

    # What follows from the above, for the tokenizer of a GGUF too, which comes by that in another way.

    @cached_property
    def _ends(self) -> list[str]:
        """The tokens of the template that stop the model."""
        return [text for text, number in self.special.items() if number in self.stopping]

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Any special token in a text."""
        return re.compile("|".join(map(re.escape, self.special)) or r"(?!)")

    @cached_property
    def _alone(self) -> Callable[[str], tuple[int, ...]]:
        """The ids of a text by itself; of the last few that were asked for, from memory."""
        return lru_cache(64)(lambda text: tuple(self.rust.encode(text, add_special_tokens=False).ids))

    def _leading_bos(self) -> int | None:
        """The BOS that the tokenizer puts before a plain text, which the runtime then also does."""
        plain = self.rust.encode("a", add_special_tokens=False).ids
        full = self.rust.encode("a").ids
        return int(full[0]) if len(full) > len(plain) and full[0] != plain[0] else None

    def examples(self, sample: Sample) -> list[Example]:
        """Ids and labels of a sample; of several where each of its answers is asked for in another way.

        Raises what `encode` does.
        """
        return labels.apart(self.encode, sample)

    def encode(self, sample: Sample) -> Example:
        """Ids and labels of a sample.

        Raises BadRow where its text would pass for the template's own marks, or is not all in what the template makes
        of it; ModelError where the template does not say how an answer begins and ends.
        """
        if isinstance(sample, Plain):
            return self._plain(sample)
        conversation = sample if isinstance(sample, Conversation) else Conversation(sample)
        for number, message in enumerate(conversation, 1):
            for text in said.texts_of(message):
                self._refuse_marks(text, f"turn {number}")
        if conversation.tools:
            self._refuse_marks(json.dumps(conversation.tools, ensure_ascii=False), "a tool")
        conversation = said.fit_to(conversation, self.template.text, self.template.others)
        if self.train_on == "all":
            return self._whole(conversation)
        if all(UNTRAINED in message for message in conversation if message["role"] == "assistant"):
            raise BadRow("every answer has the weight 0, so there is nothing to learn")
        text, found, given = self._located(conversation)
        tokens = self._pieces(text, found)
        ids = tokens.ids
        marked = [IGNORED] * len(ids)
        ended = []
        for answer in found:
            end, closed = self._end_of(answer, tokens, text)
            first = tokens.at(answer.start)
            marked[first : end + 1] = ids[first : end + 1]
            ended.append(end)
            if closed:
                ids, marked = ids[: end + 1], marked[: end + 1]
        lost = Trimmed(sum(a.trimmed for a in found), sum(a.shortened for a in found), given)
        return self._with_bos(ids, marked, ended, lost)

    def _located(self, conversation: Conversation) -> tuple[str, list[Answer], int]:
        """A conversation's text, the answers in it that are trained on, and how many other turns lose spaces."""
        text = self._render(conversation)
        try:
            return text, *self._answers(conversation, text)
        except (Rewritten, said.LeftOut):
            asked = None if labels.one_each(conversation) else labels.as_asked(conversation, text, self._render)
            if asked in (None, text):
                raise
            assert asked is not None
            return asked, *self._answers(conversation, asked)

    def _answers(self, conversation: Conversation, text: str) -> tuple[list[Answer], int]:
        given = said.check(conversation, text, self._render).given
        return labels.answers(conversation, text, self._render, self.template.where, self._ends), given

    def _whole(self, conversation: Conversation) -> Example:
        """A row of which every token is trained on."""
        text = self._render(conversation)
        lost = said.check(conversation, text, self._render, answers_too=True)
        if any(UNTRAINED in message for message in conversation):
            raise BadRow("a turn has the weight 0, and data.train_on is all: set it to responses")
        tokens = Ids(self.rust, text)
        ids = tokens.ids
        ended = [at for at in range(len(ids) - 1, -1, -1) if self.stops(ids[at])][:1]
        if not ended:
            answers = [message["content"].strip() for message in conversation if message["role"] == "assistant"]
            until = text.rfind(answers[-1]) + len(answers[-1])
            rest = ids[tokens.at(until) :]
            raise ends.missing(self.template.where, text[until:], rest, self.special, self.stopping)
        self._refuse_endless(conversation, tokens, text)
        return self._with_bos(ids, list(ids), ended, lost)

    def _refuse_endless(self, conversation: Conversation, tokens: Ids, text: str) -> None:
        """Raise ModelError where nothing that stops the model stands between an answer and what the next turn says."""
        for index, message in enumerate(conversation[:-1]):
            content = message["content"].strip()
            if message["role"] != "assistant" or not content:
                continue
            other = Conversation(conversation, conversation.tools)
            other[index + 1] = {**conversation[index + 1], "content": said.ANY}
            stop = self._render(other).find(said.ANY)
            until = text.rfind(content, 0, max(stop, 0)) + len(content)
            ids = tokens.ids[tokens.at(until) : tokens.at(stop)]
            if stop >= until >= len(content) and not any(map(self.stops, ids)):
                raise ends.nowhere(self.template.where, index + 1, text[until:stop], self.special, self.stopping)

    def _render(self, conversation: Conversation, generate: bool = False) -> str:
        try:
            return self.template.render(conversation.shown(), self.day, generate=generate, tools=conversation.tools)
        except ModelError as error:
            # A template may refuse one conversation and take the next.
            raise BadRow(error.message.partition(": ")[2]) from None

    def _pieces(self, text: str, found: Sequence[Answer]) -> Ids:
        """The ids of a text; in pieces where the last answer does not begin with a token.

        Raises Rewritten where an earlier one does not: those after it are asked with a text that is tokenized at once.
        """
        tokens = Ids(self.rust, text)
        apart = [answer for answer in found if not self._is_asked_so(answer.start, tokens, text)]
        if not apart:
            return tokens
        if apart[0] != found[-1]:
            raise Rewritten(
                f"{self.template.where}: the first token of turn {apart[0].turn} reaches into the generation prompt"
            )
        return Ids(self.rust, text, [0, apart[0].start])

    def _is_asked_so(self, start: int, tokens: Ids, text: str) -> bool:
        """Whether the ids before `start` are those of the text before it by itself, which the model is asked with.

        A special token splits a text, so only what comes after the last of them needs to be looked at.
        """
        first, ids = tokens.at(start), tokens.ids
        if first < len(ids) and tokens.chars(first)[0] != start:
            return False
        mark = next((at for at in range(first - 1, -1, -1) if ids[at] in self._special_ids), 0)
        begin = tokens.chars(mark)[0] if first else 0
        return tuple(ids[mark:first]) == self._alone(text[begin:start])

    def _end_of(self, answer: Answer, tokens: Ids, text: str) -> tuple[int, bool]:
        """Where the token is that ends an answer, and whether others of its kind close the whole text after it.

        Raises ModelError where none stops the model.
        """
        first = tokens.at(answer.said)
        for at in range(first, len(tokens)):
            if tokens.chars(at)[0] >= answer.stop:
                break
            if self.stops(tokens.ids[at]):
                rest = text[tokens.chars(at)[1] : answer.stop].strip()
                if rest and ends.without(rest, self._ends).strip():
                    raise ends.goes_on(self.template.where, rest)
                return at, bool(rest) and answer.last
        rest, ids = text[answer.said : answer.stop], tokens.ids[first : tokens.at(answer.stop)]
        raise ends.missing(self.template.where, rest, ids, self.special, self.stopping)

    def stops(self, token: int) -> bool:
        """Whether an answer ends at this token."""
        return token in self.stopping

    def cut(self, text: str, budget: int, side: str) -> str:
        """The text, without its end, middle or start where it is longer than so many tokens."""
        offsets = self.rust.encode(text, add_special_tokens=False).offsets
        surplus, keep, short = len(offsets) - budget, budget, text
        while surplus > 0 and keep > 0:
            head = {"end": keep, "start": 0, "middle": keep - keep // 2}[side]
            tail = keep - head
            short = text[: offsets[head - 1][1] if head else 0] + (text[offsets[-tail][0] :] if tail else "")
            # What is left can have more tokens than it had inside the whole.
            surplus = self.count(short) - budget
            keep -= max(surplus, 1)
        return short

    def count(self, text: str) -> int:
        """The tokens of a text by itself."""
        return len(self.rust.encode(text, add_special_tokens=False).ids)

    def length_of(self, conversation: Sequence[Message], *, generate: bool = False) -> int:
        """The tokens of a conversation, as `encode` has them; with `generate` up to where the assistant speaks."""
        whole = conversation if isinstance(conversation, Conversation) else Conversation(conversation)
        ids = self.rust.encode(self._render(whole, generate), add_special_tokens=False).ids
        return len(ids) + (self.bos is not None and ids[:1] != [self.bos])

    def _plain(self, sample: Plain) -> Example:
        if self._end_id is None:
            raise ModelError(
                f"{self.template.where}: its tokenizer_config.json names no eos_token of the tokenizer's, which ends a "
                "plain text",
                "name it there",
            )
        self._refuse_marks(sample.prompt, "the prompt")
        self._refuse_marks(sample.completion, "the completion" if sample.prompt else "the text")
        before = list(self.rust.encode(sample.prompt, add_special_tokens=False).ids) if sample.prompt else []
        after = [*self.rust.encode(sample.completion, add_special_tokens=False).ids, self._end_id]
        given = before if self.train_on == "all" else [IGNORED] * len(before)
        return self._with_bos([*before, *after], [*given, *after], [len(before) + len(after) - 1])

    def _refuse_marks(self, text: str, what: str) -> None:
        if mark := self._marks.search(text):
            raise BadRow(f"{what} contains the special token {mark[0]}")

    def _with_bos(self, ids: list[int], marked: list[int], ended: Sequence[int], lost: Trimmed = NOTHING) -> Example:
        if self.bos is not None:
            # Only what a text begins with is its BOS: some templates write the token before every turn.
            found = next((at for at, token in enumerate(ids) if token != self.bos), len(ids))
            if found == 0:
                ids, marked, ended = [self.bos, *ids], [IGNORED, *marked], [end + 1 for end in ended]
            elif found > 1:
                raise ModelError(
                    f"{self.template.where}: the chat template writes {found} BOS tokens at the start; it must be one"
                )
            marked[0] = IGNORED
        return Example(ids, marked, tuple(ended), lost)

    def plain(self, text: str) -> list[int]:
        """The ids of a text without turns: what looks like a template's mark in it is text."""
        self.rust.encode_special_tokens = True
        try:
            return list(self.rust.encode(text, add_special_tokens=False).ids)
        finally:
            self.rust.encode_special_tokens = False

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self.rust.decode(ids, skip_special_tokens=False))
