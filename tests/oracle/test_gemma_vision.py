"""Gemma 3 from 4B on, which also reads images: of it the language model alone is trained and exported.

On a tiny random checkpoint against llama.cpp's converter, which writes the language model too, transformers and peft.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
)

from ggufy.data import source
from ggufy.errors import ModelError
from ggufy.export import families
from ggufy.export.adapter.adapter import Adapter
from ggufy.llamacpp import library
from ggufy.model import tiny
from ggufy.verify import reference
from ggufy.verify.checks import verify
from ggufy.verify.expected import Expected
from tests.oracle.converter import contents, convert, convert_lora, export
from tests.oracle.test_export_bytes import assert_same_file

Run = Callable[..., CompletedProcess[str]]
TEXT: dict[str, Any] = {
    "head_dim": 32,
    "hidden_size": 256,
    "intermediate_size": 320,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 32,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "sliding_window": 8,
}
IMAGES = {
    "hidden_size": 32,
    "image_size": 28,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "vision_use_head": False,
}
IDS = [736, *np.random.default_rng(3).integers(0, 700, 40).tolist()]
OUTER, OLD = "base_model.model.model.language_model.", "base_model.model.language_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The names of its tensors are those of Google's files."""
    folder, tokenizer = tmp_path_factory.mktemp("vision") / "base", tiny.ensure(source.sample_texts())
    given = json.loads((tokenizer / "config.json").read_text())
    ids = {key: given[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    images = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7, "mm_tokens_per_image": 4}
    torch.manual_seed(5)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=TEXT | ids, vision_config=IMAGES, **images))
    shaken(model, 0.05)
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, folder / file)
    names = load_file(folder / "model.safetensors")
    assert "language_model.model.embed_tokens.weight" in names
    assert any(name.startswith("vision_tower.") for name in names)
    return folder


def shaken(model: torch.nn.Module, by: float, only: str = "") -> None:
    for name, parameter in model.named_parameters():
        if only in name:
            parameter.data += torch.randn_like(parameter) * by


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """As peft makes one of everything that is linear: the part that reads images too."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=["lm_head"])
    )
    shaken(tuned, 0.02, "lora_B")
    tuned.save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


def of_text(adapter: Path, folder: Path, prefix: str) -> Path:
    """What an adapter has of the language model, under names with another prefix."""
    shutil.copytree(adapter, folder)
    held = load_file(adapter / "adapter_model.safetensors")
    kept = {prefix + name.removeprefix(OUTER): tensor for name, tensor in held.items() if name.startswith(OUTER)}
    assert 0 < len(kept) < len(held)
    save_file(kept, folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["exclude_modules"] = r".*(vision_tower|multi_modal_projector|lm_head).*"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@torch.inference_mode()
def logits(model: PreTrainedModel | PeftModel) -> np.ndarray:
    return np.asarray(model.eval()(torch.tensor([IDS])).logits[0].float().numpy())


def test_the_file_is_the_converters(base: Path, tmp_path: Path) -> None:
    export(base, None, {"f16": tmp_path / "f16.gguf", "q8_0": tmp_path / "q8_0.gguf"})
    convert(base, tmp_path / "theirs.gguf")
    assert_same_file(tmp_path / "f16.gguf", tmp_path / "theirs.gguf")
    library.quantize_file(tmp_path / "theirs.gguf", tmp_path / "theirs-q8_0.gguf", library.ftypes()["q8_0"])
    assert_same_file(tmp_path / "q8_0.gguf", tmp_path / "theirs-q8_0.gguf")


def test_other_names_make_the_same_file(base: Path, tmp_path: Path) -> None:
    """Those of transformers' memory, which some published copies have."""
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    inside = re.compile(r"^(language_model\.model|vision_tower|multi_modal_projector)\.")
    names = {"language_model.model": "model.language_model"}
    held = {
        inside.sub(lambda found: f"{names.get(found[1], f'model.{found[1]}')}.", name): tensor
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    assert "model.language_model.norm.weight" in held
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    for each, out in ((base, "one"), (folder, "other")):
        export(each, None, {"f16": tmp_path / f"{out}.gguf"})
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_names_that_transformers_does_not_load(base: Path, tmp_path: Path) -> None:
    """A language model that was saved by itself, beside the config.json of the whole."""
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    prefix, held = "language_model.", load_file(base / "model.safetensors")
    alone = {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}
    save_file(alone, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"names of another class: model\.embed_tokens\.weight, where"):
        families.opened(folder)
    config = json.loads((base / "config.json").read_text())
    inner = config["text_config"] | {"architectures": ["Gemma3ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(inner))
    for each, out in ((base, "one"), (folder, "other")):
        export(each, None, {"f16": tmp_path / f"{out}.gguf"})
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_an_adapter_on_all_of_it(base: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outputs = {"f16": tmp_path / "f16.gguf", "f32": tmp_path / "f32.gguf", "merged": tmp_path / "merged"}
    with caplog.at_level("INFO", "ggufy"):
        export(base, adapter, outputs)
    assert "what it changes of the part that reads images is left out" in caplog.text
    convert(tmp_path / "merged", tmp_path / "theirs.gguf")
    ours, theirs = contents(tmp_path / "f16.gguf"), contents(tmp_path / "theirs.gguf")
    assert ours.keys == theirs.keys
    # The merged folder is float16, where the base is bfloat16.
    differ = [name for name in theirs.tensors if ours.tensors[name] != theirs.tensors[name]]
    assert all("norm" in name for name in differ)
    expected = logits(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert type(merged) is Gemma3ForCausalLM
    assert np.abs(logits(merged) - expected).max() < 0.01 * np.abs(expected).max()
    runtime = llama_cpp.Llama(str(tmp_path / "f32.gguf"), n_ctx=128, logits_all=True, verbose=False)
    runtime.eval(IDS)
    found = np.array(runtime.scores[: len(IDS)])
    runtime.close()
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def test_the_adapter_alone_is_the_converters(base: Path, adapter: Path, tmp_path: Path) -> None:
    only = of_text(adapter, tmp_path / "only", OUTER)
    export(base, only, {"adapter": tmp_path / "ours.gguf"})
    convert_lora(base, only, tmp_path / "theirs.gguf")
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize("prefix", [OUTER, OLD, "base_model.model.model."])
def test_an_adapter_by_any_of_its_names(prefix: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    """Of today's transformers, of those before 4.52, and of the language model alone."""
    only = of_text(adapter, tmp_path / "only", prefix)
    export(base, only, {"f16": tmp_path / "ours.gguf"})
    export(base, adapter, {"f16": tmp_path / "expected.gguf"})
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()
    training = reference.of(base, only, lambda: [IDS])
    found = verify(tmp_path / "ours.gguf", base, 2, training, Expected.of(base, only))
    assert found.rows > 20
    if prefix == OUTER:
        assert found.closeness is not None
        assert found.closeness.relative < 0.01
    else:
        # peft would load nothing of it, and the file would seem to be wrong.
        assert found.closeness is None


def test_what_is_missing_in_an_adapter_is_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    only = of_text(adapter, tmp_path / "only", OUTER)
    held = load_file(only / "adapter_model.safetensors")
    lost = f"{OUTER}layers.3.mlp.up_proj.lora_"
    save_file({name: each for name, each in held.items() if lost not in name}, only / "adapter_model.safetensors")
    family, weights = families.opened(base)
    sources = [tensor.source for tensor in family.plan(weights) if tensor.source]
    with pytest.raises(Exception, match=r"names model\.layers\.3\.mlp\.up_proj, but there are no lora_A"):
        Adapter.of(base, only).check(weights, sources)


def test_from_plan_to_chat(run: Run, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    steps = ("--set", "train.max_steps=2", "--set", "train.save_steps=2", "--set", "train.packing=true")
    recipe = ("--recipe", "tiny", "--set", "model.base=./base", *steps)
    done = run("plan", *recipe, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    done = run("train", *recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    adapter = tmp_path / "runs" / "tiny" / "adapter"
    held = load_file(adapter / "adapter_model.safetensors")
    assert all(name.startswith(OUTER) for name in held)
    assert sum(tensor.numel() for tensor in held.values()) == made["trainable"]
    # Onto the whole model peft puts it where it belongs, and nowhere else.
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    assert len([name for name, _ in whole.named_parameters() if "lora_" in name]) == len(held)
    done = run("export", "--quant", "q8_0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"verified tiny-q8_0\.gguf: .*against the training model", done.stderr)
    for command in (("verify",), ("chat", "--prompt", "Hello", "--max-tokens", "4")):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
