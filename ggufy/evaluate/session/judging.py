"""The judge in `ggufy eval`: what it is shown, the user's consent to the cost, and its section of the report."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

from ggufy.errors import EvalError, GgufyError
from ggufy.evaluate.judge import endpoint, judge, verdict
from ggufy.evaluate.judge.cache import Cache, place
from ggufy.evaluate.judge.client import Client, RateLimit
from ggufy.evaluate.judge.judge import Settings
from ggufy.evaluate.judge.plan import Item, Plan, Price
from ggufy.evaluate.metrics import prompts
from ggufy.evaluate.metrics.answers import Question
from ggufy.evaluate.report import judge_section
from ggufy.evaluate.report.report import Section
from ggufy.evaluate.session.evaluator import Evaluator
from ggufy.evaluate.session.model_files import ModelFile
from ggufy.evaluate.session.options import EvalOptions
from ggufy.evaluate.session.scoring import Compared, named

log = logging.getLogger("ggufy")


def check(options: EvalOptions) -> None:
    """Check the options of a judge before anything is measured. Raises EvalError or JudgeError."""
    if options.judge is None:
        if "judge" in options.insisted:
            raise EvalError("--only judge: no judge is named", "name its model: --judge gpt-4o-mini")
        if options.judge_url:
            raise EvalError("--judge-url: the model that judges there is not named", "give --judge MODEL too")
        return
    where = endpoint.endpoint(options.judge, options.judge_url)
    if not options.yes and options.confirm is None:
        raise EvalError(
            "a judge may cost money, and there is no terminal to ask on", "give --yes to ask the judge anyway"
        )
    client = Client(where, RateLimit(threading.Event()), timeout=10.0, most_tokens=1, pause=0.0)
    try:
        client.check()
    finally:
        client.close()


def check_models(evaluators: Sequence[Evaluator], options: EvalOptions) -> None:
    """Raise EvalError if a model has no chat template, so that it cannot be asked the questions for the judge."""
    for one in evaluators if options.judge else ():
        if not one.answers_chats:
            raise EvalError(
                f"a model of {one.name} has no chat template, so it gives no answers that could be judged",
                "leave --judge out; see references and numbers for how good its completions are",
            )


def section(compared: Compared, options: EvalOptions) -> tuple[Section | None, GgufyError | None]:
    """The section on what the judge says, and why it ended early if it did. No section where nobody wants one."""
    if options.judge is None:
        return None, None
    where = endpoint.endpoint(options.judge, options.judge_url)
    cache = Cache(place())
    if cache.unreadable:
        log.info("%s: %d incomplete lines are left out", cache.path.as_posix(), cache.unreadable)
    plan = Plan(_items(compared, options), where, cache, afresh=options.judge_again)
    price = Price(*options.judge_price) if options.judge_price else None
    estimate = plan.estimate(options.judge_tokens)
    log.info("judge %s: %s", where.model, estimate.text(price))
    if plan.open and not options.yes and not (options.confirm and options.confirm("Ask the judge?")):
        log.info("the judge was not asked")
        return None, None
    settings = Settings(options.judge_parallel, options.judge_per_minute, options.judge_timeout, options.judge_tokens)
    replies = judge.ask(plan, settings)
    found = verdict.verdicts(plan, replies, options.seed)
    return judge_section.section(where, estimate, replies, found, price), replies.stopped


def _items(compared: Compared, options: EvalOptions) -> list[Item]:
    """The answers to the prompts, and to held-out questions if wanted: of each tuned model beside those of its base."""
    questions = prompts.read(options.prompts) if options.prompts else prompts.own()
    items = []
    for one, models in compared:
        items += _beside(one, models, questions, "prompts", several=len(compared) > 1)
        if options.judge_rows:
            held = [replace(question, id=f"held out {question.id}") for question in one.heldout_questions]
            items += _beside(one, models, held[: options.judge_rows], "held-out", several=len(compared) > 1)
    return items


def _beside(
    one: Evaluator, models: Sequence[ModelFile], questions: Sequence[Question], label: str, *, several: bool
) -> list[Item]:
    said = {each: [answer.text for answer in one.answers(each, questions, label)] for each in models}
    base = next((each for each in models if each.role == "base"), None)
    return [
        Item(
            question.id,
            named(one, each, several=several),
            question.conversation,
            said[each][index],
            said[base][index] if base else None,
            question.expected,
        )
        for each in models
        if each != base
        for index, question in enumerate(questions)
    ]
