"""Score the models' answers against those of the data: which rows, which models, and the sections on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ggufy.errors import EvalError, ModelError
from ggufy.evaluate.metrics import calls as tools
from ggufy.evaluate.metrics import numbers, prompts, references
from ggufy.evaluate.metrics.completions import Completion
from ggufy.evaluate.report import scores_section
from ggufy.evaluate.report.report import Section
from ggufy.evaluate.session.evaluator import Evaluator
from ggufy.evaluate.session.model_files import ModelFile
from ggufy.evaluate.session.options import EvalOptions
from ggufy.model.tool_calls import Syntax

log = logging.getLogger("ggufy")

Compared = Sequence[tuple[Evaluator, Sequence[ModelFile]]]
"""Each run, with the models of it that answer."""


@dataclass(frozen=True)
class Answered:
    """Answers of several models to the same rows."""

    expected: list[str]
    said: dict[str, list[str]]
    base: str | None
    told: str
    """Which rows these are, for people."""


def check(options: EvalOptions) -> None:
    """Raise MissingExtra where somebody asked for a part by name that needs what is not installed."""
    if "references" in options.insisted:
        references.require()


def likeness(compared: Compared, options: EvalOptions) -> Section | None:
    """BLEU, chrF, ROUGE-L and exact match; None where no row has an answer."""
    found = _answered(compared, options)
    if found is None:
        _miss("references", options)
        return None
    scores = {model: references.score(said, found.expected) for model, said in found.said.items()}
    return scores_section.likeness(scores, found.base, found.told, options.seed)


def errors(compared: Compared, options: EvalOptions) -> Section | None:
    """MAE, MSE, R² and shares; None where the answers are no numbers, unless somebody insists."""
    found = _answered(compared, options)
    if found is None:
        _miss("numbers", options)
        return None
    insisted = "numbers" in options.insisted
    if not (insisted or numbers.are_numbers(found.expected)):
        return None
    scores = {model: numbers.score(said, found.expected) for model, said in found.said.items()}
    if not next(iter(scores.values())).rows:
        raise EvalError("none of the data's own answers holds a number", "leave numbers out of --only")
    return scores_section.errors(scores, found.base, found.told, options.seed)


def calls(compared: Compared, options: EvalOptions) -> Section | None:
    """The right function and the right arguments; None where the data calls none, unless somebody insists."""
    syntax = _syntax(compared[0][0], options)
    found = _answered(compared, options) if syntax else None
    if syntax is None or found is None:
        _miss("tools", options)
        return None
    scores = {model: tools.score(said, found.expected, syntax) for model, said in found.said.items()}
    if not next(iter(scores.values())).rows:
        if "tools" in options.insisted:
            raise EvalError("none of the data's own answers calls a function", "leave tools out of --only")
        return None
    return scores_section.calls(scores, found.base, found.told, options.seed)


def _syntax(one: Evaluator, options: EvalOptions) -> Syntax | None:
    """How the model's template writes calls. Raises ModelError where it cannot be told and somebody insists."""
    if one.template is None:
        return None
    try:
        return Syntax.of(one.template, one.day)
    except ModelError as error:
        if "tools" in options.insisted:
            raise EvalError(error.message, "leave tools out of --only") from None
        return None


def _answered(compared: Compared, options: EvalOptions) -> Answered | None:
    questions = prompts.read(options.prompts) if options.prompts else []
    known = [index for index, question in enumerate(questions) if question.expected]
    said: dict[str, list[str]] = {}
    expected: list[str] = []
    base = None
    for one, models in compared:
        for each in models:
            name = named(one, each, several=len(compared) > 1)
            if known:
                answers = one.answers(each, questions)
                said[name] = [answers[index].text for index in known]
                expected = [questions[index].expected or "" for index in known]
            elif each.role == "base" and (why := one.unread_by_base):
                log.info("%s is left out: %s", name, why)
                continue
            else:
                found: list[Completion] = one.completions(each)
                if not found:
                    return None
                said[name] = [answer.text for answer in found]
                expected = [answer.expected for answer in found]
            if each.role == "base" and base is None:
                base = name
    if known and options.prompts:
        told = f"{len(known)} prompts of {options.prompts.name} that have an answer."
    else:
        told = f"{len(expected)} rows ({compared[0][0].heldout.name}), each up to its last answer."
    return Answered(expected, said, base, told)


def named(one: Evaluator, each: ModelFile, *, several: bool) -> str:
    """A model's name in tables."""
    name = f"tuned {each.quant}" if each.role == "tuned" else each.name
    return f"{one.name}: {name}" if several else name


def _miss(part: str, options: EvalOptions) -> None:
    """Raise EvalError where somebody asked for a part by name for which there is nothing."""
    if part in options.insisted:
        raise EvalError(
            "no row has an answer to compare the models with",
            "name conversations with --data FILE, prompts with `expected` by --prompts FILE, or more than 0 --rows",
        )
