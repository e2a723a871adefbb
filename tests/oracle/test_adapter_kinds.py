"""Adapters that train more than matrices of the layers: biases, the embedding, the output matrix, tied and untied.

The oracles are peft's merge, peft's own forward pass on the base as it was trained, and llama.cpp's converter.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ggufy.data import source
from ggufy.errors import ExportError, ModelError
from ggufy.export.adapter.config import AdapterConfig
from ggufy.model import tiny
from ggufy.verify import reference
from tests.oracle.converter import contents, convert, export
from tests.oracle.test_export_bytes import assert_float32_sums, assert_same_file, logits

# peft warns of most of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = list(range(20, 60))
EMBEDDING, HEAD = "embed_tokens", "lm_head"


@pytest.fixture(scope="module")
def tied() -> Path:
    return tiny.ensure(source.sample_texts())


def changed(base: Path, folder: Path, extra: dict[str, Any], **settings: bool) -> Path:
    """A copy of the tiny model with more tensors and other settings."""
    shutil.copytree(base, folder)
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    save_file({**load_file(base / "model.safetensors"), **extra}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def untied(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    head = load_file(tied / "model.safetensors")["model.embed_tokens.weight"] * 0.5
    folder = tmp_path_factory.mktemp("untied") / "base"
    return changed(tied, folder, {"lm_head.weight": head}, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def biased(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    weights = load_file(tied / "model.safetensors")
    extra = {
        name.replace(".weight", ".bias"): torch.randn(len(tensor)).to(tensor.dtype) * 0.1
        for name, tensor in weights.items()
        if "_proj" in name
    }
    folder = tmp_path_factory.mktemp("biased") / "base"
    return changed(tied, folder, extra, attention_bias=True, mlp_bias=True)


def load(base: Path) -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def train(base: Path, out: Path, *targets: str, **settings: Any) -> np.ndarray:
    """An adapter whose every trained number has moved, and the logits that the model in training then gives."""
    torch.manual_seed(7)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", *targets], **settings)
    model = get_peft_model(load(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
        found = model.eval()(torch.tensor([TOKENS])).logits[0].numpy()
    model.save_pretrained(out)
    return found


def assert_exact(base: Path, folder: Path, expected: np.ndarray, reference: dict[str, torch.Tensor]) -> set[str]:
    """What is exported has the weights of the reference and speaks as the model in training; its GGUF's tensors."""
    outputs = {"merged": folder / "merged", "f32": folder / "f32.gguf"}
    export(base, folder / "adapter", outputs, {"name": "tiny"})
    assert_float32_sums(base, folder / "adapter", reference)
    ours = load(outputs["merged"]).state_dict()
    assert ours.keys() == reference.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, reference[name], rtol=2.0**-11, atol=1e-7)
    spoken = logits(outputs["f32"], TOKENS)
    assert np.abs(spoken - expected).max() < 0.01 * np.abs(expected).max()
    return set(contents(outputs["f32"]).tensors)


def merged_by_peft(model: Any, adapter: Path) -> dict[str, torch.Tensor]:
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


WHOLE = {
    "head": ([HEAD], {}),
    "embedding": ([EMBEDDING], {}),
    "both": ([EMBEDDING, HEAD], {}),
    "embedding kept tied": ([EMBEDDING], {"ensure_weight_tying": True}),
    "both kept tied": ([EMBEDDING, HEAD], {"ensure_weight_tying": True}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_matrices_of_a_tied_base(kind: str, tied: Path, tmp_path: Path) -> None:
    modules, more = WHOLE[kind]
    expected = train(tied, tmp_path / "adapter", modules_to_save=list(modules), **more)
    tensors = assert_exact(tied, tmp_path, expected, merged_by_peft(load(tied), tmp_path / "adapter"))
    assert ("output.weight" in tensors) == (not more)


def test_an_untied_export_is_the_converters(tied: Path, tmp_path: Path) -> None:
    train(tied, tmp_path / "adapter", modules_to_save=[EMBEDDING])
    outputs = {"f16": tmp_path / "f16.gguf", "q4_k_m": tmp_path / "q4.gguf"}
    export(tied, tmp_path / "adapter", outputs, {"name": "tiny"})
    PeftModel.from_pretrained(load(tied), tmp_path / "adapter").merge_and_unload().to(torch.float16).save_pretrained(
        tmp_path / "theirs"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tied / name, tmp_path / "theirs" / name)
    convert(tmp_path / "theirs", tmp_path / "theirs.gguf")
    ours, theirs = contents(outputs["f16"]), contents(tmp_path / "theirs.gguf")
    assert list(ours.keys) == list(theirs.keys)
    assert list(ours.tensors) == list(theirs.tensors)
    for name in ("token_embd.weight", "output.weight"):
        assert ours.tensors[name] == theirs.tensors[name]
    assert "output.weight" in contents(outputs["q4_k_m"]).tensors


LOW_RANK = {
    "embedding": ([EMBEDDING], {}),
    "head": ([HEAD], {}),
    "both": ([EMBEDDING, HEAD], {}),
    "kept tied": ([EMBEDDING, HEAD], {"ensure_weight_tying": True}),
    "rslora": ([EMBEDDING, HEAD], {"use_rslora": True}),
}


@pytest.mark.parametrize("kind", LOW_RANK)
def test_low_rank_changes_of_a_tied_base(kind: str, tied: Path, tmp_path: Path) -> None:
    """peft merges the change of one into both, against its own forward pass; untied, as it advises, it does not."""
    targets, more = LOW_RANK[kind]
    expected = train(tied, tmp_path / "adapter", *targets, **more)
    if more.get("ensure_weight_tying"):
        # Here it would add the change twice; the change itself is peft's.
        model = PeftModel.from_pretrained(load(tied), tmp_path / "adapter")
        delta = model.get_input_embeddings().get_delta_weight("default").detach()
        reference = model.merge_and_unload().state_dict()
        once = load(tied).model.embed_tokens.weight.detach() + delta
        reference |= {"model.embed_tokens.weight": once, "lm_head.weight": once}
    else:
        apart = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32, tie_word_embeddings=False)
        apart.lm_head.weight.data = apart.model.embed_tokens.weight.data.clone()
        reference = merged_by_peft(apart, tmp_path / "adapter")
    tensors = assert_exact(tied, tmp_path, expected, reference)
    assert ("output.weight" in tensors) == ("ensure_weight_tying" not in more)


@pytest.mark.parametrize("settings", [{"modules_to_save": [EMBEDDING, HEAD]}, {"targets": [EMBEDDING, HEAD]}])
def test_an_untied_base(settings: dict[str, list[str]], untied: Path, tmp_path: Path) -> None:
    targets = settings.pop("targets", [])
    expected = train(untied, tmp_path / "adapter", *targets, **settings)
    assert_exact(untied, tmp_path, expected, merged_by_peft(load(untied), tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("bias", "lora_bias"), [("all", False), ("lora_only", False), ("none", True), ("all", True), ("none", False)]
)
def test_biases(bias: str, lora_bias: bool, biased: Path, tmp_path: Path) -> None:
    expected = train(biased, tmp_path / "adapter", "k_proj", "down_proj", bias=bias, lora_bias=lora_bias)
    tensors = assert_exact(biased, tmp_path, expected, merged_by_peft(load(biased), tmp_path / "adapter"))
    assert {"blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.ffn_down.bias"} <= tensors


def test_biases_are_the_converters(biased: Path, tmp_path: Path) -> None:
    train(biased, tmp_path / "adapter", "k_proj", bias="all")
    outputs = {"f16": tmp_path / "f16.gguf", "merged": tmp_path / "merged"}
    export(biased, tmp_path / "adapter", outputs, {"name": "tiny"})
    convert(outputs["merged"], tmp_path / "theirs.gguf")
    assert_same_file(outputs["f16"], tmp_path / "theirs.gguf")


def refused(base: Path, folder: Path, naming: str, output: str = "f16") -> None:
    with pytest.raises(ExportError, match=naming) as caught:
        export(base, folder / "adapter", {output: folder / "out.gguf"}, {"name": "tiny"})
    assert caught.value.hint
    assert not (folder / "out.gguf").exists()


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}], ids=str)
def test_a_bias_that_the_base_has_not(settings: dict[str, Any], tied: Path, biased: Path, tmp_path: Path) -> None:
    train(tied if "lora_bias" in settings else biased, tmp_path / "adapter", **settings)
    said = (
        "lora_bias trained a bias of .*_proj, which has none"
        if "lora_bias" in settings
        else r"_proj\.bias, which is not"
    )
    refused(tied, tmp_path, said + " in the base")


def test_a_base_without_a_bias_that_its_config_has(tied: Path, tmp_path: Path) -> None:
    folder = changed(tied, tmp_path / "base", {}, attention_bias=True)
    with pytest.raises(ModelError, match=r"q_proj\.bias is missing"):
        export(folder, None, {"f16": tmp_path / "f16.gguf"}, {"name": "tiny"})


def test_no_bias_was_there_to_train(tied: Path, tmp_path: Path) -> None:
    expected = train(tied, tmp_path / "adapter", bias="all")
    assert_exact(tied, tmp_path, expected, merged_by_peft(load(tied), tmp_path / "adapter"))


def test_added_tokens(tied: Path, tmp_path: Path) -> None:
    """They need the base as it was resized, with its tokenizer, as the hint says."""
    model, resized = load(tied), tmp_path / "resized"
    model.resize_token_embeddings(model.config.vocab_size + 8)
    shutil.copytree(tied, resized)
    model.save_pretrained(resized)
    expected = train(resized, tmp_path / "adapter", modules_to_save=[EMBEDDING])
    refused(tied, tmp_path, r"is \[768, 256\] in the base, and the adapter brings one of \[776, 256\]")
    assert_exact(resized, tmp_path, expected, merged_by_peft(load(resized), tmp_path / "adapter"))


@pytest.mark.parametrize("kind", ["tied", "untied", "untied, both"])
def test_single_trained_tokens(kind: str, tied: Path, untied: Path, tmp_path: Path) -> None:
    base = tied if kind == "tied" else untied
    tokens: Any = {EMBEDDING: [5, 30], HEAD: [30, 700]} if "both" in kind else [30, 5]
    expected = train(base, tmp_path / "adapter", trainable_token_indices=tokens)
    tensors = assert_exact(base, tmp_path, expected, merged_by_peft(load(base), tmp_path / "adapter"))
    assert ("output.weight" in tensors) == (kind != "tied")
    refused(base, tmp_path, "cannot hold whole tensors", output="adapter")


def _each_layer(name: str, wrapper: str) -> str:
    return re.sub(r"(layers\.\d+\.)", rf"\1{wrapper}.", name)


WRAPPED: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    # What becomes of the adapter's names, and of the base's.
    "a raw state dict": (lambda name: re.sub(r"(lora_[AB])\.", r"\1.default.", name), lambda name: name),
    "torch.compile": (lambda name: f"_orig_mod.{name}", lambda name: f"_orig_mod.{name}"),
    "checkpointing": (
        lambda name: _each_layer(name, "_checkpoint_wrapped_module"),
        lambda name: _each_layer(name, "_checkpoint_wrapped_module"),
    ),
    "FSDP": (
        lambda name: _each_layer(name, "_fsdp_wrapped_module").replace("model.model.", "model.model._orig_mod."),
        lambda name: "_fsdp_wrapped_module." + _each_layer(name, "_fsdp_wrapped_module"),
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_names_as_trainers_wrap_them(kind: str, tied: Path, tmp_path: Path) -> None:
    """The file says what the model in training said, which had these names; transformers and peft load none of them."""
    of_adapter, of_base = WRAPPED[kind]
    expected = train(tied, tmp_path / "adapter", "down_proj", "embed_tokens")
    base, file = Path(shutil.copytree(tied, tmp_path / "base")), tmp_path / "adapter/adapter_model.safetensors"
    for path, rename in ((file, of_adapter), (base / "model.safetensors", of_base)):
        weights = load_file(path)
        renamed = {rename(name): tensor for name, tensor in weights.items()}
        assert (renamed.keys() != weights.keys()) == (kind != "a raw state dict" or path == file)
        save_file(renamed, path, {"format": "pt"})
    export(base, tmp_path / "adapter", {"f32": tmp_path / "f32.gguf"}, {"name": "tiny"})
    spoken = logits(tmp_path / "f32.gguf", TOKENS)
    assert np.abs(spoken - expected).max() < 0.01 * np.abs(expected).max()
    assert "wrapped by a trainer" in str(reference.missing(base, tmp_path / "adapter"))


def without(folder: Path, part: str) -> None:
    """Take from an adapter what was trained whole, as a trainer that saves too little does."""
    file = folder / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert 0 < len(kept) < len(weights)
    save_file(kept, file)


@pytest.mark.parametrize("module", [HEAD, EMBEDDING])
def test_a_whole_matrix_that_is_missing(module: str, tied: Path, untied: Path, tmp_path: Path) -> None:
    for base in (tied, untied):
        train(base, tmp_path / "adapter", modules_to_save=[module])
        without(tmp_path, module)
        refused(base, tmp_path, rf"modules_to_save in adapter_config.json means .*{module}.weight, but it is not there")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_are_missing(bias: str, biased: Path, tmp_path: Path) -> None:
    train(biased, tmp_path / "adapter", "k_proj", bias=bias)
    without(tmp_path, "k_proj.b")
    refused(biased, tmp_path, rf"bias \({bias}\) in adapter_config.json means .*k_proj.bias, but it is not there")


def test_trained_tokens_that_are_missing(tied: Path, tmp_path: Path) -> None:
    train(tied, tmp_path / "adapter", trainable_token_indices=[5, 6])
    without(tmp_path, "trainable_tokens")
    refused(tied, tmp_path, "trainable_token_indices in adapter_config.json, but there are no trained tokens")


def test_repeated_layers(tied: Path, tmp_path: Path) -> None:
    train(tied, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_replication": [[0, 4], [2, 4]]}))
    refused(tied, tmp_path, "layer_replication makes a different model of the base")


def test_another_activation(tied: Path, tmp_path: Path) -> None:
    train(tied, tmp_path / "adapter")
    base = changed(tied, tmp_path / "base", {}, hidden_act="gelu")  # type: ignore[arg-type]
    refused(base, tmp_path, "hidden_act is gelu, and llama.cpp computes every Llama with silu")


def test_dora_of_the_embedding(tied: Path, tmp_path: Path) -> None:
    train(tied, tmp_path / "adapter", EMBEDDING, use_dora=True)
    refused(tied, tmp_path, "DoRA of model.embed_tokens")


def test_an_embedding_and_an_output_matrix_for_a_tied_base(tied: Path, untied: Path, tmp_path: Path) -> None:
    model = get_peft_model(load(untied), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    refused(tied, tmp_path, "an embedding and an output matrix that differ")


@pytest.mark.parametrize(
    ("targets", "settings"), [([EMBEDDING], {}), ([HEAD], {}), ([], {"modules_to_save": [HEAD]})], ids=str
)
def test_what_an_adapter_gguf_cannot_hold(targets: list[str], settings: Any, tied: Path, tmp_path: Path) -> None:
    train(tied, tmp_path / "adapter", *targets, **settings)
    refused(tied, tmp_path, "unties the output matrix", output="adapter")


def test_an_adapter_gguf_of_biases(biased: Path, tmp_path: Path) -> None:
    train(biased, tmp_path / "adapter", lora_bias=True)
    refused(biased, tmp_path, "cannot hold .* biases", output="adapter")


PARTS = "self_attn|attention|attn|mlp|feed_forward|ffn|dense"
TARGETS: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["q_proj", "down_proj", "c_attn"]},
    "longer names": {"target_modules": ["mlp.up_proj", "model.layers.1.self_attn.k_proj", "roj"]},
    "whole matrices": {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*\.[02]\.(self_attn\.o_proj|mlp\.(up|gate)_proj)"},
    # As Unsloth writes it.
    "a pattern for many models": {
        "target_modules": rf"(?:.*?(?:language|text).*?(?:{PARTS}).*?(?:q_proj|up_proj).*?)"
        rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{PARTS})\.(?:(?:q_proj|up_proj)))"
    },
    "some layers": {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1, 3]},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": 2, "layers_pattern": "layers"},
    "no such layers": {
        "target_modules": ["q_proj", "model.layers.0.mlp.up_proj"],
        "layers_to_transform": [0],
        "layers_pattern": ["h"],
    },
    "all but names": {"target_modules": "all-linear", "exclude_modules": ["up_proj", "1.mlp.down_proj"]},
    "all but a pattern": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.[13]\..*"},
    "all but what is saved whole": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("settings", TARGETS.values(), ids=TARGETS.keys())
def test_the_modules_that_the_config_names(settings: dict[str, Any], untied: Path, tmp_path: Path) -> None:
    """They are those that peft puts pairs on, whether the config is as the trainer wrote it or as peft saves it."""
    get_peft_model(load(untied), LoraConfig(r=2, **settings)).save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    expected = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in held if ".lora_" in name}
    modules = {name.removesuffix(".weight") for name in load_file(untied / "model.safetensors")}
    for config in (AdapterConfig.read(tmp_path / "adapter_config.json"), AdapterConfig(r=2, lora_alpha=8, **settings)):
        assert {module for module in modules if config.changes(module)} == expected
