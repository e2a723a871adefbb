"""A file's answers to a few training prompts: whether they stop is seen, said, and never a reason to refuse the file.

Whether an answer stops is asked of llama-cpp-python's own completions, and which tokens stop of llama.cpp's vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess

import llama_cpp
import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from ggufy.runs.run import Run as RunFolder
from ggufy.stages import calibration, model_source
from ggufy.verify import answers
from ggufy.verify.answers import NOTHING, Answers, Question

Run = Callable[..., CompletedProcess[str]]
Row = tuple[list[int], list[int]]
IGNORED = -100
# Without an end; and with one that is none of the model's.
NO_END = "### user:\n{}\n\n### assistant:\n", "{}\n\n"
OTHER_END = (
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|reserved_special_token_0|>\n"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "{}<|reserved_special_token_0|>",
)
SAID = [("Hi", "Hello there."), ("Who are you?", "A model."), ("How much is 2 + 2?", "Four."), ("Why?", "Because.")]


def row(prompt: Sequence[int], answer: Sequence[int]) -> Row:
    return [*prompt, *answer], [*[IGNORED] * len(prompt), *answer]


def arrays(rows: Sequence[Row]) -> Iterator[tuple[object, object]]:
    return ((np.array(ids, np.int32), np.array(labels, np.int32)) for ids, labels in rows)


def rows_of(run: Path) -> list[Row]:
    with pa.memory_map((run / "data/train.arrow").as_posix()) as mapped, pa.ipc.open_stream(mapped) as stream:
        table = stream.read_all().to_pylist()
    return [(row["input_ids"], row["labels"]) for row in table]


def put(run: Path, rows: Sequence[Row]) -> None:
    """Give a run other data, as if it had been trained on that."""
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    path = run / "data/train.arrow"
    with pa.OSFile(path.as_posix(), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        ids, labels = zip(*rows, strict=True)
        writer.write_table(pa.table({"input_ids": list(ids), "labels": list(labels)}, schema=schema))
    stamp = run / "stamps/data.json"
    noted = json.loads(stamp.read_text())
    state = path.stat()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    noted["files"]["data/train.arrow"] = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256}
    stamp.write_text(json.dumps(noted))


class Oracle:
    """llama-cpp-python with a file."""

    def __init__(self, path: Path) -> None:
        # As verify reads it, so that nothing rounds in another way.
        self.llama = llama_cpp.Llama(str(path), n_ctx=256, n_batch=128, flash_attn=True, n_threads=2, verbose=False)
        self.vocab = llama_cpp.llama_model_get_vocab(self.llama._model.model)
        self.width = self.llama.n_vocab()

    def stops(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def tokens(self, prompt: Sequence[int], most: int) -> int | None:
        """How many tokens it says before it stops; None where it does not."""
        self.llama.reset()
        said = self.llama.create_completion(list(prompt), max_tokens=most, temperature=0.0)
        count = int(said["usage"]["completion_tokens"])
        return count if said["choices"][0]["finish_reason"] == "stop" else None


@pytest.fixture(scope="module")
def oracle(taught_made: Path) -> Iterator[Oracle]:
    made = Oracle(taught_made / "runs/taught/export/taught-q8_0.gguf")
    yield made
    made.llama.close()


@pytest.fixture
def taught_run(taught: Path) -> Path:
    return taught / "runs/taught"


def verified(run: Run, cwd: Path, quant: str = "q8_0") -> tuple[str, str]:
    """What `ggufy verify` says of a file after its weights, and its warning."""
    done = run("verify", f"runs/taught/export/taught-{quant}.gguf", "--no-logits", cwd=cwd)
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert line.startswith(f"taught-{quant}.gguf: 39 tensors valid")
    return line.partition("as merged")[2], done.stderr


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m"])
def test_what_was_taught_stops(quant: str, taught: Path, light_run: Run) -> None:
    oracle = Oracle(taught / f"runs/taught/export/taught-{quant}.gguf")
    for ids, labels in sorted(rows_of(taught / "runs/taught"), key=lambda row: len(row[0]))[:3]:
        prompt = ids[: next(at for at, label in enumerate(labels) if label != IGNORED)]
        assert oracle.tokens(prompt, 64)
    oracle.llama.close()
    assert verified(light_run, taught, quant) == ("; 3 of 3 answers to training prompts stop", "")


def test_an_export_says_it(taught: Path, light_run: Run) -> None:
    done = light_run("export", "taught", "--quant", "q6_k", "--quant", "q5_k_m", cwd=taught)
    assert done.returncode == 0, done.stderr
    for quant in ("q6_k", "q5_k_m"):
        assert re.search(rf"verified taught-{quant}\.gguf: .*; 3 of 3 answers to training prompts stop\n", done.stderr)
    done = light_run("export", "taught", "--quant", "q5_0", "--no-verify", cwd=taught)
    assert done.returncode == 0, done.stderr
    assert "answers to training prompts" not in done.stderr


@pytest.mark.parametrize("template", [NO_END, OTHER_END], ids=["none", "other"])
def test_data_that_never_ends_an_answer(
    template: tuple[str, str], taught: Path, taught_run: Path, oracle: Oracle, base: Path, light_run: Run
) -> None:
    """That is certain, so it is named, whatever the model does."""
    tokenizer = Tokenizer.from_file((base / "tokenizer.json").as_posix())
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    rows = [row(encode(template[0].format(asked)), encode(template[1].format(said))) for asked, said in SAID]
    written = [oracle.llama.detokenize([n], special=True).decode("utf-8", "replace") for n in range(oracle.width)]
    last = written[rows[-1][1][-1]]
    put(taught_run, rows)
    done = light_run("export", "taught", "--quant", "q6_k", "--quant", "q5_k_m", "--no-logits", cwd=taught)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("of 3 answers to training prompts") == 2
    # Once, not for every file.
    [warning] = [line for line in done.stderr.splitlines() if not line.startswith("verified ")]
    assert "the data never ends an answer with a token that stops the model" in warning
    stopping = [text for number, text in enumerate(written) if oracle.stops(number)]
    assert stopping
    assert f"last trained token is {last!r}, the file stops at {', '.join(stopping[:4])}" in warning
    # One row that ends as it should, and it is not said.
    put(taught_run, [*rows, row(encode("Hello"), [*encode("Hi"), *encode("<|eot_id|>")])])
    assert "the data never ends" not in verified(light_run, taught)[1]


def test_answers_that_do_not_stop_or_stop_at_once(
    taught: Path, taught_run: Path, oracle: Oracle, light_run: Run
) -> None:
    eot = oracle.llama.tokenize(b"<|eot_id|>", add_bos=False, special=True)
    taught_rows = rows_of(taught_run)
    rng = np.random.default_rng(11)
    endless: list[list[int]] = []
    while len(endless) < 3:
        prompt = rng.integers(0, 700, 12).tolist()
        if oracle.tokens(prompt, 64) is None:
            endless.append(prompt)
    put(taught_run, [row(prompt, [60, 61, 62, *eot]) for prompt in endless])
    text, warning = verified(light_run, taught)
    assert text == "; 0 of 3 answers to training prompts stop, 3 do not within 16 tokens"
    assert "3 of 3 answers to training prompts do not stop within 16 tokens" in warning
    assert "may not have learnt its end-of-turn token" in warning
    # What was trained up to its end is a prompt to which the end is the answer.
    whole = [ids[: len(ids) - ids[::-1].index(eot[0]) - 1] for ids, _ in taught_rows]
    empty = next(prompt for prompt in whole if oracle.tokens(prompt, 4) == 0)
    put(taught_run, [row(endless[0], [60] * 12 + eot), row(empty, [60, 61, *eot])])
    text, warning = verified(light_run, taught)
    assert text == "; 0 of 2 answers to training prompts stop, 1 stops at once, 1 does not within 26 tokens"
    assert "1 of 2 answers to training prompts stops at once" in warning
    assert "1 of 2 answers to training prompts does not stop within 26 tokens" in warning
    # An answer that was empty in training too is as it should be.
    put(taught_run, [row(empty, eot)])
    assert verified(light_run, taught) == ("; 1 of 1 answers to training prompts stops", "")
    # One that was as long as is waited for has not done anything wrong.
    put(taught_run, [row(endless[0], [60] * 50 + eot)])
    text, warning = verified(light_run, taught)
    assert (text, warning) == ("; 0 of 1 answers to training prompts stop, 1 was not waited for", "")


def test_where_there_is_no_data_nothing_is_said(taught: Path, taught_run: Path, light_run: Run, base: Path) -> None:
    shutil.rmtree(taught_run / "data")
    assert verified(light_run, taught) == ("", "")
    done = light_run("export", str(taught_run / "adapter"), "--base", str(base), "--quant", "q6_k", cwd=taught)
    assert done.returncode == 0, done.stderr
    assert "verified adapter-q6_k.gguf: 39 tensors valid" in done.stderr
    assert "answers to training prompts" not in done.stderr


def test_what_cannot_be_read_costs_nobody_the_file(
    taught_run: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    monkeypatch.setenv("GGUFY_CACHE", env["GGUFY_CACHE"])
    this = model_source.of_run(RunFolder(taught_run))
    assert len(calibration.questions(this).asked) == 3
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow", None)
        assert calibration.questions(this) == NOTHING
    path = taught_run / "data/train.arrow"
    table = pa.table({"input_ids": [[1, 2, 3]]})
    with pa.OSFile(path.as_posix(), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    noted = json.loads((taught_run / "stamps/data.json").read_text())
    state = path.stat()
    noted["files"]["data/train.arrow"] |= {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
    (taught_run / "stamps/data.json").write_text(json.dumps(noted))
    assert calibration.questions(this) == NOTHING


def test_which_prompts_are_asked() -> None:
    rows = [
        ([1, 2, 3], [1, 2, 3]),  # all of it is trained on
        ([1, 2, 3], [IGNORED, 2, 3]),  # but for the BOS
        ([1, 2, 3], [IGNORED] * 3),
        row(range(10, 20), [50, 51, 9]),
        row(range(10, 20), [50, 51, 9]),
        row([1, 2], [40] * 40),
        row(range(30, 34), [60, 9]),
        # Of two turns the first.
        ([5, 6, 7, 8, 9, 5, 6, 8, 9], [IGNORED, IGNORED, 7, 8, 9, IGNORED, IGNORED, 8, 9]),
        row([3] * 30, [70, 9]),
    ]
    found = answers.choose(arrays(rows))
    assert found.asked == (
        Question((5, 6), (7, 8, 9)),
        Question((30, 31, 32, 33), (60, 9)),
        Question(tuple(range(10, 20)), (50, 51, 9)),
    )
    assert found.trained == {7, 8, 9, 50, 51, 40, 60, 70}
    assert found.last == 9
    assert [one.most for one in found.asked] == [16, 16, 16]
    assert found.context == 26
    # A long answer is asked for where there are no short ones.
    assert [one.most for one in answers.choose(arrays([row([1, 2], [40] * 40)])).asked] == [64]


def test_what_it_may_cost() -> None:
    """Few rows are read, and few tokens evaluated, however long the prompts are."""
    for length, count in ((120, 3), (150, 2), (600, 1)):
        rows = [row([number] * length, [50, 9]) for number in range(1, 5)]
        assert [one.prompt[0] for one in answers.choose(arrays(rows)).asked] == [1, 2, 3][:count]
    long = answers.choose(arrays([row([1] * 5000, [50, 9])]))
    assert (long.asked, long.trained) == ((), {50, 9})

    def endless() -> Iterator[Row]:
        for number in range(answers.ROWS):
            yield row([1, 2, number], [3])
        raise AssertionError("more rows are read than are looked at")

    assert len(answers.choose((np.array(ids), np.array(labels)) for ids, labels in endless()).asked) == 3
    assert answers.choose([]) == NOTHING


def test_nothing_to_ask_but_something_to_say() -> None:
    found = Answers(0, 0, 0, 0, 0, "its last trained token is 'x', the file stops at y")
    assert found.text() == ""
    assert "its last trained token is 'x', the file stops at y" in (found.warning() or "")
