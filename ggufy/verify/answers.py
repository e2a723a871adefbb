"""Whether a file's answers stop: a few prompts that it was trained on, and what llama.cpp says to them.

Nothing else tells. The weights can be those that were trained, and the logits the training model's, of a model that was
taught to end its turns with a token at which neither `chat` nor llama-cli nor Ollama stops, or with none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ggufy.llamacpp.evaluate_gguf import Forward

IGNORED = -100
ROWS = 300
"""Among so many rows of the training data prompts are chosen."""
_ASKED = 3
# Of a file of 1 billion weights one core reads 20 tokens of a prompt a second and says 8, of 3 billion a third of that.
# So no answer may be long, all prompts together no longer than this, and one alone no longer than that.
_LONGEST, _SHORTEST, _PROMPTS, _PROMPT = 64, 16, 384, 1024
_SHOWN = 4


@dataclass(frozen=True)
class Question:
    """A row of the training data up to its first answer, and that answer with the token that ends it, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def most(self) -> int:
        """How many tokens a model gets for it: twice those it was trained to say, but not above a limit.

        It is a limit on cost, as every token is a pass over all weights of the file, on a CPU.
        """
        return min(_LONGEST, max(_SHORTEST, 2 * len(self.answer)))

    @property
    def is_short(self) -> bool:
        """Whether an answer that has not ended within `most` should have."""
        return 2 * len(self.answer) <= _LONGEST

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Questions:
    """What a file is asked, and what the rows say that were looked at for it. Empty: nothing is asked or said."""

    asked: tuple[Question, ...] = ()
    trained: frozenset[int] = frozenset()
    """Every token that is trained on in them."""
    last: int | None = None
    """The last token of most of their answers."""

    @property
    def context(self) -> int:
        return max((len(one.prompt) + one.most for one in self.asked), default=0)


NOTHING = Questions()


@dataclass(frozen=True)
class Answers:
    """Of the answers to some questions: how many end, and how."""

    asked: int
    stopped: int
    empty: int
    """Those whose first token is an end, though the model was trained to say something."""
    endless: int
    """Those that go on, twice as long as what was trained at least."""
    most: int
    """The tokens that the longest of those had."""
    endless_data: str | None = None
    """Where no answer of the data ends with a token that stops the model: its last token, and what would stop it."""

    def text(self) -> str:
        if not self.asked:
            return ""
        found = f"{self.stopped} of {self.asked} answers to training prompts {_verb(self.stopped, 'stop')}"
        if self.empty:
            found += f", {self.empty} {_verb(self.empty, 'stop')} at once"
        if self.endless:
            found += f", {self.endless} {_verb(self.endless, 'do')} not within {self.most} tokens"
        if long := self.asked - self.stopped - self.empty - self.endless:
            found += f", {long} {_verb(long, 'be')} not waited for"
        return found

    def warning(self) -> str | None:
        """What is wrong with them, what it means and what to do, in a line. None: nothing is."""
        if self.endless_data:
            return (
                f"the data never ends an answer with a token that stops the model ({self.endless_data}), and what "
                "learns that goes on without end: either the chat template does not end turns with such a token, or "
                "model.max_length cuts it off; `ggufy data` shows a row"
            )
        found = []
        if self.empty:
            found.append(
                f"{self.empty} of {self.asked} answers to training prompts {_verb(self.empty, 'stop')} at once, where "
                "training has words: the model may not have learnt enough, or not from these prompts"
            )
        if self.endless:
            found.append(
                f"{self.endless} of {self.asked} answers to training prompts {_verb(self.endless, 'do')} not stop "
                f"within {self.most} tokens: the model may not have learnt its end-of-turn token"
            )
        return f"{'; '.join(found)}; train longer, or see with `ggufy data` how rows end" if found else None


def _verb(count: int, verb: str) -> str:
    forms = {"stop": ("stops", "stop"), "do": ("does", "do"), "be": ("was", "were")}
    return forms[verb][count != 1]


def choose(rows: Iterable[tuple[Any, Any]]) -> Questions:
    """The prompts to ask, of the first rows of a run's data: ids and labels, each an integer array (tokens,).

    They are those whose answer is short enough to wait for, then the smallest, none of them twice. A row of which all
    is trained on, as plain text is, asks nothing.
    """
    import numpy as np

    found: dict[tuple[int, ...], Question] = {}
    trained: set[int] = set()
    ends: dict[int, int] = {}
    for ids, labels in islice(rows, ROWS):
        counts = np.flatnonzero(labels != IGNORED)
        # A BOS alone is no question.
        if not counts.size or counts[0] < 2:
            continue
        start = int(counts[0])
        stop = start + int(np.argmin(np.append(labels[start:] != IGNORED, False)))
        one = Question(tuple(ids[:start].tolist()), tuple(ids[start:stop].tolist()))
        found.setdefault(one.prompt, one)
        trained.update(np.unique(labels[counts]).tolist())
        ends[one.answer[-1]] = ends.get(one.answer[-1], 0) + 1
    asked: list[Question] = []
    for one in sorted(found.values(), key=lambda one: (not one.is_short, one.size)):
        length = sum(len(other.prompt) for other in [*asked, one])
        if len(asked) < _ASKED and length <= (_PROMPTS if asked else _PROMPT):
            asked.append(one)
    return Questions(tuple(asked), frozenset(trained), max(ends, key=lambda token: ends[token], default=None))


def ask(model: Forward, questions: Questions) -> Answers | None:
    """Let a file answer. None where there is nothing to ask. Raises ModelError where llama.cpp cannot run it."""
    if not questions.trained:
        return None
    endless_data = _never_ends(model, questions)
    stopped, empty, late = 0, 0, []
    for one in questions.asked:
        said = model.answer(one.prompt, one.most)
        if not model.ends_turn(said[-1]):
            # One that was cut in training may be longer than it looks.
            if one.is_short and (endless_data or any(map(model.ends_turn, one.answer))):
                late.append(one.most)
        elif len(said) > 1 or model.ends_turn(one.answer[0]):
            stopped += 1
        else:
            empty += 1
    return Answers(len(questions.asked), stopped, empty, len(late), max(late, default=0), endless_data)


def _never_ends(model: Forward, questions: Questions) -> str | None:
    if questions.last is None or any(model.ends_turn(token) for token in questions.trained):
        return None
    ends = [token for token in range(model.width) if model.ends_turn(token)]
    shown = ", ".join(_written(model, token) for token in ends[:_SHOWN]) + (", ..." if len(ends) > _SHOWN else "")
    return f"its last trained token is {_written(model, questions.last)!r}, the file stops at {shown or 'none'}"


def _written(model: Forward, token: int) -> str:
    return model.piece(token).decode("utf-8", "replace")
