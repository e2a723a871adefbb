"""Which tokens are the template's own, so that no row may hold them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation

# `<|im_end|>`, `[INST]`: not a word or a stretch of spaces that was added to the vocabulary.
_MARK = re.compile(r"[^\w\s].*\w.*[^\w\s]")
_BRACKETS = ("<", "◁")


def written(template: str, render: Callable[[Conversation, bool], str]) -> str:
    """What a template may write: its own text, and a conversation, as it may put marks together from roles."""
    talk = [{"role": role, "content": "?"} for role in ("system", "user", "assistant", "user")]
    for turns in (talk, talk[1:]):
        try:
            return template + render(Conversation(turns), True)
        except BadRow:
            continue
    return template


def of(rust: Any, template: str, named: Collection[str], stopping: Collection[int]) -> dict[str, int]:
    """The added tokens, with their ids, that are flagged as special or named so, that stop the model, or are marks
    that the template writes: many tools add `<|im_end|>` without the flag. Tags that come in pairs, of thinking and
    calls, are for rows to hold.
    """
    added = rust.get_added_tokens_decoder()
    texts = {token.content for token in added.values()}
    return {
        token.content: number
        for number, token in added.items()
        if token.special
        or token.content in named
        or number in stopping
        or (_MARK.fullmatch(token.content) and token.content in template and not _is_tag(token.content, texts))
    }


def _is_tag(text: str, others: Collection[str]) -> bool:
    first, rest = text[:1], text[1:]
    return first in _BRACKETS and (f"{first}{rest[1:]}" if rest[:1] == "/" else f"{first}/{rest}") in others
