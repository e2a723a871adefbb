"""The tokenizer and the template that an adapter was trained with, saved beside it, as transformers loads them."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import ggufy
from ggufy import pipeline
from ggufy.data import source
from ggufy.errors import ExportError, GgufyError, Unverified
from ggufy.model import tiny
from ggufy.stages import model_source
from tests.oracle.converter import contents, convert
from tests.oracle.test_export_bytes import logits

TOKENS = list(range(20, 60))
TEMPLATE = (
    "{% for m in messages %}### {{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def train(base: Path, out: Path, more: int = 0, **settings: Any) -> Any:
    """An adapter on the base, with `more` rows in its embedding; the model in training."""
    torch.manual_seed(3)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if more:
        model.resize_token_embeddings(model.config.vocab_size + more)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(out)
    return model.eval()


def tokenizer(base: Path, out: Path, *added: str, template: str | None = TEMPLATE) -> None:
    """transformers' own way of saving it."""
    made = AutoTokenizer.from_pretrained(base)
    made.add_tokens(list(added), special_tokens=True)
    made.chat_template = template
    made.save_pretrained(out)


def export(what: Path, base: Path, out: Path, *quants: str, **options: Any) -> dict[str, Path]:
    made = ggufy.export(what, base=str(base), out=out, quants=quants or ("f16",), **options)
    return {name: artifact.path for name, artifact in made.items()}


def template_of(path: Path) -> str:
    return str(gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents())


def merged_by_peft(base: Path, adapter: Path, out: Path, more: int = 0) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if more:
        model.resize_token_embeddings(model.config.vocab_size + more)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().half().save_pretrained(out)
    for path in adapter.iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copyfile(path, out / path.name)


def test_its_tokenizer_is_the_files(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    train(base, adapter)
    tokenizer(base, adapter)
    with caplog.at_level(logging.INFO, "ggufy"):
        made = export(adapter, base, out, merged="f16")
    assert "the adapter's own tokenizer is used, not the base's: another chat template" in caplog.text
    merged_by_peft(base, adapter, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "theirs.gguf")
    assert contents(made["f16"]).keys == contents(tmp_path / "theirs.gguf").keys
    assert template_of(made["f16"]) == TEMPLATE
    assert "### user" in made["f16 Modelfile"].read_text("utf-8")
    assert AutoTokenizer.from_pretrained(made["merged"]).chat_template == TEMPLATE
    assert all("unchanged" in line or "tokenized" in line for line in pipeline.verify(out, logits=False))
    # Another tokenizer is another file.
    before = made["f16"].read_bytes()
    tokenizer(base, adapter, template=TEMPLATE.replace("###", "##"))
    assert export(adapter, base, out, force=True)["f16"].read_bytes() != before


def test_a_template_alone(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter")
    (tmp_path / "adapter/chat_template.jinja").write_text(TEMPLATE, "utf-8")
    made = export(tmp_path / "adapter", base, tmp_path / "out")
    assert template_of(made["f16"]) == TEMPLATE


def test_a_template_in_a_config_alone(base: Path, tmp_path: Path) -> None:
    """As where tokenizer.json was left out for its size."""
    train(base, tmp_path / "adapter")
    config = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    for template in (TEMPLATE, [{"name": "default", "template": TEMPLATE}]):
        (tmp_path / "adapter/tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        made = export(tmp_path / "adapter", base, tmp_path / "out", force=True)
        assert template_of(made["f16"]) == TEMPLATE
    shutil.copyfile(base / "tokenizer_config.json", tmp_path / "adapter/tokenizer_config.json")
    assert model_source.of_folder(tmp_path / "adapter", str(base), tmp_path / "no").tokenizer == base


def test_a_copy_of_the_bases_changes_nothing(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter")
    without = model_source.of_folder(tmp_path / "adapter", str(base), tmp_path / "out")
    inputs, path = without.inputs, without.tokenizer
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, tmp_path / "adapter" / name)
    again = model_source.of_folder(tmp_path / "adapter", str(base), tmp_path / "out")
    assert (again.inputs, again.tokenizer) == (inputs, path)
    assert path == base
    assert again.own_tokenizer is None


def test_what_was_made_with_the_bases_is_made_again(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an earlier ggufy made it, which read no tokenizer beside an adapter, and noted none."""
    adapter, out = tmp_path / "adapter", tmp_path / "out"

    def again() -> tuple[bool, str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "ggufy"):
            made = ggufy.export(adapter, base=str(base), out=out, quants=["f16"], check_logits=False)
        return made["f16"].reused, caplog.text

    train(base, adapter)
    assert again()[0] is False
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, adapter / name)
    reused, said = again()
    assert reused
    assert "made again" not in said
    tokenizer(base, adapter)
    why = "out/adapter-f16.gguf was made with the base's tokenizer, and the adapter has its own"
    with pytest.raises(Unverified, match=why) as caught:
        list(pipeline.verify(out, logits=False))
    assert caught.value.hint == "export it again"
    reused, said = again()
    assert not reused
    assert f"{why}; it is made again" in said
    assert template_of(out / "adapter-f16.gguf") == TEMPLATE
    reused, said = again()
    assert reused
    assert "made again" not in said
    tokenizer(base, adapter, template=TEMPLATE.replace("###", "##"))
    assert "was made with another tokenizer, and the adapter has its own; it is made again" in again()[1]
    for path in adapter.glob("*token*"):
        path.unlink()
    (adapter / "chat_template.jinja").unlink(missing_ok=True)
    assert "with a tokenizer of the adapter's own, and it is to have the base's; it is made again" in again()[1]
    assert template_of(out / "adapter-f16.gguf") != TEMPLATE


ADDED = ("<|mine|>", "<|yours|>")
# What brings the rows: peft's own saving of a resized embedding, or a training of it.
BROUGHT: dict[str, dict[str, Any]] = {
    "saved": {},
    "trained": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "low-rank": {"target_modules": ["embed_tokens"]},
    "single": {"trainable_token_indices": [768, 769]},
}


@pytest.mark.parametrize("kind", BROUGHT)
def test_added_tokens(kind: str, base: Path, tmp_path: Path) -> None:
    adapter, settings = tmp_path / "adapter", dict(BROUGHT[kind])
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(770)
    targets = ["q_proj", "v_proj", *settings.pop("target_modules", [])]
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
        expected = model(torch.tensor([[*TOKENS, 768, 769]])).logits[0].numpy()
    model.save_pretrained(adapter, save_embedding_layers=True)
    tokenizer(base, adapter, *ADDED)
    made = export(adapter, base, tmp_path / "out", "f32", "q8_0", merged="f16")
    found = logits(made["f32"], [*TOKENS, 768, 769])
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    fields = gguf.GGUFReader(made["q8_0"]).fields
    assert tuple(fields["tokenizer.ggml.tokens"].contents()[768:]) == ADDED
    assert fields["llama.vocab_size"].contents() == 770
    assert AutoModelForCausalLM.from_pretrained(made["merged"]).config.vocab_size == 770


def test_more_tokens_than_rows(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter")
    tokenizer(base, tmp_path / "adapter", *ADDED)
    with pytest.raises(ExportError, match=r"token 769 \('<\|yours\|>'\) has no row in the base's embedding") as caught:
        export(tmp_path / "adapter", base, tmp_path / "out")
    assert "save_embedding_layers" in str(caught.value.hint)
    assert not list((tmp_path / "out").glob("*.gguf"))


def test_the_tokenizer_of_another_model(base: Path, tmp_path: Path) -> None:
    """With as many tokens, in another order."""
    train(base, tmp_path / "adapter")
    tokenizer(base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "tokenizer.json"
    spec = json.loads(path.read_text("utf-8"))
    plain = sorted(spec["model"]["vocab"].items(), key=lambda entry: entry[1])
    spec["model"]["vocab"] = {name: number for (name, _), (_, number) in zip(plain, reversed(plain), strict=True)}
    path.write_text(json.dumps(spec), "utf-8")
    with pytest.raises(ExportError, match="it is the tokenizer of another model") as caught:
        export(tmp_path / "adapter", base, tmp_path / "out")
    assert "--base" in str(caught.value.hint)
    assert not list((tmp_path / "out").glob("*.gguf"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", "{", "/tokenizer.json cannot be read"),
        ("tokenizer_config.json", "[", "/tokenizer_config.json cannot be read"),
        ("chat_template.jinja", "{% for %}", ": the chat template is not valid"),
        ("chat_template.jinja", "{{ bos_token }}{{ bos_token }}", ": its chat template writes 2 BOS tokens"),
    ],
)
def test_what_is_wrong_with_it_names_its_folder(name: str, content: str, says: str, base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter")
    tokenizer(base, tmp_path / "adapter")
    (tmp_path / "adapter" / name).write_text(content, "utf-8")
    with pytest.raises(GgufyError, match=f"^{tmp_path}/adapter{says}"):
        export(tmp_path / "adapter", base, tmp_path / "out")


def test_rows_without_a_tokenizer(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", 2, modules_to_save=["embed_tokens"])
    with pytest.raises(ExportError, match=r"brings one of \[770, 256\]") as caught:
        export(tmp_path / "adapter", base, tmp_path / "out")
    assert "tokenizer.json and tokenizer_config.json" in str(caught.value.hint)


# Where it lies


@pytest.mark.parametrize("named", [True, False])
def test_an_adapter_in_a_folder_of_its_own(named: bool, base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter/policy")
    what = tmp_path / "adapter/policy" if named else tmp_path / "adapter"
    assert export(what, base, tmp_path / "out")["f16"].is_file()
    assert any("tokenized" in line for line in pipeline.verify(tmp_path / "out", logits=False))


def test_several_adapters(base: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "adapter" / name).mkdir(parents=True)
        (tmp_path / "adapter" / name / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(ExportError, match="2 of its folders are") as caught:
        export(tmp_path / "adapter", base, tmp_path / "out")
    assert all(f"adapter/{name}" in str(caught.value.hint) for name in ("one", "two"))


def test_a_tokenizer_above_an_adapter_that_has_a_name(base: Path, tmp_path: Path) -> None:
    """As `model.save_pretrained(OUT); tokenizer.save_pretrained(OUT)` leave them."""
    train(base, tmp_path / "adapter/policy")
    tokenizer(base, tmp_path / "adapter")
    for what in ("adapter", "adapter/policy"):
        made = export(tmp_path / what, base, tmp_path / f"out-{Path(what).name}")
        assert template_of(made["f16"]) == TEMPLATE
    # Above is a model: its tokenizer is not the adapter's.
    shutil.copyfile(base / "config.json", tmp_path / "adapter/config.json")
    assert template_of(export(tmp_path / "adapter/policy", base, tmp_path / "no")["f16"]) != TEMPLATE
