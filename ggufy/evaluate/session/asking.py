"""Ask one model one question, and measure how fast it answers."""

from __future__ import annotations

from collections.abc import Sequence

from ggufy.chat.model import ChatModel, Sampling
from ggufy.errors import EvalError
from ggufy.evaluate.metrics.answers import Answer, Question

SPEED_TOKENS = 64
"""So many are timed at least."""


def check_room(chat: ChatModel, questions: Sequence[Question]) -> None:
    """Raise EvalError before the first is asked, where one does not fit."""
    for question in questions:
        if (length := len(chat.tokens(question.conversation, question.tools))) >= chat.context:
            raise EvalError(
                f"the question {question.id} is {length:,} tokens long, and the context holds {chat.context:,}",
                "give a larger --context where the model has it, or shorten the question",
            )


def answer(chat: ChatModel, question: Question, sampling: Sampling) -> Answer:
    """What a model says to one question."""
    text = "".join(chat.answer(question.conversation, sampling, question.tools))
    figures = chat.figures
    return Answer(
        question.id,
        question.conversation,
        text,
        question.expected,
        figures.tokens,
        round(figures.seconds, 6),
        figures.ended,
    )


def speed(chat: ChatModel, question: Question) -> float:
    """Tokens a second, of answers to the same question, until there were enough tokens."""
    tokens, seconds = 0, 0.0
    for _ in range(SPEED_TOKENS):
        for _ in chat.answer(question.conversation, Sampling(temperature=0.0, max_tokens=SPEED_TOKENS)):
            pass
        figures = chat.figures
        if figures.tokens > 1:
            tokens += figures.tokens - 1
            seconds += figures.seconds - figures.first_token_seconds
        if tokens >= SPEED_TOKENS:
            break
    return tokens / seconds if seconds else 0.0
