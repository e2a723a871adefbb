"""What `ggufy eval` measures, against other implementations: torch, transformers, and llama-cpp-python's own loop."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import llama_cpp
import numpy as np
import pytest
import torch
from torch.nn import functional

from ggufy.data import source
from ggufy.data.rows.conversation import Sample
from ggufy.data.tokenize import Tokenizer
from ggufy.errors import EvalError
from ggufy.evaluate.metrics import measure, rows
from ggufy.evaluate.metrics.measure import Candidate, Divergence, Loss
from ggufy.evaluate.metrics.texts import HeldOut, Text
from ggufy.evaluate.session import gguf_tokenizer, heldout
from ggufy.llamacpp import divergence
from ggufy.llamacpp.evaluate_gguf import Forward
from ggufy.verify import reference
from tests.oracle.converter import export

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]
DAY = gguf_tokenizer._DAY


@pytest.fixture(scope="module")
def files(quick_made: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tuned model in f16, merged for transformers, and quantized."""
    folder = tmp_path_factory.mktemp("measured")
    adapter = quick_made / "runs" / "quick" / "adapter"
    made = {name: folder / f"{name}.gguf" for name in ("f16", "q8_0", "q4_k_m")} | {"merged": folder / "merged"}
    export(base, adapter, made)
    return made


@pytest.fixture(scope="module")
def texts(base: Path) -> HeldOut:
    return heldout.of_file(source.samples_file(source.REPHRASED), Tokenizer(base, DAY, "responses"), 8)


def by_llama_cpp_python(path: Path, texts: HeldOut) -> list[torch.Tensor]:
    """The logits after every token of each text."""
    settings = {"n_ctx": 256, "n_batch": 128, "n_ubatch": 128, "flash_attn": True}
    model = llama_cpp.Llama(str(path), logits_all=True, verbose=False, **settings)
    found = []
    for text in texts.texts:
        model.reset()
        model.eval(list(text.ids))
        found.append(torch.tensor(np.array(model.scores[: len(text.ids)]), dtype=torch.float64))
    model.close()
    return found


def by_forward(path: Path, texts: HeldOut) -> list[torch.Tensor]:
    with Forward(path, 256, 2) as model:
        batches = [[batch.copy() for batch in model.logits(text.ids)] for text in texts.texts]
    return [torch.tensor(np.concatenate(each), dtype=torch.float64) for each in batches]


# With its default settings llama-cpp-python computes q4_k_m with other kernels, which round in another way.
@pytest.mark.parametrize(("quant", "logits_of"), [("q8_0", by_llama_cpp_python), ("q4_k_m", by_forward)])
def test_divergence_is_that_of_brute_force(
    files: dict[str, Path], texts: HeldOut, quant: str, logits_of: Callable[[Path, HeldOut], list[torch.Tensor]]
) -> None:
    """KL of each token, its mean and 99th percentile, the share of the same top token, and both perplexities."""
    with Forward(files["f16"], 256, 2) as standard, Forward(files[quant], 256, 2) as model:
        found = Divergence.of(measured := [measure.divergence(standard, model, text) for text in texts.texts])
    every: list[torch.Tensor] = []
    same: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    logits = zip(texts.texts, logits_of(files["f16"], texts), logits_of(files[quant], texts), strict=True)
    for text, theirs, ours in logits:
        labels = torch.tensor(text.labels)[1:]
        counted = labels != -100
        p, q = (functional.log_softmax(values[:-1][counted], -1) for values in (theirs, ours))
        every.append(functional.kl_div(q, p, reduction="none", log_target=True).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
        losses.append(functional.nll_loss(q, labels[counted], reduction="none"))
    apart = torch.cat(every)
    assert found.tokens == len(apart) > 100
    np.testing.assert_allclose([kl for row in measured for kl in row["kl"]], apart, atol=1e-4)
    assert found.mean == pytest.approx(float(apart.mean()), abs=1e-4)
    assert found.mean == pytest.approx(float(apart.mean()), rel=1e-2)
    assert found.mean > 1e-4
    assert found.high == pytest.approx(float(torch.quantile(apart, 0.99)), rel=1e-2)
    assert found.same == pytest.approx(float(torch.cat(same).double().mean()))
    own = Loss.of(measured)
    assert own.mean == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    assert own.perplexity == pytest.approx(math.exp(float(torch.cat(losses).mean())), rel=1e-3)
    assert found.ratio == pytest.approx(own.perplexity / Loss.of(measured, "reference_nll").perplexity)


def test_a_model_is_no_distance_from_itself(files: dict[str, Path], texts: HeldOut) -> None:
    with Forward(files["f16"], 256, 2) as one, Forward(files["f16"], 256, 2) as other:
        found = Divergence.of([measure.divergence(one, other, text) for text in texts.texts])
    assert (found.mean, found.high, found.same, found.ratio) == (0.0, 0.0, 1.0, 1.0)


def test_perplexity_is_that_of_the_f16_weights_in_torch(files: dict[str, Path], texts: HeldOut) -> None:
    from transformers import AutoModelForCausalLM

    with Forward(files["f16"], 256, 2) as model:
        found = Loss.of([measure.loss(model, text) for text in texts.texts])
    theirs = AutoModelForCausalLM.from_pretrained(files["merged"], dtype=torch.float32)
    total = count = 0.0
    with torch.inference_mode():
        for text in texts.texts:
            ids, labels = torch.tensor([text.ids]), torch.tensor([text.labels])
            counted = int((labels[:, 1:] != -100).sum())
            # transformers' own loss: shifted, masked, and the mean over the tokens that count.
            total += float(theirs(ids, labels=labels).loss) * counted
            count += counted
    assert found.tokens == count
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=0.01)


def test_the_loss_in_torch_is_that_of_transformers(quick_made: Path, base: Path, texts: HeldOut) -> None:
    adapter = quick_made / "runs" / "quick" / "adapter"
    with reference.opened(base, adapter) as model:
        for text in texts.texts[:3]:
            found = measure.loss_in_torch(model, text)
            with torch.inference_mode():
                theirs = model(torch.tensor([text.ids]), labels=torch.tensor([text.labels])).loss
            assert found["nll"] / found["tokens"] == pytest.approx(float(theirs), rel=1e-5)


def test_perplexity_of_a_plain_text(files: dict[str, Path], base: Path, tmp_path: Path) -> None:
    """Of pieces of 512 tokens, each begun with the BOS, as llama.cpp cuts a text; every token of a piece counts."""
    written = "The capital of France is Paris. A violin has four strings. <|eot_id|> is text here.\n" * 40
    (tmp_path / "text.txt").write_text(written, "utf-8")
    found = heldout.of_file(tmp_path / "text.txt", Tokenizer(base, DAY, "responses"), 2)
    assert found.total > 2
    assert [len(text.ids) for text in found.texts] == [512, 512]
    theirs = llama_cpp.Llama(str(files["f16"]), n_ctx=512, n_batch=512, logits_all=True, verbose=False)
    ids = theirs.tokenize(written.encode(), add_bos=False, special=False)
    total = 0.0
    for number, text in enumerate(found.texts):
        chunk = [theirs.token_bos(), *ids[511 * number : 511 * (number + 1)]]
        assert list(text.ids) == chunk
        theirs.reset()
        theirs.eval(chunk)
        scores = torch.tensor(np.array(theirs.scores[:511]), dtype=torch.float64)
        total += float(functional.cross_entropy(scores, torch.tensor(chunk[1:]), reduction="sum"))
    theirs.close()
    with Forward(files["f16"], 512, 2) as model:
        ours = Loss.of([measure.loss(model, text) for text in found.texts])
    assert ours.tokens == 2 * 511
    assert ours.mean == pytest.approx(total / ours.tokens, rel=1e-3)


@pytest.mark.parametrize("shift", [0.0, 3e4, -3e4])
def test_logits_of_any_size(shift: float) -> None:
    """Nothing overflows, nothing is lost, and what is added to every logit changes nothing."""
    rng = np.random.default_rng(1)
    one = rng.normal(0, 30, (5, 1000)).astype(np.float32)
    other = one + rng.normal(0, 1e-3, one.shape).astype(np.float32)
    moved = (one + np.float32(shift), other - np.float32(shift))
    p, q = (functional.log_softmax(torch.tensor(values, dtype=torch.float64), -1) for values in moved)
    expected = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(divergence.divergences(*moved), expected, rtol=1e-6, atol=1e-12)
    tokens = np.array([3, 1, 4, 1, 5])
    theirs = functional.nll_loss(p, torch.tensor(tokens), reduction="none")
    np.testing.assert_allclose(divergence.losses(moved[0], tokens), theirs, rtol=1e-9)


def test_many_rows_of_a_large_vocabulary_are_looked_at_in_parts() -> None:
    rng = np.random.default_rng(2)
    one, other = (rng.normal(size=(37, 70_000)).astype(np.float32) for _ in range(2))
    p, q = (functional.log_softmax(torch.tensor(values, dtype=torch.float64), -1) for values in (one, other))
    expected = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(divergence.divergences(one, other), expected, rtol=1e-9)


def test_only_what_the_assistant_says_counts() -> None:
    text = Text([1, 5, 6, 7, 8, 9], [-100, -100, -100, 7, 8, -100])
    # After 6 comes 7 and after 7 comes 8; nothing after the last that counts has to be read.
    assert (list(text.read), text.wanted, text.targets) == ([1, 5, 6, 7], [False, False, True, True], [7, 8])


def test_logits_only_where_they_are_wanted(files: dict[str, Path]) -> None:
    ids = [736, *range(20, 320)]
    wanted = [number % 7 == 3 for number in range(len(ids))]
    with Forward(files["f16"], 512, 2) as model:
        whole = np.concatenate([batch.copy() for batch in model.logits(ids)])
        some = np.concatenate([batch.copy() for batch in model.logits(ids, wanted)])
    np.testing.assert_allclose(some, whole[np.array(wanted)], atol=1e-3 * np.abs(whole).max())


def test_a_file_alone_reads_conversations_as_its_base_does(files: dict[str, Path], base: Path) -> None:
    """The same ids and labels from the GGUF's tokenizer and template as training makes from the base's."""
    said: list[Sample] = [
        [{"role": "user", "content": "naïve 🌻 café?"}, {"role": "assistant", "content": "  Straße こんにちは.\n"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "Two"},
            {"role": "assistant", "content": "2 and\n\n\nthree"},
        ],
    ]
    with Forward(files["f16"], 64, 1) as model:
        ours, theirs = gguf_tokenizer.GgufTokenizer(model, DAY, "responses"), Tokenizer(base, DAY, "responses")
        for sample in said:
            assert ours.encode(sample) == theirs.encode(sample)
        assert ours.special == theirs.special


def test_the_smallest_file_within_the_limit() -> None:
    candidates = [Candidate("q8_0", 80, 0.001), Candidate("q5_k_m", 50, 0.02), Candidate("q4_k_m", 40, 0.06)]
    found = [measure.smallest(candidates, limit) for limit in (0.1, 0.05, 0.02, 0.01, 0.0001)]
    assert [one.name if one else None for one in found] == ["q4_k_m", "q5_k_m", "q5_k_m", "q8_0", None]


def test_tokens_that_a_model_does_not_have(files: dict[str, Path]) -> None:
    odd = Text([1, 5, 999_999], [-100, 5, 999_999])
    with Forward(files["f16"], 256, 2) as model, pytest.raises(EvalError, match="use token 999,999") as caught:
        measure.loss(model, odd)
    assert "--data" in str(caught.value.hint)


def test_rows_are_done_once(tmp_path: Path) -> None:
    """Also where an attempt was cut in the middle of a line, and where there are other rows than before."""
    place, asked = tmp_path / "rows.jsonl", []

    def do(index: int) -> dict[str, int]:
        asked.append(index)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return {"value": 10 * index}

    with pytest.raises(KeyboardInterrupt):
        rows.write(place, list("abcde"), do)
    with place.open("a", encoding="utf-8") as file:
        file.write('{"key": "d", "val')
    found = rows.write(place, list("abcde"), do)
    assert asked == [0, 1, 2, 3, 3, 4]
    assert found == [{"key": key, "value": 10 * n} for n, key in enumerate("abcde")]
    assert list(rows.read(place)) == list("abcde")
    fewer = rows.write(tmp_path / "fewer.jsonl", ["e", "b", "new"], do, [rows.read(place)])
    assert [row["key"] for row in fewer] == ["e", "b", "new"]
    assert asked[6:] == [2]


def test_a_run_that_held_nothing_out(fails: Fails, light_run: Run, quick: Path) -> None:
    fails(
        *("eval", "quick"),
        cwd=quick,
        naming=["runs/quick has no held-out conversations"],
        hinting=["--data FILE", "--only prompts", "data.eval_size"],
    )
    (quick / "prompts.jsonl").write_text('{"prompt": "Hello?"}\n', "utf-8")
    done = light_run("eval", "quick", "--only", "prompts", "--prompts", "prompts.jsonl", "--max-tokens", "8", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert re.search(r"tuned q8_0 +1 ", done.stdout)
