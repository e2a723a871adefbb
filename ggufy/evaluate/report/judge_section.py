"""The report's section on the judge's grades."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ggufy.evaluate.judge.endpoint import Endpoint
from ggufy.evaluate.judge.judge import Replies
from ggufy.evaluate.judge.plan import BASE, TUNED, Estimate, Price
from ggufy.evaluate.judge.prompt import CRITERIA
from ggufy.evaluate.judge.verdict import MEAN, Failed, Graded, Verdict
from ggufy.evaluate.metrics.intervals import Interval
from ggufy.evaluate.report.report import Cell, Kind, Marked, Note, Part, Section, Table

# Failures that are named one by one.
_NAMED = 20


def section(
    where: Endpoint, estimate: Estimate, replies: Replies, verdicts: Sequence[Verdict], price: Price | None
) -> Section:
    """What was asked of whom, what came back, and what it says."""
    parts: list[Part] = [f"{verdict.model}: {headline(verdict)}." for verdict in verdicts]
    if replies.stopped:
        parts.append(f"The judging ended early: {replies.stopped.message}; {replies.stopped.hint}.")
    parts.append(Note(" ".join(_about(where, estimate, replies, price))))
    parts.append(_summary(verdicts))
    if any(verdict.rows for verdict in verdicts):
        parts.append(_criteria(verdicts))
    for verdict in verdicts:
        if verdict.failed:
            parts.append(_failures(verdict))
        if verdict.rows:
            parts.append(_rows(verdict))
    return Section("judge", "What a judge says", parts, _values(where, estimate, replies, verdicts, price))


def headline(verdict: Verdict) -> str:
    """A verdict in a line; what failed is part of it."""
    failed = f"; {len(verdict.failed)} questions without grades: {verdict.kinds()}" if verdict.failed else ""
    average, interval = verdict.average(), verdict.interval()
    if average is None:
        return f"no answer could be judged{failed}"
    if interval is None:
        return f"judged {average:.2f} of 5 over {len(verdict.rows)} answers{failed}"
    said = f"base {verdict.average(BASE):.2f}, tuned {average:.2f} of 5 over {len(verdict.rows)} answers"
    return f"{said}, difference {interval.text()}: {verdict.says}{failed}"


def _about(where: Endpoint, estimate: Estimate, replies: Replies, price: Price | None) -> Iterator[str]:
    yield (
        f"{where.model} at {where.url} graded each answer from 1 to 5 for correctness, completeness and faithfulness "
        "to the instruction. Two answers to a question are shown together and graded twice, the second time in the "
        "other order; an answer's grade is the mean of both. A difference is given with its 95% interval, by a "
        'bootstrap over the questions; where that holds 0 it says "no difference".'
    )
    yield f"{replies.asked:,} questions were asked now, {estimate.known:,} replies were there from before."
    if replies.tokens_in or replies.tokens_out:
        cost = f", {price.of(replies.tokens_in, replies.tokens_out):.2g} by the price given" if price else ""
        least = "at least " if replies.uncounted else ""
        yield f"The judge counted {least}{replies.tokens_in:,} tokens in and {replies.tokens_out:,} out{cost}."
    if replies.notes:
        yield f"Note: {'; '.join(replies.notes)}."


def _summary(verdicts: Sequence[Verdict]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for verdict in verdicts:
        interval = verdict.interval()
        better, same, worse = verdict.better_same_worse()
        rows.append(
            (
                verdict.model,
                f"{len(verdict.rows)} of {verdict.items}",
                verdict.average(BASE) if verdict.paired else None,
                verdict.average(),
                interval.text() if interval else None,
                _says(interval) if interval else None,
                f"{better} / {same} / {worse}" if interval else None,
                f"{verdict.first_advantage:+.2f}" if verdict.first_advantage is not None else None,
                verdict.turned if interval else None,
            )
        )
    columns = (
        "model",
        "judged",
        "base",
        "tuned",
        "difference",
        "verdict",
        "better / same / worse",
        "gain of being first",
    )
    return Table(
        (*columns, "turned"),
        tuple(rows),
        caption='"turned": how often the judge took the other side once the answers had changed places.',
        formats={"base": ".2f", "tuned": ".2f"},
    )


def _says(interval: Interval) -> Marked:
    kinds: dict[str, Kind] = {"better": "good", "worse": "bad"}
    return Marked(interval.verdict(), kinds.get(interval.verdict(), "quiet"))


def _criteria(verdicts: Sequence[Verdict]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for verdict in verdicts:
        for name in CRITERIA:
            interval = verdict.interval(name)
            if verdict.rows:
                said = (interval.text(), _says(interval)) if interval else (None, None)
                rows.append((verdict.model, name, _base(verdict, name), verdict.average(TUNED, name), *said))
    columns = ("model", "criterion", "base", "tuned", "difference", "verdict")
    return Table(columns, tuple(rows), formats={"base": ".2f", "tuned": ".2f"})


def _base(verdict: Verdict, name: str) -> float | None:
    return verdict.average(BASE, name) if verdict.paired else None


def _failures(verdict: Verdict) -> Table:
    def cells(failed: Failed) -> tuple[Cell, ...]:
        return failed.id, failed.shown_first, failed.kind, failed.detail

    more = len(verdict.failed) - _NAMED
    rest = f"; {more} more are in report.json" if more > 0 else ""
    return Table(
        ("question", "shown first", "failure", "details"),
        tuple(cells(failed) for failed in verdict.failed[:_NAMED]),
        caption=f"{verdict.model}: questions without grades, in no average{rest}. The same command asks them again.",
    )


def _rows(verdict: Verdict) -> Table:
    def cell(row: Graded, who: str) -> Cell:
        given = [grades[order.index(who)] for order, grades in row.orders]
        reasons = "\n".join(f"{'/'.join(str(getattr(one, name)) for name in CRITERIA)}: {one.reason}" for one in given)
        return Marked(f"{row.of(who, MEAN):.2f}", note=reasons)

    whose = (BASE, TUNED) if verdict.paired else (TUNED,)
    return Table(
        ("question", *whose),
        tuple((row.item.id, *(cell(row, who) for who in whose)) for row in verdict.rows),
        caption=f"{verdict.model}: grades and reasons (correctness/completeness/faithfulness), once for each order",
        wide=True,
    )


def _values(
    where: Endpoint, estimate: Estimate, replies: Replies, verdicts: Sequence[Verdict], price: Price | None
) -> dict[str, Any]:
    return {
        "url": where.url,
        "model": where.model,
        "answered_by": sorted(replies.models),
        "asked": replies.asked,
        "known_from_before": estimate.known,
        "estimate": vars(estimate),
        "tokens_in": replies.tokens_in,
        "tokens_out": replies.tokens_out,
        "replies_without_a_token_count": replies.uncounted,
        "cost": price.of(replies.tokens_in, replies.tokens_out) if price else None,
        "stopped": replies.stopped.message if replies.stopped else None,
        "notes": replies.notes,
        "verdicts": [verdict.values() for verdict in verdicts],
    }
