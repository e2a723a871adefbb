"""Numbers read out of answers, and their errors, against scikit-learn and scipy."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from ggufy.evaluate.metrics import intervals, numbers
from ggufy.evaluate.metrics.numbers import are_numbers, read, score
from ggufy.evaluate.report import scores_section

READ = [
    ("Price is $12.00", 12),
    ("12.00\n\nHow much does this cost? Price is $99.00", 99),
    ("12.00\n\nAnother one costs 99", 12),
    ("$1,234.50", 1234.5),
    ("1.234,50 €", 1234.5),
    ("1\u00a0234,50 €", 1234.5),
    ("1\u202f234\u202f567", 1234567),
    ("CHF 1'234.50", 1234.5),
    ("₹1,23,456.50", 123456.5),
    ("1,234,567.89", 1234567.89),
    ("1.234.567", 1234567),
    ("1,234", 1234),
    ("0,123", 0.123),
    ("12,5", 12.5),
    ("1000,000", 1000),
    (".50", 0.5),
    ("$.99", 0.99),
    ("12.", 12),
    ("**$79.99**.", 79.99),
    ("1.5e3", 1500),
    ("1.5E-4", 0.00015),
    ("1.5 x 10^3", 1500),
    ("3×10^-2", 0.03),
    ("5 * 10**2", 500),
    ("-12", -12),
    ("−12.5", -12.5),
    ("-$12", -12),
    ("$-12", -12),
    ("($12.00)", -12),
    ("(5)", 5),
    ("a = -5", -5),
    ("10-20", 10),
    ("10–20", 10),
    ("about 12 dollars", 12),
    ("12-dollar", 12),
    ("45 EUR", 45),
    ("USD 45", 45),
    ("US$45", 45),
    ("19.99USD", 19.99),
    ("2 for $30", 30),
    ("$1,299, not $999", 1299),
    ("2024-01-05: it cost 12 dollars", 12),
    ("12 x 12 = 144", 144),
    ("First 3, then 4. The answer is 7.", 7),
    ("3 and 4\n#### 12", 12),
    ("12k", 12000),
    ("3 million", 3e6),
    ("$1.5m", 1.5e6),
    ("$2bn", 2e9),
    ("2 m", 2),
    ("12 b", 12),
    ("12kg", 12),
    ("12%", 12),
    ("1,2,3", 1),
    ("The RTX3060 costs 300", 300),
    ("１２", 12),
]


@pytest.mark.parametrize(("text", "value"), READ, ids=[text for text, _ in READ])
def test_reading(text: str, value: float) -> None:
    assert read(text).value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("twelve", "no number"),
        ("v2", "no number"),
        ("I cannot say.", "no number"),
        ("nan", "no number"),
        ("1e999", "a number too large"),
        ("9" * 400, "a number too large"),
    ],
)
def test_what_is_no_number_says_why(text: str, why: str) -> None:
    assert (read(text).value, read(text).why) == (None, why)


def test_every_price_is_read_back() -> None:
    random = np.random.default_rng(0)
    for price in np.round(10 ** random.uniform(-2, 7, 500), 2):
        for text in (f"Price is ${price:.2f}", f"${price:,.2f}", f"{price:,.2f} USD", f"It costs {price} dollars."):
            assert read(text).value == pytest.approx(price, abs=1e-9), text
        turned = f"{price:,.2f}".translate(str.maketrans(",.", ".,"))
        assert read(f"{turned} €").value == pytest.approx(price, abs=1e-9), turned


@pytest.mark.parametrize(
    "text", ["1" * 50_000, "1," * 50_000, "1,111" * 20_000, "-$ " * 30_000, "a1" * 50_000, "'" * 90_000]
)
def test_no_answer_takes_for_ever(text: str) -> None:
    # The timeout of the tests is the limit: a pattern that tries everything would need years.
    assert read(text).why in ("", "no number", "a number too large")


@pytest.mark.parametrize(
    ("references", "are"),
    [
        (["Price is $12.00", "Price is $1,299.00", "Price is $.99"], True),
        (["12.00", "1,299.00"], True),
        (["12 kg", "3 kg"], True),
        (["In 1789 the king fell.", "It has 3 legs."], False),
        (["Paris", "12"], False),
        (["12.00"], False),
        ([], False),
    ],
)
def test_which_data_is_numbers(references: list[str], are: bool) -> None:
    assert are_numbers(references) is are


def made(rows: int = 300) -> tuple[list[str], list[str]]:
    """Answers and references as a model of prices gives them; every tenth answer has no number."""
    random = np.random.default_rng(1)
    truths = np.round(10 ** random.uniform(0.5, 3, rows), 2)
    guesses = np.round(truths * random.lognormal(0, 0.4, rows), 2)
    answers = ["I do not know" if row % 10 == 9 else f"${guess:,.2f}" for row, guess in enumerate(guesses)]
    return answers, [f"Price is ${truth:,.2f}" for truth in truths]


def test_errors_are_those_of_scikit_learn() -> None:
    answers, references = made()
    scored = score(answers, references)
    assert (len(scored.rows), len(scored.read), len(scored.unread)) == (300, 270, 30)
    assert [row.number for row in scored.unread] == list(range(10, 301, 10))
    assert {row.why for row in scored.unread} == {"no number"}
    pairs = [(float(r[10:].replace(",", "")), a) for a, r in zip(answers, references, strict=True)]
    truth = [t for t, a in pairs if a[0] == "$"]
    guess = [float(a[1:].replace(",", "")) for _, a in pairs if a[0] == "$"]
    assert scored.mae == pytest.approx(metrics.mean_absolute_error(truth, guess))
    assert scored.mse == pytest.approx(metrics.mean_squared_error(truth, guess))
    assert scored.r2 == pytest.approx(metrics.r2_score(truth, guess))
    apart = np.abs(np.subtract(truth, guess)) / np.asarray(truth)
    # Of all 300: an answer without a number is not within anything.
    assert scored.share(0.2) == (apart <= 0.2).sum() / 300
    assert scored.share(0.4) == (apart <= 0.4).sum() / 300


def test_the_running_mean_has_the_band_of_students_t() -> None:
    scored = score(*made(80))
    errors = [row.error for row in scored.read]
    points = scored.running()
    assert [point[0] for point in points] == list(range(1, len(errors) + 1))
    assert math.isnan(points[0][2])
    for count, mean, low, high in points[1:]:
        seen = errors[:count]
        wanted = stats.t.interval(0.95, count - 1, np.mean(seen), stats.sem(seen))
        assert (mean, low, high) == pytest.approx((np.mean(seen), *wanted), rel=1e-9)
    assert points[-1][1] == pytest.approx(scored.mae)


def test_what_cannot_be_computed_is_not_made_up() -> None:
    none = score(["no idea", "none"], ["$3", "$4"])
    assert (none.mae, none.mse, none.r2, none.share(0.2)) == (None, None, None, 0)
    same = score(["3", "5"], ["4", "4"])
    assert (same.mae, same.r2) == (1, None)
    gone = score(["3", "5"], ["four", "4"])
    assert gone.no_truth == [(1, "no number")]
    assert [row.number for row in gone.rows] == [2]
    zero = score(["0", "0.1"], ["0", "0"])
    assert zero.share(0.2) == 0.5
    for scored in (none, same, gone, zero):
        json.dumps(scored.values(), allow_nan=False)


def test_the_difference_is_over_the_rows_that_both_answered() -> None:
    references = [f"${n}" for n in range(10, 30)]
    base = score([f"${n + 5}" for n in range(10, 29)] + ["no"], references)
    tuned = score(["no"] + [f"${n + 1 + n % 2}" for n in range(11, 30)], references)
    change = numbers.difference(tuned, base)
    assert change is not None
    assert change.n == 18
    assert change.mean == pytest.approx(-3.5)
    assert change.verdict("worse", "better") == "better"
    again = numbers.difference(base, base)
    assert again is not None
    assert again.verdict("worse", "better") == "no difference"


def test_the_page_shows_and_names_everything() -> None:
    answers, references = made(60)
    answers[3] = "$99,999,999"
    tuned, base = score(answers, references), score(["$50"] * 60, references)
    section = scores_section.errors({"base": base, "tuned": tuned}, "base")
    json.dumps(section.values, allow_nan=False)
    assert len(section.values["tuned"]["unread"]) == 6
    text = str(section.parts)
    assert "6 answers without a number are not drawn" in text
    assert "1 guesses beyond" in text
    # A point for each number that was read, in each model's plot.
    scatter = [part for part in section.parts if "guess against truth" in getattr(part, "caption", "")]
    assert [plot.svg.count("<circle") for plot in scatter] == [60, 54]
    assert section.parts[0] == "tuned: no number in 6 of 60 answers: rows 10, 20, 30, 40, 50 and 1 more."


# Intervals


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 57, 100, 999, 1000, 1001, 100_000])
def test_students_t(freedom: int) -> None:
    assert intervals.student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-8)


@pytest.mark.parametrize("n", [6, 10, 25])
def test_the_interval_holds_the_truth_in_95_of_100(n: int) -> None:
    random = np.random.default_rng(n)
    values = np.array([-4, -2, -1, 0, 0, 1, 2, 2, 4, 5]) / 3
    draws = random.choice(values, size=(600, n))
    found = [intervals.bootstrap(draw.tolist(), seed=seed, resamples=1000) for seed, draw in enumerate(draws)]
    held = np.mean([one.low <= values.mean() <= one.high for one in found])
    assert 0.925 <= held <= 0.975


def test_the_interval_of_many_values_is_scipys() -> None:
    values = np.random.default_rng(3).normal(0.1, 1, 2000)
    ours = intervals.bootstrap(values.tolist(), seed=1)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert ours == intervals.bootstrap(values.tolist(), seed=1)
    assert ours != intervals.bootstrap(values.tolist(), seed=2)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, -1, 0.5, -0.5, 0, 0, 1, -1], "no difference"),
        ([0.0] * 20, "no difference"),
        ([1.0], "too few to tell (1)"),
        ([1.0, 1.0, 1.0], "too few to tell (3)"),
        ([1.0, 0.5, 1.5, 1.0, 0.5, 1.5, 1.0], "better"),
        ([-1.0, -0.5, -1.5, -1.0, -0.5, -1.5, -1.0], "worse"),
    ],
)
def test_the_words(values: list[float], says: str) -> None:
    interval = intervals.bootstrap(values)
    assert interval.verdict() == says
    assert len(values) < 6 or (says == "no difference") is (interval.low <= 0 <= interval.high)
    json.dumps(interval.values(), allow_nan=False)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 700])
def test_every_plot_can_be_drawn(rows: int) -> None:
    section = scores_section.errors({"tuned": score(*made(rows))}, None)
    plots = [part.svg for part in section.parts if hasattr(part, "svg")]
    assert len(plots) == (1 if rows == 1 else 2)
    for svg in plots:
        ElementTree.fromstring(svg)
        assert "nan" not in svg
