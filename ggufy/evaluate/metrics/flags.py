"""Flags for answers that are plainly wrong, found without knowing the right answer.

Each flag is a rule that a person can check by looking at the answer; none is a judgement of what it says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ggufy.evaluate.metrics import language
from ggufy.evaluate.metrics.answers import Answer

MEANINGS = {
    "template": "marks or fixed words of the chat template are in the answer",
    "system": "words of the system prompt are in the answer",
    "echo": "the answer begins with the question, or is mostly made of it",
    "empty": "there is no letter and no digit in it",
    "endless": "the model did not end its turn within the tokens it was given",
    "language": "it is in another language than was asked for",
    "repeats": "the same words come again and again",
}

# Marks of the templates that are in use, for what a tokenizer does not know as its own.
_MARKS = re.compile(
    r"<\|[a-z_]+\|>|<\|?/?(?:im_start|im_end|system|user|assistant|eot|eom|bos|eos)\|?>|\[/?INST\]|<</?SYS>>|</?s>"
    r"|^### (?:Instruction|Response|Input):|^(?:user|assistant|system)\n\n|<(?:start|end)_of_turn>",
    re.MULTILINE,
)
_RUN = 8
"""So many words in a row of a system prompt are no coincidence."""
_FIXED = 12
"""Characters of the template's own text that are no coincidence."""
_ECHO = 0.8
_BEFORE = 6
"""So many words may come first, as in "You asked: ..."."""
_FEWEST_WORDS = 4
_LOOP = 4
"""So many times the same, one right after the other."""


# Up to ten characters at the end, again and again; a line of dashes is one such character, and is none.
_STUCK = re.compile(r"(\S{0,4}[^\W_]\S{0,5}?)\1{11,}\S{0,9}$")
_TAIL = 400


@dataclass(frozen=True)
class Flag:
    name: str
    detail: str
    """What was found."""


def of(answer: Answer, *, fixed: Sequence[str] = (), asked: str | None = None) -> list[Flag]:
    """The flags of an answer.

    `fixed` are the texts that the chat template writes itself; `asked` the language that the answer should be in.
    """
    found = []
    question = answer.conversation[-1]["content"]
    system = next((turn["content"] for turn in answer.conversation if turn["role"] == "system"), "")
    spoken = "\n".join(turn["content"] for turn in answer.conversation)
    if leak := _template(answer.text, fixed, spoken):
        found.append(Flag("template", leak))
    if leak := _shared_run(system, answer.text, _RUN):
        found.append(Flag("system", leak))
    if echo := _echo(question, answer.text):
        found.append(Flag("echo", echo))
    # A face or a flower may be an answer; nothing, or dots, is none.
    if not any(letter.isalnum() or ord(letter) > 0x2100 for letter in answer.text):
        found.append(Flag("empty", repr(answer.text)[:40]))
    if not answer.ended:
        found.append(Flag("endless", f"{answer.tokens} tokens"))
    wanted = asked or language.of(question)
    if wanted and wanted != "code" and not language.can_be(answer.text, wanted):
        found.append(Flag("language", f"{language.of(answer.text)}, not {wanted}"))
    if loop := _loop(answer.text):
        found.append(Flag("repeats", loop))
    return found


def fixed_texts(rendered: str, contents: Sequence[str]) -> list[str]:
    """What a template has written itself into a rendered conversation: the text between what was said, by lines."""
    for content in sorted((content.strip() for content in contents), key=len, reverse=True):
        rendered = rendered.replace(content, "\0")
    pieces = re.split(r"[\0\n]|<\|[^|>]*\|>", rendered)
    return sorted({piece.strip() for piece in pieces if len(piece.strip()) >= _FIXED})


def _template(text: str, fixed: Sequence[str], spoken: str) -> str | None:
    for mark in _MARKS.finditer(text):
        if mark[0] not in spoken:
            return mark[0].strip()
    return next((piece for piece in fixed if piece in text and piece not in spoken), None)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _shared_run(source: str, text: str, length: int) -> str | None:
    """The first `length` words in a row of one text that are in the other."""
    words, known = _words(text), _words(source)
    runs = {tuple(known[at : at + length]) for at in range(len(known) - length + 1)}
    for at in range(len(words) - length + 1):
        if tuple(words[at : at + length]) in runs:
            return " ".join(words[at : at + length])
    return None


def _echo(question: str, text: str) -> str | None:
    asked, said = _words(question), _words(text)
    if len(asked) < _FEWEST_WORDS:
        return None
    head = max(_FEWEST_WORDS, round(_ECHO * len(asked)))
    if any(said[at : at + head] == asked[:head] for at in range(_BEFORE)):
        return " ".join(asked[:head])
    if len(said) < _FEWEST_WORDS:
        return None
    # Mostly made of it: nearly all of its runs of four words are the question's.
    runs = {tuple(asked[at : at + _FEWEST_WORDS]) for at in range(len(asked) - _FEWEST_WORDS + 1)}
    own = [tuple(said[at : at + _FEWEST_WORDS]) for at in range(len(said) - _FEWEST_WORDS + 1)]
    return " ".join(said[:head]) if sum(run in runs for run in own) >= _ECHO * len(own) else None


def _loop(text: str) -> str | None:
    """What a text says over and over: at its end, or in more than half of it."""
    if found := _STUCK.search(text[-_TAIL:]):
        return f"{found[1]} ({len(found[0]) // len(found[1])} times)"
    words = _words(text)
    for size in range(1, len(words) // _LOOP + 1):
        tail = words[-size:]
        times = 1
        while words[-size * (times + 1) : -size * times] == tail:
            times += 1
        # A single word has to come more often: "no, no, no, no" may be meant.
        if times >= (_LOOP if size > 1 else 2 * _LOOP):
            return f"{' '.join(tail[:8])} ({times} times)"
    if len(words) < 10 * _LOOP:
        return None
    runs = Counter(tuple(words[at : at + 4]) for at in range(len(words) - 3))
    if len(runs) < sum(runs.values()) / 2:
        run, times = runs.most_common(1)[0]
        return f"{' '.join(run)} ({times} times)"
    return None
