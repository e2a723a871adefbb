"""The report's sections on answers against those of the data set: likeness of texts, calls of functions, numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ggufy import installed
from ggufy.evaluate.metrics import calls as tools
from ggufy.evaluate.metrics import numbers, references
from ggufy.evaluate.metrics.calls import Calls
from ggufy.evaluate.metrics.intervals import Interval
from ggufy.evaluate.metrics.numbers import FAR, NEAR, Numbers, Row
from ggufy.evaluate.metrics.references import METRICS, TITLES, References
from ggufy.evaluate.report import plots
from ggufy.evaluate.report.report import Cell, Kind, Marked, Note, Part, Plot, Section, Table
from ggufy.model.tool_calls import Call

# Wrong answers that are shown, of each model.
_NAMED = 10
# A guess beyond so many times the largest truth is drawn at the edge: one would hide all others.
_EDGE = 2.0
# Points of a running mean that are drawn, and after how many answers it begins.
_POINTS = 200
_FIRST = 5


def likeness(scores: Mapping[str, References], base: str | None, told: str = "", seed: int = 0) -> Section:
    """The section on references. `base` names the model that the others are compared with; `told`, which rows."""
    rows: list[tuple[Cell, ...]] = []
    changes: dict[str, dict[str, object]] = {}
    for model, score in scores.items():
        cells: list[Cell] = [model, len(score.rows), *(getattr(score, metric) for metric in METRICS)]
        other = scores[base] if base and model != base else None
        found = {metric: references.difference(score, other, metric, seed) for metric in METRICS} if other else {}
        changes[model] = {metric: interval.values() for metric, interval in found.items() if interval}
        shown = "chrf" if score.complete else "exact_normalised"
        rows.append((*cells, *(_change(found.get(shown), digits=1) if base else ())))
    complete = all(score.complete for score in scores.values())
    about = (
        f"{told} How like the answers are to those in the data: 0 is nothing in common, 100 the same text. A "
        "difference to base is the mean over the answers one by one, with its 95% interval by a bootstrap."
    )
    parts: list[Part] = []
    if not complete:
        gone = references.missing()
        parts.append(
            f"BLEU, chrF and ROUGE-L need the package {gone}, which is not there: {installed.command('eval')}."
        )
    elif any(score.bleu is None for score in scores.values()):
        parts.append("There is no BLEU: it counts runs of four words, and no answer in the data has four.")
    compared = TITLES["chrf" if complete else "exact_normalised"]
    names: tuple[str, ...] = ("model", "answers", *(TITLES[metric] for metric in METRICS))
    names += (f"{compared} against base", "verdict") if base else ()
    formats = dict.fromkeys((TITLES[metric] for metric in METRICS), ".1f")
    signatures = next(iter(scores.values())).signatures
    caption = f"sacrebleu: {signatures['bleu']}; {signatures['chrf']}" if signatures else ""
    values = {model: {**score.values(), "against_base": changes[model]} for model, score in scores.items()}
    table = Table(names, tuple(rows), caption, formats)
    return Section("references", "Against the data's own answers", [*parts, Note(about.strip()), table], values)


def calls(scores: Mapping[str, Calls], base: str | None, told: str = "", seed: int = 0) -> Section:
    """The section on calls of functions."""
    rows: list[tuple[Cell, ...]] = []
    changes: dict[str, Interval | None] = {}
    for model, score in scores.items():
        right = (f"{score.functions} of {len(score.rows)}", f"{score.arguments} of {len(score.rows)}")
        change = tools.difference(score, scores[base], seed) if base and model != base else None
        changes[model] = change
        compared = _change(change, digits=1) if base else ()
        rows.append((model, *right, f"{score.needless} of {score.texts}", *compared))
    about = (
        f"{told} Rows whose answer in the data is a call: of the same functions, and with the same arguments as JSON. "
        "Needless is a call where the data has a text. The difference is of the share with the right arguments, in "
        "points, with its 95% interval by a bootstrap."
    )
    names: tuple[str, ...] = ("model", "right function", "right arguments", "needless calls")
    names += ("arguments against base", "verdict") if base else ()
    wrong = [(model, row) for model, score in scores.items() for row in score.rows if not row.arguments]
    parts: list[Part] = [Note(about.strip()), Table(names, tuple(rows))]
    for model in dict.fromkeys(model for model, _ in wrong):
        missed = [row for one, row in wrong if one == model]
        shown = tuple((row.number, _calls(row.wanted), row.text[:200]) for row in missed[:_NAMED])
        caption = f"{model}: {len(missed)} answers without the right call"
        parts.append(Table(("row", "in the data", "answer"), shown, caption, wide=True))
    values = {
        model: {**score.values(), "arguments_against_base": change.values() if (change := changes[model]) else None}
        for model, score in scores.items()
    }
    return Section("tools", "Calls of functions", parts, values)


def _calls(made: Sequence[Call]) -> str:
    return "; ".join(f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}" for call in made)


def errors(scores: Mapping[str, Numbers], base: str | None, told: str = "", seed: int = 0) -> Section:
    """The section on numbers."""
    rows: list[tuple[Cell, ...]] = []
    changes: dict[str, Interval | None] = {}
    for model, score in scores.items():
        change = numbers.difference(score, scores[base], seed) if base and model != base else None
        changes[model] = change
        figures = (score.mae, score.mse, score.r2, score.share(NEAR), score.share(FAR))
        compared = _change(change, less_is_better=True) if base else ()
        rows.append((model, f"{len(score.read)} of {len(score.rows)}", *figures, *compared))
    about = (
        f"{told} Answers that are numbers. Mean absolute and mean squared error and R² are over the answers in which a "
        "number could be read; the shares within 20% and 40% of the truth are over all rows, and an answer without a "
        "number is outside. The difference is of the mean absolute error, over the rows where base and this model "
        "both gave a number."
    )
    names: tuple[str, ...] = ("model", "numbers read", "MAE", "MSE", "R²", "within 20%", "within 40%")
    names += ("MAE against base", "verdict") if base else ()
    formats = {"R²": ".3f", "within 20%": ".1%", "within 40%": ".1%"}
    formats |= {
        "MAE": _form([score.mae for score in scores.values()]),
        "MSE": _form([score.mse for score in scores.values()]),
    }
    parts: list[Part] = [
        f"{model}: no number in {len(score.unread)} of {len(score.rows)} answers: rows {_list(score.unread)}."
        for model, score in scores.items()
        if score.unread
    ]
    parts += [*_left_out(scores), Note(about.strip()), Table(names, tuple(rows), formats=formats)]
    parts += [_scatter(model, score) for model, score in scores.items() if score.read]
    if drawn := [_running(model, score) for model, score in scores.items() if len(score.read) > 1]:
        caption = "The mean absolute error after so many answers, with its 95% band."
        parts.append(Plot(plots.xy(drawn, "answers", "mean error"), caption))
    parts += [_unread(model, score) for model, score in scores.items() if score.unread]
    values = {
        model: {**score.values(), "mae_against_base": change.values() if (change := changes[model]) else None}
        for model, score in scores.items()
    }
    return Section("numbers", "Numbers", parts, values)


def _list(rows: Sequence[Row]) -> str:
    named = ", ".join(str(row.number) for row in rows[:5])
    return named + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def _change(change: Interval | None, *, digits: int | None = None, less_is_better: bool = False) -> tuple[Cell, Cell]:
    if change is None:
        return None, None
    said = change.verdict("worse", "better") if less_is_better else change.verdict()
    kinds: dict[str, Kind] = {"better": "good", "worse": "bad"}
    return (_text(change) if digits is None else change.text(digits)), Marked(said, kinds.get(said, "quiet"))


def _text(change: Interval) -> str:
    form = _form([change.mean])
    return f"{change.mean:+{form}} ({change.low:+{form}} to {change.high:+{form}})"


def _form(values: Sequence[float | None]) -> str:
    """The digits that amounts ask for: prices may be cents or millions."""
    return ",.2f" if max((abs(value) for value in values if value is not None), default=0.0) >= 1 else ".3g"


def _unread(model: str, score: Numbers) -> Table:
    more = len(score.unread) - _NAMED
    rest = f"; {more} more are in report.json" if more > 0 else ""
    rows = tuple((row.number, row.why, row.text[:200]) for row in score.unread[:_NAMED])
    return Table(
        ("row", "why", "answer"), rows, f"{model}: {len(score.unread)} answers without a number{rest}", wide=True
    )


def _left_out(scores: Mapping[str, Numbers]) -> list[Part]:
    gone = next(iter(scores.values())).no_truth
    if not gone:
        return []
    named = ", ".join(f"row {number} ({why})" for number, why in gone[:_NAMED])
    return [f"{len(gone)} rows are left out, as there is no number in the data's own answer: {named}."]


def _scatter(model: str, score: Numbers) -> Plot:
    edge = _EDGE * max(abs(row.truth) for row in score.read) or 1.0
    far = [row for row in score.read if abs(row.guess or 0) > edge]

    def points(rows: Sequence[Row]) -> list[tuple[float, float]]:
        return [(row.truth, max(-edge, min(edge, row.guess))) for row in rows if row.guess is not None]

    near = [row for row in score.read if row.within(NEAR)]
    middle = [row for row in score.read if row.within(FAR) and not row.within(NEAR)]
    rest = [row for row in score.read if not row.within(FAR)]
    named = (("within 20%", near, "good"), ("20 to 40%", middle, "two"), ("further off", rest, "bad"))
    drawn = [plots.Series(f"{name}: {len(rows)}", points(rows), color=f"var(--{color})") for name, rows, color in named]
    beyond = f" {len(far)} guesses beyond {edge:,.4g} are drawn at the edge." if far else ""
    unread = f" {len(score.unread)} answers without a number are not drawn." if score.unread else ""
    caption = f"{model}: guess against truth, with the diagonal of right answers.{beyond}{unread}"
    return Plot(plots.xy(drawn, "truth", "guess", diagonal=True), caption)


def _running(model: str, score: Numbers) -> plots.Series:
    # The band of the first answers is as wide as everything; it begins where it says something.
    points = score.running()
    points = points[min(_FIRST, len(points)) - 1 :]
    step = max(1, len(points) // _POINTS)
    chosen = sorted({*range(0, len(points), step), len(points) - 1})
    kept = [points[index] for index in chosen]
    return plots.Series(
        model,
        [(count, mean) for count, mean, _, _ in kept],
        line=True,
        band=[(max(0.0, low), high) for _, _, low, high in kept],
    )
