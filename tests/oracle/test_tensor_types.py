"""llama-quantize's options on the types of tensors: the bytes of llama.cpp's quantizer with the same options."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ggufy.errors import ExportError, GgufyError
from ggufy.export import engine
from ggufy.export.converter import quantizing
from ggufy.export.gguf import tensor_types
from ggufy.export.gguf.tensor_types import TypeOptions
from ggufy.export.request import Request
from ggufy.llamacpp import gguf_reader, library
from tests.oracle.converter import contents, convert, export

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]


def numbers() -> dict[str, int]:
    """ggml's types by name, from gguf-py's table and not from ggufy's."""
    return {kind.name.lower(): int(kind) for kind in gguf.GGMLQuantizationType}


def quantize(source: Path, target: Path, quant: str, types: Sequence[str] = (), **fields: Any) -> None:
    """llama_model_quantize as llama-quantize calls it: patterns in order, in lower case, and fields of its options."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = library.ftypes()[quant], 1
    pairs = [text.split("=") for text in types]
    overrides = (llama_cpp.llama_model_tensor_override * (len(pairs) + 1))()
    for place, (pattern, kind) in zip(overrides, pairs, strict=False):
        place.pattern, place.type = pattern.lower().encode(), numbers()[kind]
    params.tt_overrides = overrides
    for name, value in fields.items():
        setattr(params, name, numbers()[value] if isinstance(value, str) else value)
    with library.quiet():
        assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0


def types_of(path: Path) -> dict[str, str]:
    return {tensor.name: library.type_name(tensor.type) for tensor in gguf_reader.read_gguf(path).tensors}


@pytest.fixture(scope="module")
def models(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tied/ and untied/, each with its f16.gguf; narrow/ has SmolLM2's kind of width, 96 and not 256."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("tied", "untied"):
        shutil.copytree(base, folder / name)
    config = json.loads((base / "config.json").read_text("utf-8"))
    (folder / "untied/config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), "utf-8")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 0.5
    save_file(weights, folder / "untied/model.safetensors", {"format": "pt"})
    torch.manual_seed(0)
    narrow = {**config, "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 3, "head_dim": 32}
    narrow |= {"num_key_value_heads": 1, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**narrow)).to(torch.bfloat16).save_pretrained(folder / "narrow")
    for path in base.glob("tokenizer*"):
        shutil.copy(path, folder / "narrow")
    for name in ("tied", "untied", "narrow"):
        export(folder / name, None, {"f16": folder / f"{name}.gguf"})
    return folder


CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("tied", "q4_k_m", {"tensor_types": ["attn_v=q8_0"]}, {"types": ["attn_v=q8_0"]}),
    # The first that matches counts; upper case is lowered; floats of three kinds among them.
    (
        "untied",
        "q4_k_m",
        {"tensor_types": [r"BLK\.[01]\.ffn_(up|gate)=q6_k", "ffn=iq4_xs", "attn_q=F32", "attn_k=bf16", "attn_o=f16"]},
        {"types": [r"blk\.[01]\.ffn_(up|gate)=q6_k", "ffn=iq4_xs", "attn_q=f32", "attn_k=bf16", "attn_o=f16"]},
    ),
    (
        "untied",
        "q3_k_m",
        {"output_tensor_type": "q8_0", "token_embedding_type": "q2_k"},
        {"output_tensor_type": "q8_0", "token_embedding_type": "q2_k"},
    ),
    ("tied", "q5_k_m", {"output_tensor_type": "q4_k"}, {"output_tensor_type": "q4_k"}),
    ("untied", "q4_k_s", {"leave_output_tensor": True}, {"quantize_output_tensor": False}),
    ("untied", "q4_k_m", {"pure": True}, {"pure": True}),
    (
        "untied",
        "q2_k",
        {"pure": True, "tensor_types": ["attn_v=q8_0"], "output_tensor_type": "q6_k"},
        {"pure": True, "types": ["attn_v=q8_0"], "output_tensor_type": "q6_k"},
    ),
    ("narrow", "q4_k_m", {"tensor_types": ["attn_q=q6_k"]}, {"types": ["attn_q=q6_k"]}),
]


@pytest.mark.parametrize(("model", "quant", "ours", "theirs"), CASES)
def test_the_bytes_are_llama_cpps(
    model: str, quant: str, ours: dict[str, Any], theirs: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    made, expected, plain = (tmp_path / f"{name}.gguf" for name in ("made", "expected", "plain"))
    export(models / model, None, {quant: made}, types=TypeOptions.of(**ours))
    quantize(models / f"{model}.gguf", expected, quant, **theirs)
    quantize(models / f"{model}.gguf", plain, quant)
    assert made.read_bytes() == expected.read_bytes() != plain.read_bytes()


def test_the_types_of_a_published_file(models: Path, tmp_path: Path) -> None:
    """Any mixture, also in several files; and with --tensor-type beside it, which goes first."""
    published, made, again = (tmp_path / f"{name}.gguf" for name in ("published", "made", "again"))
    mixture = [r"blk\.1\.=q5_1", "ffn_down=iq4_nl", "attn_q=f16", "token_embd=q4_1"]
    quantize(models / "untied.gguf", published, "q4_k_m", mixture, output_tensor_type="bf16")
    options = TypeOptions.of(types_from=published)
    assert options is not None
    assert options.published is not None
    assert options.published.quant == "q4_k_m"
    export(models / "untied", None, {"q4_k_m": made}, types=options)
    assert made.read_bytes() == published.read_bytes()
    left = TypeOptions.of(types_from=published, leave_output_tensor=True)
    export(models / "untied", None, {"q4_k_m": made}, types=left)
    quantize(models / "untied.gguf", again, "q4_k_m", mixture, quantize_output_tensor=False)
    assert made.read_bytes() == again.read_bytes() != published.read_bytes()
    export(models / "untied", None, {"q4_k_m": tmp_path / "split"}, split=900_000, types=options)
    parts = sorted((tmp_path / "split").iterdir())
    assert len(parts) > 1
    options = TypeOptions.of(tensor_types=["attn_q=q8_0"], types_from=parts[0])
    export(models / "untied", None, {"q6_k": again}, types=options)
    exact = [f"^{re.escape(name)}$={kind}" for name, kind in types_of(published).items()]
    quantize(models / "untied.gguf", published, "q6_k", ["attn_q=q8_0", *exact])
    assert again.read_bytes() == published.read_bytes()


def test_a_file_whose_types_fell_back_says_so(models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ggufy")
    made = tmp_path / "made.gguf"
    export(models / "narrow", None, {"q4_k_m": made})
    [said] = [line for line in caplog.messages if "fell back" in line]
    assert re.match(r"q4_k_m: 12 tensors fell back .*: \d+ from q4_k to q5_0, \d+ from q6_k to q8_0$", said)
    for kind in ("q5_0", "q8_0"):
        count = int(re.search(rf"(\d+) from \w+ to {kind}", said)[1])  # type: ignore[index]
        assert count == sum(found == kind for name, found in types_of(made).items() if name != "token_embd.weight")
    plan = engine.plan(Request(models / "narrow", None, {"q4_k_m": made}, {"name": "x"}), tmp_path)
    assert said in plan.describe(1)
    caplog.clear()
    export(models / "tied", None, {"q4_k_m": made})
    assert not [line for line in caplog.messages if "fell back" in line]


def test_every_type_that_is_offered_can_be_made(models: Path, tmp_path: Path) -> None:
    """And no other: llama.cpp would end the process over one that it cannot quantize to."""
    offered = tensor_types.known()
    assert {"f32", "f16", "bf16", "q4_0", "q8_0", "q4_k", "iq4_xs", "tq1_0", "mxfp4"} <= offered.keys()
    assert {"q8_1", "q8_k", "i8", "f64", "deprecated"}.isdisjoint(offered)
    for name in offered:
        options = TypeOptions.of(tensor_types=[rf"blk\.0\.ffn_up={name}"])
        wanted = {"q8_0": tmp_path / "made.gguf"}
        if name in ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"):
            with pytest.raises(ExportError, match="needs an importance matrix"):
                export(models / "tied", None, wanted, types=options)
            continue
        export(models / "tied", None, wanted, types=options)
        assert types_of(tmp_path / "made.gguf")["blk.0.ffn_up.weight"] == name


REFUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("tied", {"tensor_types": ["attn_v=q4_k_m"]}, ["attn_v=q4_k_m", "did you mean q4_k?"]),
    ("tied", {"tensor_types": ["attn_v"]}, ["'attn_v' is not PATTERN=TYPE"]),
    ("tied", {"tensor_types": ["attn_vv=q6_k"]}, ["attn_vv=q6_k", "matches no tensor", "closest is attn_v"]),
    ("tied", {"tensor_types": ["ffn_norm=q8_0"]}, ["never quantizes blk.0.ffn_norm.weight"]),
    ("tied", {"tensor_types": ["attn_(v=q6_k"]}, ["'attn_(v' is not a regular expression"]),
    ("tied", {"output_tensor_type": "q8_1"}, ["--output-tensor-type", "'q8_1'", "did you mean"]),
    ("tied", {"tensor_types": ["ffn_down=iq2_s"]}, ["ffn_down=iq2_s", "needs an importance matrix"]),
    ("tied", {"token_embedding_type": "iq2_xxs"}, ["--token-embedding-type iq2_xxs", "values for token_embd.weight"]),
    ("narrow", {"token_embedding_type": "q4_k"}, ["token_embd.weight has 96 columns", "256"]),
    ("tied", {"pure": True, "types_from": "tied.gguf"}, ["--pure has no effect with --types-from"]),
    ("tied", {"types_from": "none.gguf"}, ["no file", "none.gguf"]),
    ("tied", {"types_from": "tied/config.json"}, ["config.json is not a GGUF file"]),
    ("tied", {"types_from": "untied.gguf"}, ["untied.gguf: it has a tensor output.weight"]),
    ("untied", {"types_from": "tied.gguf"}, ["tied.gguf: it has no output.weight"]),
    ("tied", {"types_from": "narrow.gguf"}, ["its token_embd.weight is [768, 96], and the model's is [768, 256]"]),
    ("tied", {"types_from": "needy.gguf"}, ["needy.gguf", "blk.0.ffn_down.weight in iq2_s needs an importance matrix"]),
    ("tied", {"types_from": "norm.gguf"}, ["its blk.1.attn_norm.weight is f16, and llama.cpp only makes f32"]),
    ("tied", {"types_from": "other.gguf"}, ["is of the architecture qwen2, not llama"]),
]


@pytest.mark.parametrize(("model", "options", "naming"), REFUSED)
def test_what_is_refused(model: str, options: dict[str, Any], naming: list[str], models: Path, tmp_path: Path) -> None:
    if name := options.get("types_from"):
        path = models / name
        if name in ("needy.gguf", "norm.gguf", "other.gguf"):
            path = doctored(models / "tied.gguf", tmp_path / name)
        options = {**options, "types_from": path}
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(GgufyError) as caught:
        export(models / model, None, {"q4_k_m": out / "made.gguf"}, types=TypeOptions.of(**options))
    assert [part for part in naming if part not in caught.value.message] == []
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert list(out.iterdir()) == []


def doctored(source: Path, path: Path) -> Path:
    """A GGUF of the same tensors with one thing that cannot be taken over."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "qwen2" if path.stem == "other" else "llama")
    writer.add_file_type(15)
    change = {"needy": "blk.0.ffn_down.weight", "norm": "blk.1.attn_norm.weight"}.get(path.stem)
    for tensor in reader.tensors:
        shape, kind = [int(size) for size in reversed(tensor.shape)], tensor.tensor_type
        if tensor.name == change:
            kind = gguf.GGMLQuantizationType.IQ2_S if path.stem == "needy" else gguf.GGMLQuantizationType.F16
        data = np.zeros(gguf.quant_shape_to_byte_shape(shape, kind), np.uint8)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_converters_way_has_the_same_options(tmp_path: Path, models: Path) -> None:
    """An architecture that ggufy does not write itself: what the converter made, quantized with the same options."""
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = Starcoder2Config(**sizes, num_key_value_heads=2, vocab_size=768)
    Starcoder2ForCausalLM(config).to(torch.float16).save_pretrained(tmp_path / "model")
    for path in models.glob("tied/tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "f16.gguf")
    quantize(tmp_path / "f16.gguf", tmp_path / "theirs.gguf", "q4_k_m", ["attn_v=q8_0"], pure=True)
    options = TypeOptions.of(tensor_types=["attn_v=q8_0"], pure=True)
    quantizing.write(tmp_path / "f16.gguf", {"q4_k_m": tmp_path / "ours.gguf"}, {}, 2, None, options)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    published = TypeOptions.of(types_from=tmp_path / "theirs.gguf")
    quantizing.write(tmp_path / "f16.gguf", {"q4_k_m": tmp_path / "again.gguf"}, {}, 2, None, published)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    with pytest.raises(ExportError, match="matches no tensor of the model; the closest is attn_v"):
        quantizing.write(
            tmp_path / "f16.gguf",
            {"q4_k_m": tmp_path / "x.gguf"},
            {},
            2,
            None,
            TypeOptions.of(tensor_types=["attn_vv=q8_0"]),
        )
    assert contents(tmp_path / "theirs.gguf").tensors.keys() == contents(tmp_path / "f16.gguf").tensors.keys()
