"""Compare answers with those of the data set: BLEU, chrF, ROUGE-L, and exact match.

These say how alike two texts are, not how good one is. For tasks with one right answer (a label, a date, a translation
in a house style) they mean a lot; for open questions a judge says more.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.errors import GgufyError, MissingExtra
from ggufy.evaluate.metrics import intervals
from ggufy.evaluate.metrics.intervals import Interval

METRICS = ("bleu", "chrf", "rouge_l", "exact", "exact_normalised")
TITLES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "exact": "exact match",
    "exact_normalised": "exact match, normalised",
}
# Scripts that put no spaces between words: each sign is taken for a word.
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Around an answer these say nothing. Others do: "-5" is not "5", "12%" is not "12".
_AROUND = " .,;:!?…\"'`*_()[]{}“”„‘’«»‹›。，、；：！？「」『』（）"


@dataclass(frozen=True)
class References:
    """All from 0 to 100. `rows` holds what each answer got; BLEU is of all answers together, as it is meant to be.

    There is no BLEU of references that are all shorter than four words: it counts runs of four.
    """

    bleu: float | None
    chrf: float | None
    rouge_l: float | None
    exact: float
    exact_normalised: float
    rows: list[dict[str, float]]
    signatures: dict[str, str]
    """How sacrebleu counted, in its own words; a BLEU without them can be compared with nothing."""

    @property
    def complete(self) -> bool:
        return self.chrf is not None

    def values(self) -> dict[str, Any]:
        """For the report's JSON."""
        figures = {name: getattr(self, name) for name in METRICS}
        return {"rows": len(self.rows), **figures, "signatures": self.signatures, "by_row": self.rows}


def require() -> None:
    """Raise MissingExtra where BLEU, chrF and ROUGE-L cannot be computed."""
    if gone := missing():
        raise MissingExtra("comparing answers with references", "eval", gone)


def missing() -> str | None:
    """The package that the three similarity metrics lack here."""
    from importlib.util import find_spec

    for module, package in (("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score")):
        try:
            found = find_spec(module) is not None
        except ValueError:
            found = False
        if not found:
            return package
    return None


def score(answers: Sequence[str], references: Sequence[str]) -> References:
    """Each answer against its one reference. Without the packages of `ggufy-tune[eval]` only the exact matches.

    Raises GgufyError where there is nothing to compare.
    """
    if not answers or len(answers) != len(references):
        raise GgufyError(
            f"{len(answers)} answers and {len(references)} references cannot be compared",
            "each answer needs one reference",
        )
    pairs = list(zip(answers, references, strict=True))
    rows: list[dict[str, float]] = [
        {"exact": 100.0 * (answer == wanted), "exact_normalised": 100.0 * (normal(answer) == normal(wanted))}
        for answer, wanted in pairs
    ]
    bleu = chrf = rouge_l = None
    signatures: dict[str, str] = {}
    if missing() is None:
        bleu, chrf, signatures = _corpus(answers, references)
        for row, likeness in zip(rows, _likeness(pairs), strict=True):
            row.update(likeness)
        rouge_l = _mean(rows, "rouge_l")
    return References(bleu, chrf, rouge_l, _mean(rows, "exact"), _mean(rows, "exact_normalised"), rows, signatures)


def difference(tuned: References, base: References, metric: str, seed: int = 0) -> Interval | None:
    """By how much a metric grew from base to tuned, row by row. None for BLEU, which no single row has."""
    if metric == "bleu" or not (tuned.rows and metric in tuned.rows[0] and metric in base.rows[0]):
        return None
    changes = [new[metric] - old[metric] for new, old in zip(tuned.rows, base.rows, strict=True)]
    return intervals.bootstrap(changes, seed=seed)


def normal(text: str) -> str:
    """A text without what rarely matters: case, width of characters, spaces, and punctuation around it."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    # A text that is all punctuation is what it is: "?" is not "!".
    return folded.strip(_AROUND) or folded


def words(text: str) -> list[str]:
    """The words that ROUGE-L compares. rouge-score's own keep a to z only, and would see nothing in "こんにちは"."""
    # A mark, such as a vowel sign of Hindi, belongs to the letter before it.
    spaced = "".join(
        f" {sign} " if _SPACELESS.match(sign) else sign if unicodedata.category(sign)[0] in "LMN" else " "
        for sign in unicodedata.normalize("NFC", text).casefold()
    )
    return spaced.split()


def _corpus(answers: Sequence[str], references: Sequence[str]) -> tuple[float | None, float, dict[str, str]]:
    from sacrebleu.metrics import BLEU, CHRF

    bleu, chrf = BLEU(), CHRF()
    likeness, precision = (metric.corpus_score(list(answers), [list(references)]) for metric in (bleu, chrf))
    signatures = {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    runs_of_four = bleu.corpus_score(list(references), [list(references)]).totals[-1]
    return float(likeness.score) if runs_of_four else None, float(precision.score), signatures


def _likeness(pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    chrf, rouge = CHRF(), RougeScorer(["rougeL"], tokenizer=_Words())
    return [
        {
            "chrf": float(chrf.sentence_score(answer, [wanted]).score),
            "rouge_l": 100.0 * float(rouge.score(wanted, answer)["rougeL"].fmeasure),
        }
        for answer, wanted in pairs
    ]


class _Words:
    """`words`, as rouge-score asks for it."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _mean(rows: Sequence[dict[str, float]], metric: str) -> float:
    return math.fsum(row[metric] for row in rows) / len(rows)
