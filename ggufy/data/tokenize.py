"""Tokenize one sample: from its text to token ids and labels.

A conversation is rendered once by the base's template and tokenized once. What the assistant says is found by
rendering: the text up to a turn with the generation prompt, and the text with that turn; the difference is the turn.
Labels are the ids inside those stretches, up to and including the token that ends the turn, and -100 elsewhere.

A base without a chat template gets Alpaca's. A prompt with its completion is then plain text: the two are tokenized
apart, as the prompt will be when it is asked, and the labels are the completion's ids and the token that ends it.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from operator import itemgetter
from pathlib import Path
from typing import Any

from ggufy.data.formats import ALPACA_INPUT, BadRow, Plain, Sample
from ggufy.errors import ModelError
from ggufy.model.template import ChatTemplate, Message, text_of

IGNORED = -100

# Stanford Alpaca's prompts. Further turns follow in the same way; a system turn takes the place of the first line.
ALPACA = """\
{%- set ns = namespace(turns=messages, head="") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.head = messages[0]['content'] | trim %}
    {%- set ns.turns = messages[1:] %}
{%- elif INPUT in messages[0]['content'] %}
    {%- set ns.head = "Below is an instruction that describes a task, paired with an input that provides" %}
    {%- set ns.head = ns.head + " further context. Write a response that appropriately completes the request." %}
{%- else %}
    {%- set ns.head = "Below is an instruction that describes a task." %}
    {%- set ns.head = ns.head + " Write a response that appropriately completes the request." %}
{%- endif %}
{{- ns.head }}
{%- for message in ns.turns %}
    {%- if message['role'] == 'user' %}
        {{- "\\n\\n### Instruction:\\n" + message['content'] | trim + "\\n\\n" }}
    {%- else %}
        {{- "### Response:\\n" + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "### Response:\\n" }}
{%- endif %}
""".replace("INPUT", repr(ALPACA_INPUT))


@dataclass(frozen=True)
class Example:
    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED)


class Tokenizer:
    """The tokenizer and the template of a base model, on one day."""

    def __init__(self, base: Path, day: date, train_on: str) -> None:
        from tokenizers import Tokenizer as Rust
        from tokenizers import processors

        self.chat = bool(text_of(base))
        special = ChatTemplate.specials(base)
        self.template = ChatTemplate.from_folder(base) if self.chat else ChatTemplate(ALPACA, special, base.as_posix())
        self.day, self.train_on = day, train_on
        self._end = special.get("eos_token", "")
        try:
            self.rust: Any = Rust.from_file((base / "tokenizer.json").as_posix())
        except Exception as error:  # noqa: BLE001 - the Rust library raises bare Exception
            raise ModelError(
                f"{(base / 'tokenizer.json').as_posix()} cannot be read: {error}", "copy it again"
            ) from None
        self.rust.no_truncation()
        self.rust.no_padding()
        self.bos = self._leading_bos()
        # The template writes the special tokens; the default would cut the spaces off the offsets.
        self.rust.post_processor = processors.ByteLevel(trim_offsets=False)
        added = self.rust.get_added_tokens_decoder()
        self.special = {token.content: number for number, token in added.items() if token.special}
        self._special_ids = frozenset(self.special.values())
        self._marks = re.compile("|".join(map(re.escape, self.special)) or r"(?!)")
        if not self.chat and self._end not in self.special:
            raise ModelError(
                f"{base.as_posix()}: neither a chat template nor an eos_token, so no answer could ever end",
                "name the eos_token in its tokenizer_config.json, or use an Instruct model",
            )

    def _leading_bos(self) -> int | None:
        """The BOS that the tokenizer puts before a plain text, which the runtime then also does."""
        plain = self.rust.encode("a", add_special_tokens=False).ids
        full = self.rust.encode("a").ids
        return int(full[0]) if len(full) > len(plain) and full[0] != plain[0] else None

    def encode(self, sample: Sample) -> Example:
        """Ids and labels of a sample. Raises BadRow where its text would pass for the template's own marks."""
        if isinstance(sample, Plain):
            return self._plain(sample)
        for number, message in enumerate(sample, 1):
            self._refuse_marks(message["content"], f"turn {number}")
        text = self.template.render(sample, self.day)
        encoding = self.rust.encode(text, add_special_tokens=False)
        ids = list(encoding.ids)
        if self.train_on == "all":
            labels = list(ids)
        else:
            labels = [IGNORED] * len(ids)
            offsets = encoding.offsets
            for start, end in self._spoken(sample, text):
                self._mark(ids, offsets, labels, start, end)
        return self._with_bos(ids, labels)

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
        ids = self.rust.encode(
            self.template.render(conversation, self.day, generate=generate), add_special_tokens=False
        ).ids
        return len(ids) + (self.bos is not None and self.bos not in ids)

    def _plain(self, sample: Plain) -> Example:
        if self._end not in self.special:
            raise ModelError(
                f"{self.template.where}: its tokenizer_config.json names no eos_token, which ends a plain text",
                "name it there",
            )
        self._refuse_marks(sample.prompt, "the prompt")
        self._refuse_marks(sample.completion, "the completion" if sample.prompt else "the text")
        before = list(self.rust.encode(sample.prompt, add_special_tokens=False).ids) if sample.prompt else []
        after = [*self.rust.encode(sample.completion, add_special_tokens=False).ids, self.special[self._end]]
        labels = before if self.train_on == "all" else [IGNORED] * len(before)
        return self._with_bos([*before, *after], [*labels, *after])

    def _refuse_marks(self, text: str, what: str) -> None:
        if mark := self._marks.search(text):
            raise BadRow(f"{what} contains the special token {mark[0]}")

    def _with_bos(self, ids: list[int], labels: list[int]) -> Example:
        if self.bos is not None:
            found = ids.count(self.bos)
            if found == 0:
                ids, labels = [self.bos, *ids], [IGNORED, *labels]
            elif found > 1 or ids[0] != self.bos:
                raise ModelError(
                    f"{self.template.where}: the chat template writes {found} BOS tokens; "
                    "it must be exactly one, at the start"
                )
            labels[0] = IGNORED
        return Example(ids, labels)

    def _spoken(self, conversation: list[Message], text: str) -> list[tuple[int, int]]:
        """Where in the text the assistant's turns stand, as character ranges."""
        ranges = []
        for index, message in enumerate(conversation):
            if message["role"] != "assistant":
                continue
            before = self.template.render(conversation[:index], self.day, generate=True)
            last = index == len(conversation) - 1
            after = text if last else self.template.render(conversation[: index + 1], self.day)
            if not (text.startswith(after) and after.startswith(before)):
                raise ModelError(
                    f"{self.template.where}: the chat template renders earlier turns differently when more follow, "
                    "so the assistant's part cannot be found",
                    "train on everything: set data.train_on: all",
                )
            ranges.append((len(before), len(after)))
        return ranges

    def _mark(self, ids: list[int], offsets: list[tuple[int, int]], labels: list[int], start: int, end: int) -> None:
        first = bisect_left(offsets, start, key=itemgetter(0))
        last = bisect_right(offsets, end, key=itemgetter(1)) - 1
        # Some templates write a line break after the token that ends the turn; the model never has to say it.
        last = next((i for i in range(last, first - 1, -1) if ids[i] in self._special_ids), last)
        labels[first : last + 1] = ids[first : last + 1]

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
