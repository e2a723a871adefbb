"""The way through llama.cpp's converter as it comes, on Qwen2 with an adapter and Gemma 3 without.

Both are random and tiny, but for Qwen2's vocabulary, which is the real one: the converter knows it by its hash.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import sentencepiece
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ggufy import installed
from ggufy.data import source
from ggufy.errors import ExportError, ModelError
from ggufy.export import stream
from ggufy.export.adapter.adapter import Adapter
from ggufy.export.converter import conversion
from ggufy.export.kernel_agreement import agreed
from ggufy.export.sinks import MergedSink
from ggufy.llamacpp import gguf_reader, library
from ggufy.model import tiny
from ggufy.model.safetensors import Checkpoint
from ggufy.system import progress
from tests.oracle.converter import VENDOR, convert

# https://huggingface.co/Qwen/Qwen2-0.5B, tokenizer.json; llama.cpp's `llama-vocab.cpp` quotes it.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GENERAL = {"name": "a name of more than 127 bytes: " + "ö" * 100, "ggufy.version": "1.2.3", "ggufy.date": "2026-11-20"}
TEXT = "Wie spät ist es? It's 12:34\n\n  and cold."


NORMAL, CONTROL = 1, 3
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def keys(path: Path) -> dict[str, Any]:
    """Every key-value of a GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); gguf-py takes 8 s here."""
    data = path.read_bytes()
    place = 24

    def scalar(code: str) -> Any:
        nonlocal place
        place += struct.calcsize(code)
        return struct.unpack_from(f"<{code}", data, place - struct.calcsize(code))[0]

    def value(kind: int) -> Any:
        nonlocal place
        if kind in SCALARS:
            return scalar(SCALARS[kind])
        if kind == 9:
            inner, count = scalar("I"), scalar("Q")
            return [value(inner) for _ in range(count)]
        length = scalar("Q")
        place += length
        return data[place - length : place].decode()

    return {value(8): value(scalar("I")) for _ in range(struct.unpack_from("<Q", data, 16)[0])}


def tensors(path: Path) -> list[tuple[str, int, bytes]]:
    with path.open("rb") as file:
        return [
            (tensor.name, tensor.type, os.pread(file.fileno(), tensor.size, tensor.offset))
            for tensor in gguf_reader.read_gguf(path).tensors
        ]


def randomize(model: PreTrainedModel) -> None:
    """Every weight another than its neighbours: also biases and norms, which begin as zeros and ones."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.2 if "norm" in name else 0.0, 0.1)
        else:
            torch.nn.init.normal_(parameter, std=0.04)


def write_qwen2_tokenizer(folder: Path) -> None:
    known = keys(VENDOR / "models" / "ggml-vocab-qwen2.gguf")
    tokens, kinds, merges = (known[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "merges"))
    merges = [tuple(merge.split(" ", 1)) for merge in merges]
    vocab = {token: number for number, token in enumerate(tokens) if kinds[number] == NORMAL}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for number, token in enumerate(tokens) if kinds[number] == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save((folder / "tokenizer.json").as_posix())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2")
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    randomize(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    write_qwen2_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    base = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=modules))
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def merge(base: Path, adapter: Path, out: Path) -> None:
    weights = Checkpoint.open(base)
    planned, change = conversion.plan(base, weights), Adapter.open(adapter)
    change.check(weights, [str(tensor.source) for tensor in planned])
    with progress.bar("merging", 1) as bar:
        stream.run(planned, [MergedSink(out, base, planned, "F16")], agreed(planned, weights, change, "auto"), 2, bar)


@pytest.fixture(scope="module")
def merged(qwen2: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "model"
    merge(qwen2, adapter, folder)
    return folder


@pytest.fixture(scope="module")
def exported(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, scratch = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("scratch")
    outputs = {quant: folder / f"{quant}.gguf" for quant in ("q8_0", "f16", "q4_k_m")}
    conversion.check(merged)
    conversion.write(merged, outputs, GENERAL, scratch, 2)
    assert list(scratch.iterdir()) == []
    return outputs


def logits(path: Path, tokens: list[int], text: str, expected: list[int]) -> np.ndarray:
    """What llama.cpp predicts after each token; and it reads the text as the expected tokens."""
    model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
    assert model.tokenize(text.encode(), add_bos=False) == expected
    model.eval(tokens)
    found = np.array(model.scores[: len(tokens)])
    model.close()
    return found


def reference(model: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].float().numpy()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def test_qwen2_with_an_adapter_is_what_peft_runs(qwen2: Path, adapter: Path, exported: dict[str, Path]) -> None:
    tokens = [*range(100, 140), 151644, 151643]
    base = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    without = reference(base, tokens)
    expected = reference(PeftModel.from_pretrained(base, adapter), tokens)
    assert np.abs(expected - without).max() > 0.2 * np.abs(expected).max()
    ids = Tokenizer.from_file(str(qwen2 / "tokenizer.json")).encode(TEXT).ids
    assert_close(logits(exported["f16"], tokens, TEXT, ids), expected)


def test_each_quant_is_the_quantizers_of_the_converters_file(
    merged: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    theirs, quantized = tmp_path / "f16.gguf", tmp_path / "quantized.gguf"
    convert(merged, theirs, tiny=False)
    for quant, path in exported.items():
        expected = theirs
        if quant != "f16":
            expected = quantized
            library.quantize_file(theirs, quantized, library.ftypes()[quant])
        # The quantizer has its own order, also where it only copies.
        order = sorted if quant == "f16" else list
        assert order(tensors(path)) == order(tensors(expected))
        found, wanted = keys(path), keys(expected)
        assert found["general.file_type"] == library.ftypes()[quant]
        assert {name: found.get(f"general.{name}") for name in GENERAL} == GENERAL
        for name in {*found, *wanted}:
            assert name.startswith("general.") or found[name] == wanted[name]


def test_the_estimate_is_from_above(merged: Path, exported: dict[str, Path]) -> None:
    estimate = conversion.sizes(Checkpoint.open(merged), exported)
    for quant, path in exported.items():
        assert path.stat().st_size <= estimate[quant] <= 2 * path.stat().st_size
    assert exported["f16"].stat().st_size <= estimate["intermediate"]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text.encode("ascii", "ignore").decode() for text in source.sample_texts()),
            model_writer=file,
            model_type="bpe",
            vocab_size=512,
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    config = Gemma3TextConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=16,
        max_position_embeddings=512,
    )
    model = Gemma3ForCausalLM(config)
    randomize(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_gemma_is_what_transformers_runs(gemma: Path, tmp_path: Path) -> None:
    outputs = {quant: tmp_path / f"{quant}.gguf" for quant in ("bf16", "q8_0")}
    (tmp_path / "scratch").mkdir()
    conversion.check(gemma)
    conversion.write(gemma, outputs, GENERAL, tmp_path / "scratch", 2)
    assert list((tmp_path / "scratch").iterdir()) == []
    # Longer than the sliding window, in the weights that are in the file and in float32.
    tokens = [2, *range(300, 340)]
    ids = sentencepiece.SentencePieceProcessor(str(gemma / "tokenizer.model")).encode(TEXT)
    expected = reference(AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32), tokens)
    assert_close(logits(outputs["bf16"], tokens, TEXT, ids), expected)
    coarse = logits(outputs["q8_0"], tokens, TEXT, ids)
    assert np.abs(coarse - expected).max() < 0.1 * np.abs(expected).max()


def test_all_that_the_converter_reads_is_in_the_merged_folder(tmp_path: Path) -> None:
    """Tensors of any shape (experts, convolutions, scalars), and the tokenizer files of other families."""
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "tokenizer.model").write_bytes(b"pieces")
    torch.manual_seed(3)
    weights = {
        "experts": torch.randn(3, 700, 600).half(),
        "conv": torch.randn(8, 1, 4).half(),
        "scale": torch.tensor(0.5).half(),
    }
    save_file(weights, base / "model.safetensors")
    checkpoint = Checkpoint.open(base)
    planned = conversion.plan(base, checkpoint)
    with progress.bar("copying", 1) as bar:
        merging = agreed(planned, checkpoint, Adapter.none(), "auto")
        stream.run(planned, [MergedSink(out, base, planned, "F16")], merging, 2, bar)
    found = load_file(out / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert (out / "tokenizer.model").read_bytes() == b"pieces"


def test_what_cannot_be_merged_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file(
        {"x.attn.masked_bias": torch.ones(2, 2, dtype=torch.bool), "x.scale": torch.ones(2, dtype=torch.int32)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ExportError, match=r"x\.scale has type I32"):
        conversion.plan(tmp_path, Checkpoint.open(tmp_path))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(ExportError, match=r"quantized already \(gptq\)"):
        conversion.plan(tmp_path, Checkpoint.open(tmp_path))


def a_folder(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]} | config))
    return folder


def test_a_model_with_code_is_refused(tmp_path: Path) -> None:
    conversion.check(a_folder(tmp_path / "plain"))
    code = a_folder(tmp_path / "code")
    (code / "sub").mkdir()
    (code / "sub" / "modeling.py").write_text("raise SystemExit")
    with pytest.raises(ModelError, match=r"brings code: sub/modeling\.py"):
        conversion.check(code)
    with pytest.raises(ModelError, match="auto_map"):
        conversion.check(a_folder(tmp_path / "map", auto_map={"AutoConfig": "configuration.Config"}))
    with pytest.raises(ModelError, match="auto_map"):
        conversion.check(a_folder(tmp_path / "inner", text_config={"auto_map": {"AutoConfig": "a/b--c.D"}}))
    tokenizer = a_folder(tmp_path / "tokenizer")
    (tokenizer / "tokenizer_config.json").write_text(r'{"auto\u005fmap": {"AutoTokenizer": ["t.T", null]}}')
    for refuse in (conversion.check, lambda folder: conversion.write(folder, {}, {}, tmp_path, 1)):
        with pytest.raises(ModelError, match=r"tokenizer_config\.json: auto_map"):
            refuse(tokenizer)


def test_what_is_missing_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = a_folder(tmp_path / "plain")
    with pytest.raises(ExportError, match="does not know the architecture NobodysForCausalLM"):
        conversion.check(a_folder(tmp_path / "unknown", architectures=["NobodysForCausalLM"]))
    monkeypatch.setitem(conversion.PACKAGES, "no_such.module", "no-such-package")
    with pytest.raises(ExportError, match="needs no-such-package") as missing:
        conversion.check(plain)
    assert missing.value.hint == installed.command_for("no-such-package")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("GGUFY_LLAMA_CPP", str(tmp_path / "empty"))
    with pytest.raises(ExportError, match=r"GGUFY_LLAMA_CPP is .*, but no convert_hf_to_gguf\.py is there") as absent:
        conversion.check(plain)
    assert "make vendor" in str(absent.value.hint)


def test_a_tokenizer_that_the_converter_does_not_know(tmp_path: Path) -> None:
    base = tiny.ensure(source.sample_texts())
    config = json.loads((base / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 2000}
    folder = a_folder(tmp_path / "model", **config)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(base / name)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(ExportError, match="does not recognise the model's tokenizer"):
        conversion.write(folder, {"f16": tmp_path / "f16.gguf"}, {}, tmp_path / "scratch", 2)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "f16.gguf").exists()


# Ends that llama.cpp's converter may come to, but not when a test asks for them.
ENDS = {
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)": "killed by SIGKILL",
    "raise MemoryError": "ran out of memory",
    "raise ValueError('what it was')": "failed: ValueError: what it was",
    "assert 1 + 1 == 3  # why": r"failed: AssertionError: assert 1 \+ 1 == 3$",
    "import os\nassert os.environ['HF_HUB_OFFLINE'] + os.environ['TRANSFORMERS_OFFLINE'] == '11'": "exit code 0",
}


@pytest.mark.parametrize("code", ENDS)
def test_how_the_converter_ended_is_one_line(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text(code)
    monkeypatch.setenv("GGUFY_LLAMA_CPP", str(tmp_path))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ExportError, match=ENDS[code]) as raised:
        conversion.write(a_folder(tmp_path / "model"), {"f16": tmp_path / "out.gguf"}, {}, scratch, 1)
    assert "\n" not in raised.value.message
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_the_converter_ends_with_ggufy(stop: signal.Signals, tmp_path: Path) -> None:
    """Also where ggufy is killed: a converter left behind would write into the next attempt's file."""
    script = "import os, time\nopen('pid.part', 'w').write(str(os.getpid()))\nos.rename('pid.part', 'pid')\n"
    (tmp_path / "convert_hf_to_gguf.py").write_text(script + "time.sleep(600)")
    (tmp_path / "scratch").mkdir()
    code = "import sys\nfrom pathlib import Path\nfrom ggufy.export.converter import conversion\n"
    code += "a, b = map(Path, sys.argv[1:])\n"
    run = subprocess.Popen(
        [
            # A shell that runs the tests in the background has SIGINT ignored in all its children.
            *("env", "--default-signal=INT"),
            *(sys.executable, "-c", f"{code}conversion.write(a, {{'f16': b / 'x'}}, {{}}, b, 1)"),
            *(str(a_folder(tmp_path / "model")), str(tmp_path / "scratch")),
        ],
        env={**os.environ, "GGUFY_LLAMA_CPP": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    pid = tmp_path / "scratch" / "pid"
    wait_for(pid.exists)
    child = int(pid.read_text())
    run.send_signal(stop)
    run.wait(30)
    wait_for(lambda: not Path(f"/proc/{child}").exists())


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 30 s")
