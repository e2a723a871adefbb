"""Held-out rows as questions: a model completes each row from the point where its last answer begins.

The question is the row's own tokens, as they were trained on, so this works for chats and for plain completions such as
"Price is $", with a chat template or without one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ggufy.errors import EvalError
from ggufy.evaluate.metrics.texts import IGNORED, Text
from ggufy.llamacpp import greedy, library
from ggufy.llamacpp.evaluate_gguf import cannot_load
from ggufy.system import interrupts


@dataclass(frozen=True)
class Gap:
    """A row with its last answer taken out."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """The tokens that were there, with the one that ends them."""


@dataclass(frozen=True)
class Completion:
    """What one model put into a gap."""

    expected: str
    """What had been there."""
    text: str
    tokens: int
    ended: bool
    """The model ended its turn itself."""


def gap(text: Text) -> Gap | None:
    """A row as a question; None where all of it counts, as in plain texts, so that nothing is asked."""
    labels = text.labels
    end = len(labels)
    while end and labels[end - 1] == IGNORED:
        end -= 1
    start = end
    while start and labels[start - 1] != IGNORED:
        start -= 1
    # A BOS alone asks nothing.
    return Gap(tuple(text.ids[:start]), tuple(text.ids[start:end])) if 1 < start < end else None


def longest_answer(gaps: Sequence[Gap], most: int) -> int:
    """How many tokens an answer may have: twice the longest that is expected, and never less than 16."""
    return min(most, max(16, 2 * max((len(one.answer) for one in gaps), default=0)))


class Completer:
    """One loaded GGUF that goes on from tokens, always with the likeliest. Raises ModelError where that cannot be."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        import llama_cpp

        self.path, self.context = path, context
        self._library = llama_cpp
        with interrupts.held(), library.quiet() as said:
            try:
                self.llama: Any = llama_cpp.Llama(
                    path.as_posix(),
                    n_ctx=context,
                    n_batch=min(context, 512),
                    n_threads=threads,
                    n_threads_batch=threads,
                    verbose=False,
                )
            except (ValueError, RuntimeError, AssertionError, UnicodeDecodeError) as error:
                raise cannot_load(path, said, error) from None
        self._vocab = llama_cpp.llama_model_get_vocab(self.llama._model.model)

    def __enter__(self) -> Completer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        self.llama.close()

    def complete(self, one: Gap, most: int) -> Completion:
        """What the model says. Raises EvalError where the row and the answer do not fit into the context."""
        room = min(most, self.context - len(one.prompt))
        if room < most and room < len(one.answer):
            raise EvalError(
                f"a held-out row is {len(one.prompt):,} tokens long before its answer, and the context holds "
                f"{self.context:,}",
                "give a larger --context",
            )
        said = greedy.answer(self.path, self.llama.ctx, one.prompt, room)
        return Completion(self.text(one.answer), self.text(said), len(said), self._ends(said[-1]))

    def speed(self, prompt: Sequence[int], count: int) -> float:
        """Tokens a second while it goes on from a prompt, after the first, whose time is the prompt's."""
        stream = greedy.tokens(self.path, self.llama.ctx, prompt)
        next(stream)
        start = time.perf_counter()
        for _ in range(count - 1):
            next(stream)
        return (count - 1) / (time.perf_counter() - start)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without the token that ends it."""
        kept = [token for token in tokens if not self._ends(token)]
        return b"".join(library.piece(self._vocab, token) for token in kept).decode("utf-8", "replace")

    def _ends(self, token: int) -> bool:
        return bool(self._library.llama_vocab_is_eog(self._vocab, token))
