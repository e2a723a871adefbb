"""`ggufy eval` of an adapter that brought tokens of its own, beside a base that has none of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import ggufy
from ggufy.data import source
from ggufy.evaluate.session import heldout
from ggufy.model import tiny
from ggufy.stages import model_source

pytestmark = pytest.mark.filterwarnings("ignore")

ADDED = ("<|mine|>", "<|yours|>")
OWN = (
    "{{ bos_token }}{% for m in messages %}<|mine|>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|mine|>assistant\n{% endif %}"
)
ROWS = [
    [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "It is Paris."}],
    [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Very well, and you?"}],
]
# How the embedding is trained.
KINDS: dict[str, dict[str, Any]] = {
    "whole": {"modules_to_save": ["embed_tokens"]},
    "single tokens": {"trainable_token_indices": [768, 769]},
}


def trained(base: Path, out: Path, template: str | None, **settings: Any) -> Any:
    """An adapter with two tokens more than its base, and a tokenizer that has them; the model in training."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(770)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(out, save_embedding_layers=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(ADDED), special_tokens=True)
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    return model.eval()


def measured(base: Path, folder: Path, *only: str) -> dict[str, Any]:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in ROWS), "utf-8")
    ggufy.export(folder / "adapter", base=str(base), out=folder / "out", quants=["q8_0"], check_logits=False)
    found = ggufy.evaluate(
        str(folder / "out"), data=folder / "rows.jsonl", only=("heldout", "quants", *only), max_tokens=4
    )
    return dict(json.loads(found.report.json())["sections"])


def loss(model: Any, folder: Path, base: Path, tokenizer: Any) -> float:
    """By transformers, over the tokens that count; their ids are those of transformers' own tokenizer."""
    this = model_source.of_folder(folder / "adapter", str(base), folder / "out")
    held = heldout.of_file(folder / "rows.jsonl", heldout.tokenizer_of(this), 10)
    nll, count = 0.0, 0
    for text, row in zip(held.texts, ROWS, strict=True):
        written = tokenizer.apply_chat_template(row, tokenize=False, date_string="26 Jul 2024")
        assert list(text.ids) == tokenizer(written, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            scores = model(torch.tensor([list(text.ids)])).logits[0, :-1].log_softmax(-1)
        for at, label in enumerate(text.labels[1:]):
            if label != -100:
                nll, count = nll - float(scores[at, label]), count + 1
    assert count
    return nll / count


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_with_the_new_tokens(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The tuned model is measured as ever; of the base it is said why it is not."""
    base = tiny.ensure(source.sample_texts())
    model = trained(base, tmp_path / "adapter", OWN, **KINDS[kind])
    with caplog.at_level(logging.INFO, "ggufy"):
        sections = measured(base, tmp_path, "references", "prompts")
    by_name = {one["name"]: one for one in sections["heldout"]["models"]}
    why = "the conversations have <|mine|> (768), which came with the adapter; the base has 768 tokens"
    assert by_name["base f16"]["not_measured"] == why
    assert f"base q8_0 is left out: {why}" in caplog.text
    said = by_name["adapter model"]["not_measured"]
    assert said == "the adapter's vocabulary has another size than the base's, which peft does not load by itself"
    expected = loss(model, tmp_path, base, AutoTokenizer.from_pretrained(tmp_path / "adapter"))
    assert by_name["f16"]["loss"] == pytest.approx(expected, rel=0.01)
    assert by_name["q8_0"]["loss"] == pytest.approx(expected, rel=0.02)
    [quants] = sections["quants"]["runs"]
    assert 0 < next(one["kl"] for one in quants["files"] if one["name"] == "q8_0") < 0.1
    # Asked is the base all the same, each in its own words.
    assert [one["name"] for one in sections["prompts"]["models"]] == ["base q8_0", "tuned q8_0"]


def test_conversations_without_them(tmp_path: Path) -> None:
    base = tiny.ensure(source.sample_texts())
    model = trained(base, tmp_path / "adapter", None, **KINDS["single tokens"])
    by_name = {one["name"]: one for one in measured(base, tmp_path)["heldout"]["models"]}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert by_name["f16"]["loss"] == pytest.approx(loss(model, tmp_path, base, tokenizer), rel=0.01)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    assert by_name["base f16"]["loss"] == pytest.approx(loss(plain, tmp_path, base, tokenizer), rel=0.01)
    assert "below_base" in by_name["q8_0"]
