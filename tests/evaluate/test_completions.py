"""Held-out rows as questions, against a loop over the logits of every position."""

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from ggufy.errors import EvalError
from ggufy.evaluate.metrics.completions import Completer, Gap, gap, longest_answer
from ggufy.evaluate.metrics.texts import IGNORED, Text
from ggufy.llamacpp import library
from ggufy.llamacpp.evaluate_gguf import Forward

VOCABULARY = Path(__file__).parents[2] / "vendor/llama.cpp/models/ggml-vocab-llama-bpe.gguf"


def text(*labels: Any) -> Text:
    """Ids count from 10; True is a label that counts."""
    ids = list(range(10, 10 + len(labels)))
    return Text(ids, [number if counts else IGNORED for number, counts in zip(ids, labels, strict=True)])


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (text(0, 0, 0, 1, 1), Gap((10, 11, 12), (13, 14))),
        (text(0, 0, 1, 0, 0, 1, 1), Gap((10, 11, 12, 13, 14), (15, 16))),
        (text(0, 0, 1, 1, 0), Gap((10, 11), (12, 13))),
        (text(1, 1, 1), None),
        (text(0, 1, 1), None),
        (text(0, 0, 0), None),
        (text(), None),
    ],
)
def test_the_last_answer_is_what_is_asked_for(row: Text, found: Gap | None) -> None:
    assert gap(row) == found


def test_answers_may_be_twice_as_long_as_the_longest() -> None:
    gaps = [Gap((1, 2), tuple(range(n))) for n in (3, 20, 7)]
    assert longest_answer(gaps, 256) == 40
    assert longest_answer(gaps, 30) == 30
    assert longest_answer(gaps[:1], 256) == 16


def test_the_answer_is_the_likeliest_token_each_time(quick_made: Path) -> None:
    [path] = (quick_made / "runs" / "quick" / "export").glob("*.gguf")
    with Forward(path, 128, 1) as model:
        prompt = model.tokenize("What is the capital of France?", special=False)
        wanted: list[int] = []
        while len(wanted) < 12 and not (wanted and model.ends_turn(wanted[-1])):
            so_far = [*prompt, *wanted]
            [logits] = model.logits(so_far, [False] * (len(so_far) - 1) + [True])
            wanted.append(int(np.argmax(logits[-1])))
        said = b"".join(model.piece(token) for token in wanted if not model.ends_turn(token))
    expected = tuple(prompt[:4])
    with Completer(path, 128, 1) as completer:
        first = completer.complete(Gap(tuple(prompt), expected), 12)
        other = completer.complete(Gap(tuple(prompt[::-1]), expected), 12)
        # What was asked before changes nothing.
        assert completer.complete(Gap(tuple(prompt), expected), 12) == first
        assert completer.complete(Gap(tuple(prompt[::-1]), expected), 12) == other
        assert completer.speed(prompt, 8) > 0
    assert first.text == said.decode("utf-8", "replace")
    assert (first.tokens, first.expected) == (len(wanted), completer_text(path, expected))


def completer_text(path: Path, tokens: tuple[int, ...]) -> str:
    with Forward(path, 64, 1) as model:
        return b"".join(map(model.piece, tokens)).decode()


def test_a_row_that_does_not_fit(quick_made: Path) -> None:
    [path] = (quick_made / "runs" / "quick" / "export").glob("*.gguf")
    with Completer(path, 64, 1) as completer:
        # There is room for an answer as long as the one that is wanted, and no more.
        assert completer.complete(Gap(tuple(range(20, 74)), (5, 6)), 40).tokens <= 10
        with pytest.raises(EvalError, match="54 tokens long before its answer, and the context holds 64"):
            completer.complete(Gap(tuple(range(20, 74)), tuple(range(20, 35))), 40)


def test_deep_indentation_is_not_lost() -> None:
    assert VOCABULARY.is_file(), "run `make vendor`"
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(VOCABULARY).encode(), params)
    vocab = llama_cpp.llama_model_get_vocab(model)
    code = b"if x:\n" + b" " * 80 + b"y = 1\n" + b"=" * 64
    room = (llama_cpp.llama_token * 64)()
    count = llama_cpp.llama_tokenize(vocab, code, len(code), room, 64, False, False)
    pieces = [library.piece(vocab, token) for token in room[:count]]
    assert b"".join(pieces) == code
    assert max(map(len, pieces)) > 32
    assert library.piece(vocab, 128009) == b""
    llama_cpp.llama_model_free(model)
