"""What the weights of a base are: as transformers loads them; the file as llama.cpp's converter writes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from ggufy.data import source
from ggufy.errors import ExportError, GgufyError
from ggufy.export import engine
from ggufy.export.adapter.adapter import Adapter
from ggufy.model import tiny
from tests.oracle.converter import contents, convert, export
from tests.oracle.test_export_bytes import assert_same_file, logits

TOKENS = list(range(20, 60))
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tiny.ensure(source.sample_texts())
    return Path(shutil.copytree(folder, tmp_path / "base", ignore=shutil.ignore_patterns("stamp.json")))


def keys(base: Path, **changes: Any) -> None:
    """Keys of config.json; None removes one."""
    path = base / "config.json"
    config = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), "utf-8")


def weights(base: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = base / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def load(base: Path) -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def said(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.array(model(torch.tensor([TOKENS])).logits[0].numpy())


def assert_is(base: Path, expected: np.ndarray, adapter: Path | None = None) -> set[str]:
    """The exported file speaks as the model that transformers loads; its tensors."""
    out = base.parent / "ours-f32.gguf"
    export(base, adapter, {"f32": out}, {"name": "tiny"})
    assert np.abs(logits(out, TOKENS) - expected).max() < 0.01 * np.abs(expected).max()
    return set(contents(out).tensors)


def assert_converters(base: Path, folder: Path) -> None:
    """The file is the one that the converter makes of `folder`."""
    export(base, None, {"f16": base.parent / "ours.gguf"}, {"name": "tiny"})
    convert(folder, base.parent / "theirs.gguf")
    assert_same_file(base.parent / "ours.gguf", base.parent / "theirs.gguf")


def shards(base: Path, *names: str) -> None:
    """The model in as many shards as names, cut across its layers, and an index."""
    held = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    where = {name: names[number % len(names)] for number, name in enumerate(sorted(held, reverse=True))}
    for file in names:
        save_file({name: held[name] for name in held if where[name] == file}, base / file, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize(
    "names", [("model-1.safetensors", "model-2.safetensors"), ("model-1.safetensors", "a.safetensors")]
)
def test_the_tensors_of_shards_are_in_the_converters_order(names: tuple[str, ...], base: Path) -> None:
    shards(base, *names)
    assert_converters(base, base)


def test_a_whole_file_comes_before_shards(base: Path) -> None:
    whole = load_file(base / "model.safetensors")
    shards(base, "model-1.safetensors", "model-2.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in whole.items()}, base / "model.safetensors", {"format": "pt"})
    expected = said(load(base))
    (base / "model-2.safetensors").unlink()
    assert_is(base, expected)


@pytest.mark.parametrize("factor", [1.0, -0.5])
def test_a_tied_config_with_an_output_matrix(factor: float, base: Path) -> None:
    weights(base, lambda held: {**held, "lm_head.weight": held["model.embed_tokens.weight"] * factor})
    keys(base, tie_word_embeddings=True)
    assert ("output.weight" in assert_is(base, said(load(base)))) == (factor != 1)


def test_an_output_matrix_alone_is_the_embedding(base: Path) -> None:
    weights(base, lambda held: {n.replace("model.embed_tokens", "lm_head"): tensor for n, tensor in held.items()})
    keys(base, tie_word_embeddings=True)
    assert "output.weight" not in assert_is(base, said(load(base)))


@pytest.mark.parametrize("architectures", [["FSDPLlamaForCausalLM"], ["OptimizedModule"], None], ids=str)
def test_a_class_that_a_trainer_wrapped(architectures: list[str] | None, base: Path) -> None:
    keys(base, architectures=architectures, model_type="llama")
    assert_is(base, said(load(base)))


def test_a_class_of_another_model_type(base: Path) -> None:
    """transformers goes by the type."""
    plain = said(load(base))
    keys(base, model_type="granite", embedding_multiplier=3.0, logits_scaling=2.0)
    expected = said(load(base))
    assert np.abs(expected - plain).max() > 0.1 * np.abs(plain).max()
    assert_is(base, expected)


def test_a_model_saved_without_its_head(base: Path) -> None:
    AutoModel.from_pretrained(base, dtype=torch.float16).save_pretrained(base)
    assert not any(name.startswith("model.") for name in load_file(base / "model.safetensors"))
    load(base).half().save_pretrained(base.parent / "whole")
    for name in TOKENIZER:
        shutil.copyfile(base / name, base.parent / "whole" / name)
    assert_converters(base, base.parent / "whole")
    keys(base, tie_word_embeddings=False)
    with pytest.raises(GgufyError, match=r"lm_head.weight is missing, and config.json says tie_word_embeddings: false"):
        export(base, None, {"f16": base.parent / "no.gguf"})


def test_a_reward_model(base: Path) -> None:
    keys(base, architectures=["LlamaForSequenceClassification"], model_type="llama")
    with pytest.raises(ExportError, match="a classifier or reward model, which gives scores, not text"):
        export(base, None, {"f16": base.parent / "no.gguf"})


WRAPS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize("wrap", WRAPS)
def test_names_that_a_trainer_wrapped(wrap: str, base: Path) -> None:
    expected = said(load(base))
    inside = "layers.1._checkpoint_wrapped_module."
    weights(base, lambda held: {wrap + n.replace("layers.1.", inside): tensor for n, tensor in held.items()})
    assert_is(base, expected)
    with pytest.raises(ExportError, match="would train random numbers") as caught:
        engine.check_base(base)
    # What the hint says.
    assert "--merged bf16" in caught.value.hint
    export(base, None, {"merged-bf16": base.parent / "merged"})
    engine.check_base(base.parent / "merged")
    np.testing.assert_array_equal(said(load(base.parent / "merged")), expected)
    weights(base, lambda held: {**held, "model.norm.weight": torch.ones(256)})
    with pytest.raises(GgufyError, match=r"are both model.norm.weight"):
        export(base, None, {"f16": base.parent / "no.gguf"})


# How it rotates

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "yarn without its length": {"rope_parameters": {"rope_type": "yarn", "factor": 8, "rope_theta": 500.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama3": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}},
    "llama3 without its length": {"rope_scaling": LLAMA3, "max_position_embeddings": 64},
    "llama3 with its length as a float": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32.0}},
    "two keys": {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
    "an empty one": {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}},
}


@pytest.mark.parametrize("kind", ROPES)
def test_rope(kind: str, base: Path) -> None:
    keys(base, rope_scaling=None, rope_parameters=None, rope_theta=1000.0)
    plain = said(load(base))
    keys(base, **ROPES[kind])
    expected = said(load(base))
    # That a wrong rotation would be seen: dynamic scaling acts beyond the context only.
    assert kind == "dynamic" or np.abs(plain - expected).max() > 0.02 * np.abs(expected).max()
    assert_is(base, expected)
    # The others differ from these in nothing that the converter writes.
    if kind in ("yarn without its length", "llama3 without its length", "two keys"):
        assert_converters(base, base)


def test_the_length_outside_has_the_last_word(base: Path) -> None:
    """In the model that transformers runs: its configuration, which the converter reads, still has the other."""
    keys(base, rope_parameters=None, rope_scaling={**LLAMA3, "original_max_position_embeddings": 8192})
    inside = said(load(base))
    keys(base, original_max_position_embeddings=32)
    expected = said(load(base))
    assert np.abs(inside - expected).max() > 0.02 * np.abs(expected).max()
    assert_is(base, expected)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "linear": ({"type": "linear"}, "of type linear has no factor"),
    "dynamic": ({"type": "dynamic"}, "of type dynamic has no factor"),
    "llama3": ({"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}, "has no factor"),
    "llama3's high": ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "has no high_freq_factor"),
    "longrope": ({"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}, "type longrope"),
    "attention": ({**YARN, "attention_factor": 1.0}, "attention_factor is 1, and llama.cpp computes 1.139"),
    "beta": ({**YARN, "beta_fast": 16.0}, "beta_fast is 16.0"),
    "partial": ({"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "truncate": ({**YARN, "truncate": False}, "truncate is false"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_rope_that_is_refused(kind: str, base: Path) -> None:
    scaling, naming = dict(REFUSED[kind][0]), REFUSED[kind][1]
    outside = {key: scaling.pop(key) for key in ("partial_rotary_factor",) if key in scaling}
    keys(base, rope_scaling=scaling, rope_parameters=None, **outside)
    with pytest.raises(ExportError, match=naming) as caught:
        export(base, None, {"f16": base.parent / "no.gguf"})
    assert caught.value.hint


# Adapters


@pytest.fixture
def adapter(base: Path) -> Path:
    torch.manual_seed(7)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(load(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(base.parent / "adapter")
    torch.save(model.state_dict(), base.parent / "raw.pt")
    return base.parent / "adapter"


def rename(adapter: Path, change: Callable[[str], str]) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


RENAMES: dict[str, Callable[[str], str]] = {
    "checkpointing": lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    "compiled": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "fsdp": lambda name: "_fsdp_wrapped_module." + name.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
    "ddp": lambda name: "module." + name,
    "its own name": lambda name: name.replace(".weight", ".mine.weight") if "lora_" in name else name,
}


@pytest.mark.parametrize("kind", RENAMES)
def test_an_adapters_names(kind: str, base: Path, adapter: Path) -> None:
    expected = said(PeftModel.from_pretrained(load(base), adapter))
    rename(adapter, RENAMES[kind])
    assert_is(base, expected, adapter)


def test_a_raw_state_dict(base: Path, adapter: Path) -> None:
    expected = said(PeftModel.from_pretrained(load(base), adapter))
    raw = torch.load(base.parent / "raw.pt")
    kept = {n: t.clone() for n, t in raw.items() if any(part in n for part in ("lora_", "original_", "_to_save"))}
    save_file(kept, adapter / "adapter_model.safetensors", {"format": "pt"})
    assert_is(base, expected, adapter)


def test_two_adapters_in_one_file(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    held = load_file(path)
    more = {
        name.replace(".weight", f".{which}.weight"): t.clone() for which in ("one", "two") for name, t in held.items()
    }
    save_file(more, path, {"format": "pt"})
    with pytest.raises(ExportError, match="2 adapters are in it: one, two"):
        Adapter.open(adapter)


def test_fan_in_fan_out_of_linear_layers(base: Path, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"fan_in_fan_out": True}))
    expected = said(PeftModel.from_pretrained(load(base), adapter))
    assert_is(base, expected, adapter)
