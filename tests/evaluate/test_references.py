"""BLEU, chrF, ROUGE-L and exact match, against implementations that are not those used."""

import re
import sys
from collections import Counter

import pytest
from nltk.translate.bleu_score import corpus_bleu

from ggufy import installed
from ggufy.errors import GgufyError, MissingExtra
from ggufy.evaluate.metrics import references
from ggufy.evaluate.metrics.references import difference, normal, score, words
from ggufy.evaluate.report import scores_section

WANTED = [
    "The cat sat on the mat and looked at the dog for a long time.",
    "The capital of France is Paris, which lies on the river Seine.",
    "To boil an egg, put it into boiling water and wait for seven minutes.",
    "Buenos días, mi amigo, ¿cómo estás hoy en esta mañana tan bonita?",
    "Yes.",
]
SAID = [
    "The cat sat on the mat and it looked at the dog for a while.",
    "The capital of France is the city of Paris, on the river Seine.",
    "Put the egg into boiling water and wait for seven minutes or so.",
    "Buenos días, amigo, ¿cómo estás en esta mañana tan bonita?",
    "yes",
]


def test_bleu_is_nltks() -> None:
    def cut(text: str) -> list[str]:
        # As "13a" has it: only ASCII's punctuation stands alone.
        return re.findall(r"[^\s!-/:-@[-`{-~]+|[!-/:-@[-`{-~]", text)

    # Not the last: nltk counts one four-gram in an answer of one word.
    wanted = 100 * corpus_bleu([[cut(text)] for text in WANTED[:4]], [cut(text) for text in SAID[:4]])
    found = score(SAID[:4], WANTED[:4])
    assert found.bleu == pytest.approx(wanted, rel=1e-6)
    assert "tok:13a" in found.signatures["bleu"]


def brute_chrf(pairs: list[tuple[str, str]]) -> float:
    """chrF as Popović defines it: F2 of the mean precision and recall over character 1- to 6-grams, without spaces."""
    shares = []
    for n in range(1, 7):
        both = said = wanted = 0
        for answer, reference in pairs:
            ours, theirs = (
                Counter(t[i : i + n] for i in range(len(t) - n + 1))
                for t in (x.replace(" ", "") for x in (answer, reference))
            )
            both, said, wanted = both + (ours & theirs).total(), said + ours.total(), wanted + theirs.total()
        if said and wanted:
            shares.append((both / said, both / wanted))
    precision, recall = (sum(part) / len(shares) for part in zip(*shares, strict=True))
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def test_chrf_is_brute_force() -> None:
    found = score(SAID, WANTED)
    pairs = list(zip(SAID, WANTED, strict=True))
    assert found.chrf == pytest.approx(brute_chrf(pairs), rel=1e-6)
    for row, pair in zip(found.rows[:4], pairs, strict=False):
        assert row["chrf"] == pytest.approx(brute_chrf([pair]), rel=1e-6)


def longest(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence, by its definition."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest(a[1:], b[1:])
    return max(longest(a[1:], b), longest(a, b[1:]))


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("the cat sat on the mat", "the cat was on a mat"),
        ("Buenos días, amigo", "buenos DÍAS mi amigo"),
        ("こんにちは世界", "こんばんは世界"),
        ("नमस्ते दुनिया", "नमस्ते मित्र"),
        ("a b c d", "d c b a"),
        ("", "something"),
        ("nothing alike", "zebra"),
    ],
)
def test_rouge_l_is_the_longest_common_subsequence(answer: str, reference: str) -> None:
    ours, theirs = words(answer), words(reference)
    common = longest(ours, theirs)
    wanted = 200 * common / (len(ours) + len(theirs))
    assert score([answer], [reference]).rouge_l == pytest.approx(wanted)
    assert common > 0 or answer in ("", "nothing alike")


def test_words_are_those_of_many_languages() -> None:
    assert words("Don't panic: x_y 12.5") == ["don", "t", "panic", "x", "y", "12", "5"]
    assert words("你好 नमस्ते Größe") == ["你", "好", "नमस्ते", "grösse"]


def test_exact_and_normalised() -> None:
    found = score(["Paris", " paris. ", "“PARIS”", "Paris, France", "-5", "12%"], ["Paris"] * 4 + ["5", "12"])
    assert found.exact == pytest.approx(100 / 6)
    assert found.exact_normalised == pytest.approx(50)
    assert (normal("?"), normal("!")) == ("?", "!")


def test_there_is_no_bleu_of_single_words() -> None:
    found = score(["Paris", "12.00"], ["Paris", "12.00"])
    assert (found.bleu, found.chrf, found.exact) == (None, 100, 100)
    section = scores_section.likeness({"tuned": found}, None)
    assert "There is no BLEU" in str(section.parts[0])
    assert score(["no", "12.00"], ["Paris is the capital of France", "12.00"]).bleu == pytest.approx(0, abs=1e-6)


def test_the_difference_is_over_the_same_rows() -> None:
    said = [*SAID, *SAID]
    wanted = [*WANTED, *WANTED]
    worse = score([text[: len(text) // 2] for text in said], wanted)
    better = score(said, wanted)
    change = difference(better, worse, "chrf")
    assert change is not None
    assert change.verdict() == "better"
    assert change.n == 10
    assert difference(better, worse, "bleu") is None
    same = difference(better, better, "rouge_l")
    assert same is not None
    assert same.verdict() == "no difference"


@pytest.mark.parametrize(("answers", "wanted"), [([], []), (["a"], []), (["a"], ["b", "c"])])
def test_nothing_to_compare(answers: list[str], wanted: list[str]) -> None:
    with pytest.raises(GgufyError, match="cannot be compared"):
        score(answers, wanted)


@pytest.mark.parametrize(("module", "package"), [("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score")])
def test_without_the_extra_it_says_what_to_install(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as raised:
        references.require()
    assert package in raised.value.message
    assert raised.value.hint == installed.command("eval")
    found = score(SAID, WANTED)
    assert (found.bleu, found.chrf, found.rouge_l) == (None, None, None)
    assert (found.exact, found.exact_normalised) == (0, 20)
    section = scores_section.likeness({"tuned": found}, None)
    assert f"need the package {package}, which is not there: {installed.command('eval')}" in str(section.parts[0])
    assert section.values["tuned"]["bleu"] is None
