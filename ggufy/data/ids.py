"""The token ids of a text, and of which characters each is: a text tokenized at once, or in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any


class Ids:
    """Ids of a text that is tokenized in pieces, which begin at `starts`; the first at 0.

    Where a token stands is asked of the tokenizer when it is wanted: to list it for all tokens takes longer than all
    the rest.
    """

    def __init__(self, rust: Any, text: str, starts: Sequence[int] = (0,)) -> None:
        pieces = pairwise([*starts, len(text)])
        self._parts = [(rust.encode(text[begin:stop], add_special_tokens=False), begin) for begin, stop in pieces]
        self.ids: list[int] = self._parts[0][0].ids
        self._firsts = [0]
        for encoding, _ in self._parts[1:]:
            self._firsts.append(len(self.ids))
            self.ids = self.ids + encoding.ids

    def __len__(self) -> int:
        return len(self.ids)

    def chars(self, index: int) -> tuple[int, int]:
        """Of which characters a token is; a character may be of several tokens."""
        part = next(n for n in range(len(self._firsts) - 1, -1, -1) if self._firsts[n] <= index)
        encoding, begin = self._parts[part]
        start, stop = encoding.token_to_chars(index - self._firsts[part])
        return start + begin, stop + begin

    def at(self, char: int) -> int:
        """The first token that begins at this character or after it; how many there are, where none does."""
        part = next((n for n in range(len(self._parts) - 1, -1, -1) if self._parts[n][1] <= char), 0)
        encoding, begin = self._parts[part]
        inside = encoding.char_to_token(char - begin)
        first = self._firsts[part]
        if inside is not None:
            first += inside
        while first < len(self.ids) and self.chars(first)[0] < char:
            first += 1
        # Some tokens are of no character.
        while first > self._firsts[part] and self.chars(first - 1)[0] >= char:
            first -= 1
        return first
