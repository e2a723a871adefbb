"""Each family in one pass against llama.cpp's converter, quantizer and runtime, on a tiny random checkpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import datasets
import llama_cpp
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from ggufy.errors import ExportError
from ggufy.export import families
from ggufy.llamacpp import library
from ggufy.model.safetensors import Checkpoint
from ggufy.model.tokenizer import folder as folders
from ggufy.plan import footprint
from ggufy.recipe.schema import Lora
from ggufy.stages import vocabulary
from ggufy.verify import reference
from ggufy.verify.checks import verify
from ggufy.verify.expected import Expected
from tests.oracle import small_tokenizers
from tests.oracle.converter import VENDOR, Contents, contents, export

Run = Callable[..., CompletedProcess[str]]
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,  # SmolLM3 leaves every fourth as it is
    "max_position_embeddings": 128,
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
THETAS = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 300000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
FACTORS = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0 + 0.25 * n for n in range(24)],
    "short_factor": [1.0 + 0.01 * n for n in range(24)],
}
ODD = {"attention_multiplier": 0.1, "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "logits_scaling": 4.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("MistralConfig", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {"rope_parameters": {"rope_theta": 1000000.0}}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3Config", {}),
    "granite": ("GraniteConfig", {"attention_bias": True, "mlp_bias": True, **ODD}),
    "gemma2": ("Gemma2Config", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 6, "rope_parameters": THETAS}),
    "phi3": ("Phi3Config", {}),
    "phi4": (
        "Phi3Config",
        {
            "original_max_position_embeddings": 16,
            "partial_rotary_factor": 0.75,
            "rope_parameters": FACTORS,
            "sliding_window": 100,
            "tie_word_embeddings": True,
        },
    ),
}
# What is added to a norm is rounded as the checkpoint is.
DTYPES = {"gemma3": torch.bfloat16, "qwen3": torch.bfloat16}
# Not from a list of ours: what peft calls all-linear.
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
TEXT = [736, *np.random.default_rng(3).integers(0, 700, 40).tolist()]

# What the converter would know by the full vocabulary. Granite's is `refact`, which llama.cpp reads as it reads this.
KINDS = {"qwen2": "qwen2", "qwen3": "qwen2", "smollm3": "llama-bpe", "granite": "smollm", "phi4": "gpt-2"}
# All in one process, as most of its time goes into the start. The vocabulary's kind is told, as in converter.py.
_CONVERT = """
import json, runpy, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conversion.base import TextModel
kinds = json.loads(sys.argv[3])
TextModel.get_vocab_base_pre = lambda self, tokenizer: kinds[self.dir_model.parent.name]
for script, *arguments in json.loads(Path(sys.argv[2]).read_text()):
    sys.argv = [script, *arguments]
    runpy.run_path(str(Path(sys.path[0]) / script), run_name="__main__")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By family: base, adapter, ours and theirs."""
    folder, work = tmp_path_factory.mktemp("families"), []
    for family in FAMILIES:
        here = folder / family
        make(here, family)
        outputs = {name: here / f"{name}.gguf" for name in ("f16", "q8_0", "q4_k_m", "f32")}
        export(here / "base", None, outputs)
        outputs = {"f16": here / "tuned.gguf", "merged": here / "merged", "adapter": here / "adapter.gguf"}
        export(here / "base", here / "adapter", outputs)
        for name, given, kind in (("base", "base", "f16"), ("f32", "base", "f32"), ("merged", "merged", "f16")):
            out = str(here / f"theirs-{name}.gguf")
            work.append(["convert_hf_to_gguf.py", str(here / given), "--outfile", out, "--outtype", kind])
        out = str(here / "theirs-adapter.gguf")
        lora = ["--base", str(here / "base"), "--outfile", out, str(here / "adapter")]
        work.append(["convert_lora_to_gguf.py", *lora])
    (folder / "work.json").write_text(json.dumps(work))
    command = [sys.executable, "-c", _CONVERT, str(VENDOR), str(folder / "work.json"), json.dumps(KINDS)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def make(here: Path, family: str) -> None:
    """A random base with a tokenizer, in float16, and an adapter on all of its linear modules."""
    (here / "base").mkdir(parents=True)
    ids = small_tokenizers.write(family, here / "base")
    name, own = FAMILIES[family]
    # Else transformers writes those of its own config.
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **ids}
    config = getattr(transformers, name)(**{**SIZES, **ids, "vocab_size": small_tokenizers.ROWS, **own})
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        # Norms and biases too, which begin as ones and zeros.
        parameter.data += torch.randn_like(parameter) * 0.05
    model.to(DTYPES.get(family, torch.float16)).save_pretrained(here / "base")
    tuned = get_peft_model(model.float(), LoraConfig(**LORA))
    for key, parameter in tuned.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.02)
    tuned.save_pretrained(here / "adapter")


def assert_same(ours: Contents, theirs: Contents) -> None:
    assert list(ours.keys) == list(theirs.keys)
    assert ours.keys == theirs.keys
    assert list(ours.tensors) == list(theirs.tensors)
    assert [name for name in theirs.tensors if ours.tensors[name] != theirs.tensors[name]] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_is_the_converters(family: str, made: Path) -> None:
    here = made / family
    for ours, theirs in (("f16", "base"), ("f32", "f32"), ("tuned", "merged")):
        one, other = contents(here / f"{ours}.gguf"), contents(here / f"theirs-{theirs}.gguf")
        if (family, ours) == ("gemma3", "tuned"):
            # The merged folder is float16, where the base is not.
            for file in (one, other):
                file.tensors = {name: held for name, held in file.tensors.items() if "norm" not in name}
        assert_same(one, other)
    assert_same(contents(here / "adapter.gguf"), contents(here / "theirs-adapter.gguf"))
    for quant in ("q8_0", "q4_k_m"):
        library.quantize_file(here / "f16.gguf", here / "expected.gguf", library.ftypes()[quant])
        assert (here / f"{quant}.gguf").read_bytes() == (here / "expected.gguf").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_transformers_computes(family: str, made: Path) -> None:
    # PyTorch's fused attention leaves out Gemma 2's soft cap.
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(made / family / "base", **settings).eval()
    with torch.inference_mode():
        theirs = model(torch.tensor([TEXT])).logits[0].numpy()
    runtime = llama_cpp.Llama(str(made / family / "f32.gguf"), n_ctx=128, logits_all=True, verbose=False)
    runtime.eval(TEXT)
    ours = np.array(runtime.scores[: len(TEXT)])
    runtime.close()
    assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tuned_file_is_verified(family: str, made: Path) -> None:
    base, adapter = made / family / "base", made / family / "adapter"
    training = reference.of(base, adapter, lambda: [TEXT])
    found = verify(made / family / "tuned.gguf", base, 2, training, Expected.of(base, adapter))
    assert found.rows > 20
    assert found.closeness is not None
    assert found.closeness.relative < 0.01
    assert verify(made / family / "adapter.gguf", None, 2, expected=Expected.of(base, adapter)).adapter_tensors > 10


def test_a_family_with_fused_modules_is_trained_and_exported(run: Run, made: Path, tmp_path: Path) -> None:
    steps = ("--set", "train.max_steps=2", "--set", "train.save_steps=2")
    done = run("train", "--recipe", "tiny", "--set", f"model.base={made / 'phi4' / 'base'}", *steps, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "runs" / "tiny" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    done = run("export", "--quant", "q8_0", "--adapter-gguf", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"verified tiny-q8_0\.gguf: .* of what training changed", done.stderr)
    assert (tmp_path / "runs" / "tiny" / "export" / "tiny-q8_0.Modelfile").is_file()


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_gemma_is_trained_and_exported(family: str, run: Run, made: Path, tmp_path: Path) -> None:
    """Conversations in one row are kept apart, with Gemma 2's caps too."""
    base = Path(shutil.copytree(made / family / "base", tmp_path / "base"))
    ends = [folders.open_backend(base).token_to_id(name) for name in ("<eos>", "<end_of_turn>")]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    turns = [[("user", f"{n} and {n}?"), ("assistant", f"{2 * n}, or {n} twice.")] for n in range(12)]
    rows = [json.dumps({"messages": [{"role": who, "content": said} for who, said in row]}) for row in turns]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    wanted = (f"model.base={base}", "data.source=data.jsonl", "data.train_size=null", "train.packing=true")
    steps = ("train.max_steps=2", "train.save_steps=2")
    given = [part for each in (*wanted, *steps) for part in ("--set", each)]
    done = run("train", "--recipe", "tiny", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    packed = re.search(r"packed: 12 conversations in (\d+) rows", done.stderr)
    assert packed
    assert int(packed[1]) < 12
    [first] = (json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()[:1])
    assert first["loss"] == pytest.approx(own_loss(base, tmp_path / "runs/tiny/data/train.arrow"), rel=1e-4)
    done = run("export", "--quant", "f16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"verified tiny-f16\.gguf: .*against the training model: logits off by 0\.\d+%", done.stderr)


@torch.inference_mode()
def own_loss(base: Path, rows: Path) -> float:
    """Of the base by transformers, each conversation by itself."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    total, count = 0.0, 0
    for row in datasets.Dataset.from_file(str(rows)):
        labels = torch.tensor(row["labels"])[1:]
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize(
    ("family", "name", "becomes"),
    [
        ("phi3", "mine", "mine (phi-3)"),
        ("phi3", "My-PHI3", "My-PHI3"),
        ("mistral", "not-Phi-3", "not-Phi 3"),
        ("qwen3", "from-phi3", "from-Phi 3"),
        ("qwen3", "mine", "mine"),
    ],
)
def test_the_name_is_one_that_llama_cpp_reads_its_marks_by(family: str, name: str, becomes: str, made: Path) -> None:
    assert families.read(made / family / "base").named({"name": name}) == {"name": becomes}
    texts = ["<|user|>\n Hi.<|end|>\n", "<s>\n Hi.</s>\n"]
    expected = [folders.open_backend(made / family / "base").encode(text, add_special_tokens=False) for text in texts]
    out = made / family / f"{becomes}.gguf"
    export(made / family / "base", None, {"f16": out}, {"name": name})
    model = llama_cpp.Llama(str(out), vocab_only=True, verbose=False)
    assert [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts] == [e.ids for e in expected]
    model.close()


def test_marks_that_take_white_space_along(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp's do not: that is said, and refused where the chat template writes any beside one."""
    base = Path(shutil.copytree(made / "phi4" / "base", tmp_path / "base"))
    with caplog.at_level("INFO", "ggufy"):
        vocabulary.check(base, None)
        vocabulary.check_conversation(base, base)
    assert "'<|endoftext|>', '<|im_end|>', '<|im_sep|>' and white space beside it are one token there" in caplog.text
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = settings["chat_template"].replace("<|im_sep|>", "<|im_sep|>\\n")
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ExportError, match=r"the first text that differs is '<\|im_start\|>system<\|im_sep\|>\\nBe brief"
    ):
        vocabulary.check_conversation(base, base)


def test_a_window_that_llama_cpp_leaves_out_is_said(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "ggufy"):
        for family in FAMILIES:
            families.read(made / family / "base").say_limits()
    [said] = caplog.messages
    assert "a sliding window of 100 tokens, which llama.cpp does not use for a Phi-3" in said


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_what_is_there(family: str, made: Path) -> None:
    shape = families.read(made / family / "base").shape
    assert shape.tensors() == {n: t.shape for n, t in Checkpoint.open(made / family / "base").tensors.items()}
    trained = Checkpoint.open(made / family / "adapter" / "adapter_model.safetensors")
    expected = sum(int(np.prod(tensor.shape)) for tensor in trained.tensors.values())
    # The recipe's "all" is peft's all-linear, also where a family has several modules as one.
    assert footprint.trainable(shape, Lora(r=4)) == expected


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "window": ("qwen2", {"use_sliding_window": True}, "use_sliding_window is true, and llama.cpp lets every layer"),
    "llama3 rope": (
        "qwen3",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
        "rope_type is llama3, and llama.cpp does not scale the rotation of a Qwen3 so",
    ),
    "activation": ("gemma2", {"hidden_activation": "relu"}, "hidden_activation is relu"),
    "biases": ("qwen3", {"attention_bias": True}, "attention_bias is true, and llama.cpp knows no bias"),
    "other layers": ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, r"leaves out layers \[2\]"),
    "head": ("granite", {"head_dim": 32}, "head_dim is 32, and llama.cpp takes 256 / 4"),
    "scale": ("gemma3", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64"),
    "pattern": ("gemma3", {"sliding_window_pattern": 3}, "sliding_window_pattern is 3"),
    "layers": ("gemma2", {"layer_types": ["full_attention"] * 4}, "layer_types is another"),
    "theta": ("gemma2", {"rope_parameters": {"rope_theta": 5000.0}}, "rope_theta 5000"),
    "factors": ("phi4", {"rope_parameters": {**FACTORS, "long_factor": [1.0]}}, "long_factor has 1 numbers"),
    "attention": ("phi4", {"rope_parameters": {**FACTORS, "attention_factor": 1.5}}, "attention_factor is 1.5"),
    "context": ("phi4", {"rope_parameters": {**FACTORS, "factor": 32.0}}, r"is 1.5, .* is told 1\.323"),
    "no factor": ("gemma3", {"rope_scaling": {"rope_type": "linear"}, "rope_parameters": None}, "has no factor"),
    "no object": ("gemma3", {"rope_scaling": "linear", "rope_parameters": None}, "rope_scaling should be"),
    "no cap": ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(case: str, made: Path, tmp_path: Path) -> None:
    family, change, says = REFUSED[case]
    config = json.loads((made / family / "base" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ExportError, match=says):
        families.read(tmp_path)


def test_what_config_leaves_out_is_as_transformers_has_it(made: Path, tmp_path: Path) -> None:
    config = json.loads((made / "gemma2" / "base" / "config.json").read_text())
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    (tmp_path / "config.json").write_text(json.dumps({key: config[key] for key in config.keys() - caps}))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert [families.read(tmp_path).config[cap] for cap in caps] == [getattr(theirs, cap) for cap in caps]
