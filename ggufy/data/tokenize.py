"""One conversation to token ids and labels.

The conversation is rendered once by the base's template and tokenized once. What the assistant says is found by
rendering: the text up to a turn with the generation prompt, and the text with that turn; the difference is the turn.
Labels are the ids inside those stretches, up to and including the token that ends the turn, and -100 elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ggufy.data.formats import BadRow
from ggufy.errors import ModelError
from ggufy.template import ChatTemplate, Message

IGNORED = -100


@dataclass(frozen=True)
class Example:
    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        return sum(label != IGNORED for label in self.labels)


class Tokenizer:
    """The tokenizer and the template of a base model, on one day."""

    def __init__(self, base: Path, day: date, train_on: str) -> None:
        from tokenizers import Tokenizer as Rust
        from tokenizers import processors

        self.template = ChatTemplate.from_folder(base)
        self.day, self.train_on = day, train_on
        try:
            self.rust = Rust.from_file((base / "tokenizer.json").as_posix())
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

    def _leading_bos(self) -> int | None:
        """The BOS that the tokenizer puts before a plain text, which the runtime then also does."""
        plain = self.rust.encode("a", add_special_tokens=False).ids
        full = self.rust.encode("a").ids
        return int(full[0]) if len(full) > len(plain) and full[0] != plain[0] else None

    def encode(self, conversation: list[Message]) -> Example:
        """Ids and labels of a conversation. Raises BadRow where its text would pass for the template's own marks."""
        for number, message in enumerate(conversation, 1):
            marks = [name for name in self.special if name in message["content"]]
            if marks:
                raise BadRow(f"turn {number} contains the special token {marks[0]}")
        text = self.template.render(conversation, self.day)
        encoding = self.rust.encode(text, add_special_tokens=False)
        ids, offsets = list(encoding.ids), list(encoding.offsets)
        if self.train_on == "all":
            labels = list(ids)
        else:
            labels = [IGNORED] * len(ids)
            for start, end in self._spoken(conversation, text):
                self._mark(ids, offsets, labels, start, end)
        if self.bos is not None:
            found = ids.count(self.bos)
            if found == 0:
                ids, labels = [self.bos, *ids], [IGNORED, *labels]
            elif found > 1 or ids[0] != self.bos:
                raise ModelError(
                    f"{self.template.where}: the chat template writes {found} BOS tokens; it must be one, first"
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
            after = self.template.render(conversation[: index + 1], self.day)
            if not (text.startswith(after) and after.startswith(before)):
                raise ModelError(
                    f"{self.template.where}: the chat template renders earlier turns differently once more follow, "
                    "so the assistant's part cannot be told",
                    "train on everything: data.train_on: all",
                )
            ranges.append((len(before), len(after)))
        return ranges

    def _mark(self, ids: list[int], offsets: list[tuple[int, int]], labels: list[int], start: int, end: int) -> None:
        inside = [i for i, (left, right) in enumerate(offsets) if left >= start and right <= end and right > left]
        # Some templates write a line break after the token that ends the turn; the model never has to say it.
        enders = [i for i in inside if ids[i] in self._special_ids]
        last = enders[-1] if enders else (inside[-1] if inside else -1)
        for i in inside:
            if i <= last:
                labels[i] = ids[i]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self.rust.decode(ids, skip_special_tokens=False))
