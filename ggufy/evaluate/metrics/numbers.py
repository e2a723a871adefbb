"""Read numbers such as prices out of answers, and measure how far off they are.

The rule by which a number is read, for answers and references alike:

1. Among several numbers, the first with a currency sign, code or word counts ("2 for $30" is 30); without one, the
   first after the last "=", "####" or "answer is"; without that, the first.
2. "1,234.50" and "1.234,50" are the same: of two kinds of separator the last is the decimal one; one that comes
   several times groups thousands, also in India's way ("1,23,456"); a single comma before exactly three digits does
   too, unless a 0 is before it; every other single comma or dot is decimal. Narrow and non-breaking spaces and
   apostrophes group as well.
3. A minus sign counts where no digit or letter is before it ("10-20" is 10); "($5)" is -5 as in accounts.
4. "1.5e3", "1.5 x 10^3", "12k", "3 million" and "$2bn" are what they say; "%" changes nothing.
5. Digits inside a word ("RTX3060", "v2") are no number. Nor are numbers in words ("twelve"), or those too large for a
   float.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.evaluate.metrics import intervals
from ggufy.evaluate.metrics.intervals import Interval

NEAR, FAR = 0.2, 0.4
_SIGNS = "$€£¥₹₩₽₺₴₫฿₱₦₪"
_CODES = "usd|eur|gbp|jpy|chf|cad|aud|inr|cny|mxn|brl"
_WORDS = rf"(?:us )?dollars?|bucks|euros?|pounds?|yen|rupees?|francs?|pesos?|yuan|{_CODES}"
_GROUP = "['\u2019\u00a0\u2009\u202f]"
_DIGITS = (
    r"\d{1,3}(?:,\d{3})+\.\d+|\d{1,3}(?:\.\d{3})+,\d+"
    rf"|\d{{1,3}}(?:{_GROUP}\d{{3}})+(?:[.,]\d+)?"
    r"|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?"
    r"|\d{1,3}(?:,\d{3}){2,}|\d{1,3}(?:\.\d{3}){2,}"
    r"|\d+[.,]\d+(?![.,]?\d)|\d+|[.,]\d+"
)
_SCALE = {"k": 3, "thousand": 3, "m": 6, "mn": 6, "million": 6, "b": 9, "bn": 9, "billion": 9, "trillion": 12}
# Letters that are a scale only beside money: "$2m" is millions, "2 m" is a length.
_LOOSE = ("m", "mn", "b", "bn")
_NUMBER = re.compile(
    r"(?P<paren>\()?(?P<minus>(?<![\w.)%])-\s?)?"
    rf"(?:(?P<before>(?:us|a|c)?[{_SIGNS}]\s?|\b(?:{_CODES})\s)(?P<inner>-\s?)?)?"
    rf"(?<![^\W_])(?<![\d][.,])(?P<digits>{_DIGITS})"
    r"(?P<power>e[+-]?\d+(?!\w)|\s?[x×*]\s?10(?:\^|\*\*)\(?[+-]?\d+\)?)?"
    r"(?P<scale>\s?(?:thousand|million|billion|trillion)(?!\w)|\s?(?:k|mn?|bn?)(?!\w))?"
    rf"(?P<after>\s?[{_SIGNS}]|[\s-](?:{_WORDS})(?!\w))?(?P<close>\))?",
    re.IGNORECASE,
)
_RESULT = re.compile(r"=|####|\banswer(?:\s+is|:)", re.IGNORECASE)
# Digits of other scripts as ours; the minus sign and its look-alikes as a hyphen.
_PLAIN = str.maketrans({0x2212: "-", 0xFE63: "-", 0xFF0D: "-", 0x2013: "-"} | {0xFF10 + d: str(d) for d in range(10)})


@dataclass(frozen=True)
class Reading:
    """A number read out of a text, or why there is none."""

    value: float | None
    why: str = ""
    rest: str = ""
    """The text around the number."""


def read(text: str) -> Reading:
    """The number that a text gives, by the rule above."""
    plain = text.translate(_PLAIN)
    found = list(_NUMBER.finditer(plain))
    if not found:
        return Reading(None, "no number" if text.strip() else "empty")
    chosen = next((match for match in found if match["before"] or match["after"]), None)
    if chosen is None:
        after = max((match.end() for match in _RESULT.finditer(plain)), default=0)
        chosen = next((match for match in found if match.start("digits") >= after), found[0])
    value = _value(chosen)
    rest = f"{plain[: chosen.start()]} {plain[chosen.end() :]}"
    if not math.isfinite(value):
        return Reading(None, "a number too large", rest)
    return Reading(value, rest=" ".join(rest.lower().strip(" .\n").split()))


def _value(match: re.Match[str]) -> float:
    digits = re.sub(_GROUP, "", match["digits"])
    commas, dots = digits.count(","), digits.count(".")
    if commas and dots:
        decimal = max(",.", key=digits.rfind)
        digits = digits.replace("." if decimal == "," else ",", "").replace(",", ".")
    elif commas + dots > 1 or (commas and re.fullmatch(r"[1-9]\d{0,2},\d{3}", digits)):
        digits = digits.replace(",", "").replace(".", "")
    exponent = 0
    if power := match["power"]:
        exponent = int(re.sub(r"^e|.*10(\^|\*\*)|[()]", "", power.strip(), flags=re.IGNORECASE)[:6])
    scale = (match["scale"] or "").strip().lower()
    money = match["before"] or match["after"]
    # "12k" is glued; "12 k" may be anything.
    glued = scale == (match["scale"] or "").lower()
    if scale and (money or len(scale) > 2 or (scale not in _LOOSE and glued)):
        exponent += _SCALE[scale]
    value = float(f"{digits.replace(',', '.')}e{exponent}")
    owed = match["paren"] and match["close"] and money
    return -value if match["minus"] or match["inner"] or owed else value


def are_numbers(references: Sequence[str]) -> bool:
    """Whether the answers wanted are numbers: each has one, and the text around it is always the same.

    "Price is $12.00" and "12 kg" are numbers; a sentence with a year in it is not.
    """
    read_all = [read(text) for text in references]
    around = {reading.rest for reading in read_all}
    return len(references) > 1 and all(reading.value is not None for reading in read_all) and len(around) == 1


@dataclass(frozen=True)
class Row:
    """One answer beside its reference; `guess` is None where no number could be read, and `why` says so."""

    number: int
    truth: float
    guess: float | None
    text: str
    why: str = ""

    @property
    def error(self) -> float:
        return abs(self.guess - self.truth) if self.guess is not None else math.nan

    def within(self, share: float) -> bool:
        """Whether it is off by at most that share of the truth."""
        return self.guess is not None and self.error <= share * abs(self.truth)


@dataclass(frozen=True)
class Numbers:
    """The errors of one model's answers. Means are over the answers with a number; shares are over all rows."""

    rows: list[Row]
    no_truth: list[tuple[int, str]]
    """Rows left out because their reference has no number: which, and why."""

    @property
    def read(self) -> list[Row]:
        return [row for row in self.rows if row.guess is not None]

    @property
    def unread(self) -> list[Row]:
        """Answers without a number."""
        return [row for row in self.rows if row.guess is None]

    @property
    def mae(self) -> float | None:
        return _mean([row.error for row in self.read])

    @property
    def mse(self) -> float | None:
        return _mean([row.error**2 for row in self.read])

    @property
    def r2(self) -> float | None:
        """1 - the squared errors over those of always saying the mean; None where the truth never varies."""
        truths = [row.truth for row in self.read]
        if len(truths) < 2 or len(set(truths)) == 1:
            return None
        middle = math.fsum(truths) / len(truths)
        return 1 - math.fsum(row.error**2 for row in self.read) / math.fsum((truth - middle) ** 2 for truth in truths)

    def share(self, within: float) -> float | None:
        """The share of the rows whose answer is off by at most that share of the truth; one without a number is not."""
        return _mean([float(row.within(within)) for row in self.rows])

    def running(self) -> list[tuple[int, float, float, float]]:
        """(answers so far, mean error, low, high) after each answer: the mean and its 95% band, by Student's t.

        One answer has no band: its bounds are nan.
        """
        points = []
        total = squares = 0.0
        for count, row in enumerate(self.read, 1):
            before = total / (count - 1) if count > 1 else 0.0
            total += row.error
            mean = total / count
            # Welford's update keeps the digits that a difference of squares would lose.
            squares += (row.error - before) * (row.error - mean) if count > 1 else 0.0
            if count == 1:
                points.append((1, mean, math.nan, math.nan))
                continue
            half = intervals.student_t(count - 1) * math.sqrt(squares / (count - 1) / count)
            points.append((count, mean, mean - half, mean + half))
        return points

    def values(self) -> dict[str, Any]:
        """For the report's JSON."""
        return {
            "rows": len(self.rows),
            "read": len(self.read),
            "mae": self.mae,
            "mse": self.mse,
            "r2": self.r2,
            "within_20_percent": self.share(NEAR),
            "within_40_percent": self.share(FAR),
            "unread": [{"row": row.number, "why": row.why, "answer": row.text} for row in self.unread],
            "references_without_a_number": [{"row": number, "why": why} for number, why in self.no_truth],
        }


def score(answers: Sequence[str], references: Sequence[str]) -> Numbers:
    """The answers beside the references, in order; rows count from 1."""
    rows, no_truth = [], []
    for number, (answer, reference) in enumerate(zip(answers, references, strict=True), 1):
        truth, guess = read(reference), read(answer)
        if truth.value is None:
            no_truth.append((number, truth.why))
        else:
            rows.append(Row(number, truth.value, guess.value, answer, guess.why))
    return Numbers(rows, no_truth)


def difference(tuned: Numbers, base: Numbers, seed: int = 0) -> Interval | None:
    """By how much the error grew from base to tuned, over the rows where both gave a number; below 0 is better."""
    errors = {row.number: row.error for row in base.read}
    pairs = [row.error - errors[row.number] for row in tuned.read if row.number in errors]
    return intervals.bootstrap(pairs, seed=seed) if pairs else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
