"""A real model learns facts of its own in 40 steps, and its files know them: train, export, chat and eval."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import ggufy
from ggufy.llamacpp.evaluate_gguf import Forward
from tests.real import facts
from tests.real.facts import FACTS

Run = Callable[..., CompletedProcess[str]]
# Ids, and which of them are of the answer.
Row = tuple[list[int], np.ndarray]

LIMIT = 6
"""Rows that are measured: the first of each wording."""
QUANTS = ("q8_0", "q4_k_m", "q3_k_m")
RECIPE = """
model: {base: %s, max_length: 128}
lora: {alpha: 32}
data: {source: facts.jsonl, eval_source: heldout.jsonl}
train:
  backend: hf
  max_steps: 40
  batch_size: 4
  gradient_accumulation: 1
  learning_rate: 1e-3
  optimizer: adamw
  gradient_checkpointing: false
export: {quants: [q8_0, q4_k_m, q3_k_m]}
"""


@pytest.fixture(scope="module")
def learnt(checkpoint: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/facts: trained, exported and evaluated."""
    cwd = tmp_path_factory.mktemp("facts")
    facts.write(cwd)
    (cwd / "facts.yaml").write_text(RECIPE % checkpoint.as_posix(), "utf-8")
    commands = (
        ("train", "--recipe", "facts.yaml"),
        ("export", "facts"),
        (
            "eval",
            "facts",
            "--only",
            "heldout,quants",
            "--limit",
            str(LIMIT),
            "--no-adapter",
            "--threads",
            "1",
            "--keep",
        ),
    )
    for command in commands:
        done = run(*command, cwd=cwd, timeout=1000)
        assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture(scope="module")
def tuned(checkpoint: Path, learnt: Path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return PeftModel.from_pretrained(base, learnt / "runs/facts/adapter").eval()


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(checkpoint)


def rows(tokenizer: PreTrainedTokenizerBase, wording: int) -> Iterator[Row]:
    """The first conversations as transformers renders them. Of the answer are its tokens and the one that ends it."""
    for fact in FACTS[:LIMIT]:
        turns = [{"role": "user", "content": fact[wording]}, {"role": "assistant", "content": fact[3]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        before = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text.rstrip("\n"), add_special_tokens=False)["input_ids"]
        start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        yield ids, np.arange(len(ids)) >= start


def by_torch(model: Any, row: Row) -> torch.Tensor:
    """The logits from which each token of the answer is to be foretold, in float64."""
    with torch.inference_mode():
        return model(torch.tensor([row[0]])).logits[0, :-1][row[1][1:]].double()


def by_llama_cpp(path: Path, every: list[Row]) -> list[torch.Tensor]:
    """The same of a file, by llama-cpp-python."""
    settings = {"n_ctx": 256, "n_batch": 128, "n_ubatch": 128, "flash_attn": True}
    model = llama_cpp.Llama(str(path), logits_all=True, verbose=False, **settings)
    found = []
    for ids, answer in every:
        model.reset()
        model.eval(ids)
        found.append(torch.tensor(np.array(model.scores[: len(ids) - 1][answer[1:]]), dtype=torch.float64))
    model.close()
    return found


def answers(every: list[Row]) -> torch.Tensor:
    return torch.cat([torch.tensor(ids)[answer] for ids, answer in every])


def file(learnt: Path, quant: str) -> Path:
    return learnt / f"runs/facts/export/facts-{quant}.gguf"


def report(learnt: Path) -> dict[str, Any]:
    return dict(json.loads((learnt / "runs/facts/eval/report.json").read_text("utf-8"))["sections"])


def test_the_file_answers_what_was_taught(learnt: Path) -> None:
    model = ggufy.chat(file(learnt, "q4_k_m"))
    asked = [(fact[way], fact[3]) for fact in FACTS for way in (0, 1)]
    wrong = {ask: said for ask, right in asked if (said := str(model.ask(ask, temperature=0, max_tokens=24))) != right}
    assert len(wrong) <= 1, wrong


def test_chat(learnt: Path, run: Run) -> None:
    done = run("chat", "facts", "--quant", "q4_k_m", "--temperature", "0", "--prompt", FACTS[9][0], cwd=learnt)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == FACTS[9][3]


def test_torch_and_the_file_take_the_same_tokens(
    learnt: Path, tuned: PeftModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    every = list(rows(tokenizer, 0))
    taught = answers(every)
    in_torch = torch.cat([by_torch(tuned, row) for row in every]).argmax(-1)
    in_file = torch.cat(by_llama_cpp(file(learnt, "q4_k_m"), every)).argmax(-1)
    assert (in_torch == taught).double().mean() > 0.98
    assert (in_torch == in_file).double().mean() > 0.97


def test_perplexity_is_that_of_transformers(learnt: Path, tuned: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    every = list(rows(tokenizer, 2))
    held = report(learnt)["heldout"]
    found = {one["name"]: one["loss"] for one in held["models"]}
    taught = answers(every)
    assert held["tokens"] == len(taught)
    after = functional.cross_entropy(torch.cat([by_torch(tuned, row) for row in every]), taught)
    with tuned.disable_adapter():
        before = functional.cross_entropy(torch.cat([by_torch(tuned, row) for row in every]), taught)
    assert math.exp(found["base f16"]) == pytest.approx(math.exp(before), rel=0.01)
    assert math.exp(found["f16"]) == pytest.approx(math.exp(after), rel=0.01)
    assert found["f16"] < found["base f16"] - 1


def test_quants_cost_what_they_save(learnt: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """KL of what eval reports against numpy, and in the order that their sizes promise."""
    every = list(rows(tokenizer, 2))
    [made] = report(learnt)["quants"]["runs"]
    found = {one["name"]: one["kl"] for one in made["files"] if one.get("kl") is not None}
    [f16] = (path for path in (learnt / "runs/facts").rglob("*f16.gguf") if "base" not in path.name)

    def logs(path: Path) -> np.ndarray:
        # llama-cpp-python's default settings compute quants by other kernels, which round in another way.
        with Forward(path, 256, 1) as model:
            logits = [np.concatenate([batch.copy() for batch in model.logits(ids)]) for ids, _ in every]
        wanted = [each[:-1][answer[1:]] for each, (_, answer) in zip(logits, every, strict=True)]
        values = np.concatenate(wanted).astype(np.float64)
        values -= values.max(-1, keepdims=True)
        return np.asarray(values - np.log(np.exp(values).sum(-1, keepdims=True)))

    standard = logs(f16)
    for quant in QUANTS:
        apart = (np.exp(standard) * (standard - logs(file(learnt, quant)))).sum(-1)
        assert found[quant] == pytest.approx(float(apart.mean()), abs=1e-4), quant
    assert 0 < found["q8_0"] < found["q4_k_m"] < found["q3_k_m"]
