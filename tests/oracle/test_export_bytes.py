"""ggufy's one pass against llama.cpp's converter and quantizer, on what peft merges: the same bytes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ggufy.data import source
from ggufy.errors import ExportError
from ggufy.export import families, sinks
from ggufy.export.adapter.adapter import Adapter
from ggufy.export.merge import Merge, Slab, matrix
from ggufy.llamacpp import library
from ggufy.model import tiny
from ggufy.model.safetensors import Checkpoint
from tests.oracle.converter import contents, convert, convert_lora, export

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "lora": LoraConfig(r=8, lora_alpha=16, target_modules=MODULES),
    "rslora": LoraConfig(r=8, lora_alpha=16, target_modules=MODULES, use_rslora=True),
    "dora": LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"], use_dora=True),
    "patterns": LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=MODULES,
        rank_pattern={"q_proj": 4},
        alpha_pattern={"layers.1.mlp.up_proj": 64},
    ),
}


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def make_adapter(base: Path, config: LoraConfig, out: Path) -> None:
    torch.manual_seed(7)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(out)


def merge(base: Path, adapter: Path, out: Path) -> None:
    """What the usual pipeline does: peft merges, here in float32, and one rounding to float16."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.to(torch.float16).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, out / name)


def assert_same_file(found: Path, expected: Path) -> None:
    ours, theirs = contents(found), contents(expected)
    assert list(ours.keys) == list(theirs.keys)
    assert ours.keys == theirs.keys
    assert list(ours.tensors) == list(theirs.tensors)
    assert [name for name in theirs.tensors if ours.tensors[name] != theirs.tensors[name]] == []


def assert_float32_sums(base: Path, adapter: Path, reference: dict[str, torch.Tensor]) -> None:
    """Before anything is rounded, every tensor is the reference's but for the last bits of a float32 sum."""
    weights, change, family = Checkpoint.open(base), Adapter.open(adapter), families.read(base)
    planned = family.plan(weights, untied=change.unties(family.tied))
    merge = Merge(weights, change, compiled=False)
    for tensor in planned:
        if tensor.source:
            rows = matrix(tensor.shape)[0]
            ours = torch.from_numpy(merge.rows(Slab(tensor, 0, rows), ["exact"]).exact.reshape(tensor.shape).copy())
            theirs = reference[tensor.source].float()
            assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max(), tensor.source


@pytest.mark.parametrize("quant", ["bf16", "f32"])
def test_a_wider_type_does_not_go_through_float16(quant: str, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "checkpoint"))
    weights = load_file(base / "model.safetensors")
    # Most of these are no float16 numbers.
    weights = {name: (tensor.float() * 1e-4).to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    export(folder, None, {quant: tmp_path / "ours.gguf"}, {"name": "tiny"})
    convert(folder, tmp_path / "theirs.gguf", quant)
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_becomes_what_the_converter_and_the_quantizer_make(base: Path, tmp_path: Path, tied: bool) -> None:
    folder, theirs = tmp_path / "checkpoint", tmp_path / "theirs.gguf"
    shutil.copytree(base, folder)
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
    weights = load_file(base / "model.safetensors")
    weights = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
    if not tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    direct = ("f16", "bf16", "f32")
    export(folder, None, {quant: tmp_path / f"{quant}.gguf" for quant in direct}, {"name": "tiny"})
    for quant in direct:
        convert(folder, theirs, quant)
        assert_same_file(tmp_path / f"{quant}.gguf", theirs)
    # The F16 file is the converter's; from there the quantizer makes the others, whole files with every key.
    made = []
    for quant in set(library.ftypes()) - set(direct):
        ours = tmp_path / f"{quant}.gguf"
        try:
            library.quantize_file(tmp_path / "f16.gguf", theirs, library.ftypes()[quant])
        except ExportError as error:
            # What llama.cpp refuses, for want of an importance matrix or altogether, ggufy refuses as it does.
            with pytest.raises(ExportError, match=re.escape(error.message)):
                export(folder, None, {quant: ours}, {"name": "tiny"})
            continue
        export(folder, None, {quant: ours}, {"name": "tiny"})
        assert ours.read_bytes() == theirs.read_bytes(), quant
        made.append(quant)
    assert {"q4_0", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs"} <= set(made)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_merged_as_peft_merges_it(kind: str, base: Path, tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    make_adapter(base, ADAPTERS[kind], adapter)
    merge(base, adapter, merged)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert_float32_sums(base, adapter, PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())
    convert(merged, tmp_path / "theirs.gguf")
    export(base, adapter, {"f16": tmp_path / "f16.gguf", "q4_k_m": tmp_path / "q4.gguf"}, {"name": "tiny"})
    plain = tmp_path / "plain.gguf"
    export(base, None, {"f16": plain}, {"name": "tiny"})
    ours, theirs, without = (contents(tmp_path / f"{name}.gguf") for name in ("f16", "theirs", "plain"))
    changed = set()
    for name, (kind_number, shape, data) in theirs.tensors.items():
        assert ours.tensors[name][:2] == (kind_number, shape)
        if kind_number != library.F16:
            assert ours.tensors[name][2] == data
            continue
        # Both sums are float32 products in another order; one in thousands then rounds to the other neighbour in F16.
        steps = np.abs(np.frombuffer(ours.tensors[name][2], "<i2").astype(int) - np.frombuffer(data, "<i2"))
        assert steps.max() <= 1
        assert (steps > 0).mean() < 1e-3, name
        if ours.tensors[name] != without.tensors[name]:
            changed.add(name.split(".")[-2])
    assert len(changed) == len(ADAPTERS[kind].target_modules or ())
    library.quantize_file(tmp_path / "f16.gguf", tmp_path / "expected.gguf", library.ftypes()["q4_k_m"])
    assert (tmp_path / "q4.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_the_bytes_do_not_depend_on_threads(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(base, ADAPTERS["lora"], adapter)
    for threads in (1, 3):
        export(base, adapter, {"q4_k_m": tmp_path / f"{threads}.gguf"}, {"name": "tiny"}, threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_merged_checkpoint_becomes_the_same_gguf(kind: str, base: Path, tmp_path: Path) -> None:
    """Our merged F16 through llama.cpp's converter is our F16, byte for byte: the pass merges once for both."""
    adapter = tmp_path / "adapter"
    make_adapter(base, ADAPTERS[kind], adapter)
    outputs = {"f16": tmp_path / "f16.gguf", "merged": tmp_path / "merged", "merged-bf16": tmp_path / "bf16"}
    export(base, adapter, outputs, {"name": "tiny"})
    convert(outputs["merged"], tmp_path / "theirs.gguf")
    assert_same_file(outputs["f16"], tmp_path / "theirs.gguf")
    # transformers loads both, in the types they say, with the weights peft gives.
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    expected = reference.merge_and_unload().state_dict()
    for folder, dtype, bits in (("merged", torch.float16, 11), ("merged-bf16", torch.bfloat16, 8)):
        loaded = AutoModelForCausalLM.from_pretrained(outputs[folder])
        assert loaded.dtype == dtype
        for name, tensor in loaded.state_dict().items():
            torch.testing.assert_close(tensor.float(), expected[name], rtol=2.0**-bits, atol=1e-7)


def test_shards_and_their_index(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_SHARD", 2_000_000)
    outputs = {"f16": tmp_path / "f16.gguf", "merged": tmp_path / "merged"}
    export(base, None, outputs, {"name": "tiny"})
    assert len(list(outputs["merged"].glob("*.safetensors"))) > 2
    again = tmp_path / "again.gguf"
    export(outputs["merged"], None, {"f16": again}, {"name": "tiny"})
    assert again.read_bytes() == outputs["f16"].read_bytes()
    convert(outputs["merged"], tmp_path / "theirs.gguf")
    assert_same_file(again, tmp_path / "theirs.gguf")


def test_a_plain_adapter_gguf_is_llama_cpps(base: Path, tmp_path: Path) -> None:
    make_adapter(base, ADAPTERS["lora"], tmp_path / "adapter")
    export(base, tmp_path / "adapter", {"adapter": tmp_path / "ours.gguf"}, {"name": "tiny"})
    convert_lora(base, tmp_path / "adapter", tmp_path / "theirs.gguf")
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize("kind", ["lora", "rslora", "patterns"])
def test_llama_cpp_with_the_adapter_is_the_merged_model(kind: str, base: Path, tmp_path: Path) -> None:
    """The scaling that llama.cpp does not know is in the file: logits of base + adapter are those of the merged one."""
    make_adapter(base, ADAPTERS[kind], tmp_path / "adapter")
    outputs = {name: tmp_path / f"{name}.gguf" for name in ("f32", "adapter")}
    export(base, tmp_path / "adapter", outputs, {"name": "tiny"})
    export(base, None, {"f32": tmp_path / "base.gguf"}, {"name": "tiny"})
    tokens = list(range(20, 60))
    merged, with_adapter, without = (
        logits(outputs["f32"], tokens),
        logits(tmp_path / "base.gguf", tokens, outputs["adapter"]),
        logits(tmp_path / "base.gguf", tokens),
    )
    assert np.abs(merged - without).max() > 0.1
    assert np.abs(merged - with_adapter).max() < 0.02 * np.abs(merged).max()


def logits(path: Path, tokens: list[int], adapter: Path | None = None) -> np.ndarray:
    model = llama_cpp.Llama(str(path), lora_path=str(adapter) if adapter else None, logits_all=True, verbose=False)
    model.eval(tokens)
    found = np.array(model.scores[: len(tokens)])
    model.close()
    return found
