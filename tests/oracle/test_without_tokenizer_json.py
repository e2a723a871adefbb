"""Models without tokenizer.json, but with tokenizer.model, or vocab.json and merges.txt: transformers makes one of it.

It is the judge of how text is read; what is written is what llama.cpp's converter writes of the folder as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2 as proto
from transformers import AutoTokenizer

from ggufy import installed
from ggufy.errors import ExportError, ModelError
from ggufy.export import families, vocab
from ggufy.model import bases, random_llama
from ggufy.model.llama3 import Shape
from ggufy.model.tokenizer import folder as folders
from ggufy.stages import training_tokenizer
from tests.oracle import small_tokenizers
from tests.oracle.converter import VENDOR, contents

Run = Callable[..., CompletedProcess[str]]
# By what they are like: the architecture, and what tokenizer_config.json says.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "llama", {"legacy": False}),
    "legacy": ("LlamaForCausalLM", "llama", {"legacy": True}),
    "mistral": ("MistralForCausalLM", "mistral", {"legacy": True}),
    "gemma": ("Gemma2ForCausalLM", "gemma2", {}),
    "phi": ("Phi3ForCausalLM", "phi3", {"legacy": False}),
    "qwen": ("Qwen2ForCausalLM", "qwen2", {"tokenizer_class": "Qwen2Tokenizer"}),
    "codellama": ("LlamaForCausalLM", "llama", {"legacy": True}),
}
# Transformers 5 puts a space before these only at the start of a text, or never: then the file says that there is none.
BARE = ("llama", "mistral", "phi")
INFILL = {32007: "▁<PRE>", 32008: "▁<SUF>", 32009: "▁<MID>", 32010: "▁<EOT>"}
TEXTS = ("Hello, world!", "What is  a pirate?\n\n    Two 12345", "naïve 你好 🌻", "[INST] Who? [/INST] Me.")
_CONVERT = """
import json, runpy, sys
sys.path.insert(0, sys.argv[1])
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"  # which it would know by the full vocabulary
for base in json.loads(sys.argv[2]):
    sys.argv = ["convert_hf_to_gguf.py", base, "--outfile", base + "/../theirs.gguf", "--vocab-only"]
    runpy.run_path(sys.path[0] + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def write(kind: str, base: Path) -> None:
    architecture, model_type, settings = KINDS[kind]
    base.mkdir(parents=True)
    rows = 32016 if kind == "codellama" else small_tokenizers.ROWS
    ids = small_tokenizers.write(model_type, base) if model_type != "llama" else small_tokenizers.llama(base)
    random_llama.write_model(base, Shape(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=32, vocab=rows))
    config = json.loads((base / "config.json").read_text("utf-8")) | {"architectures": [architecture]}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "rope_scaling"):
        config.pop(key, None)
    config |= {"model_type": model_type, "original_max_position_embeddings": 131072, **ids}
    config |= {"query_pre_attn_scalar": 16, "sliding_window": 64, "attn_logit_softcapping": 50.0}
    config |= {"final_logit_softcapping": 30.0, "rope_theta": 10000.0}
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    place = base / "tokenizer_config.json"
    told = json.loads(place.read_text("utf-8")) | settings
    if kind == "codellama":
        flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
        held = proto.ModelProto.FromString((base / "tokenizer.model").read_bytes())
        for number in range(len(held.pieces), 32016):
            name = INFILL.get(number)
            held.pieces.add(piece=name or f"\u00a4{number}", score=-float(number))
            if name:
                told["added_tokens_decoder"][str(number)] = {"content": name, **flags}
        (base / "tokenizer.model").write_bytes(held.SerializeToString())
    place.write_text(json.dumps(told), "utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By kind: the base, without tokenizer.json, and the converter's file."""
    folder = tmp_path_factory.mktemp("without")
    for kind in KINDS:
        write(kind, folder / kind / "base")
        shutil.copytree(folder / kind / "base", folder / kind / "with")
        if kind == "qwen":
            held = json.loads((folder / kind / "base" / "tokenizer.json").read_text("utf-8"))["model"]
            (folder / kind / "base" / "vocab.json").write_text(json.dumps(held["vocab"]), "utf-8")
            merges = "\n".join(" ".join(pair) for pair in held["merges"])
            (folder / kind / "base" / "merges.txt").write_text(merges, "utf-8")
        (folder / kind / "base" / "tokenizer.json").unlink()
    work = json.dumps([str(folder / kind / "base") for kind in KINDS])
    command = [sys.executable, "-c", _CONVERT, str(VENDOR), work]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def opened(made: Path, kind: str) -> bases.Base:
    return bases.opened(made / kind / "base", kind, said="the name")


def keys(base: Path, out: Path) -> dict[str, Any]:
    writer = gguf.GGUFWriter(out, "llama")
    families.read(base).add_vocab(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return contents(out).keys


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_is_the_converters(kind: str, made: Path, tmp_path: Path) -> None:
    ours = keys(opened(made, kind).path, tmp_path / "ours.gguf")
    theirs = {k: v for k, v in contents(made / kind / "theirs.gguf").keys.items() if k.startswith("tokenizer.")}
    if kind in BARE:
        assert ours.pop("tokenizer.ggml.add_space_prefix")[1] == [b"\0"]
    assert list(ours) == list(theirs)
    assert ours == theirs
    assert ("tokenizer.ggml.eot_token_id" in ours) is (kind == "codellama")


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_read_as_transformers_reads_it(kind: str, made: Path) -> None:
    judge = AutoTokenizer.from_pretrained(made / kind / "base")
    base = opened(made, kind).path
    tokenizer = folders.of(base)
    assert [tokenizer.backend.encode(text).ids for text in TEXTS] == [judge(text)["input_ids"] for text in TEXTS]
    families.read(base).check_vocab(vocab.Texts.of([(judge.bos_token or "") + text for text in TEXTS]))


def test_the_folder_is_left_as_it_is_and_made_once(made: Path) -> None:
    folder = made / "legacy" / "base"
    before = sorted(path.name for path in folder.iterdir())
    base = opened(made, "legacy")
    times = {path.name: path.stat().st_mtime_ns for path in base.path.iterdir()}
    assert base.path != folder
    assert sorted(times) == sorted([*before, "tokenizer.json", folders.MADE])
    assert {path.name: path.stat().st_mtime_ns for path in opened(made, "legacy").path.iterdir()} == times
    assert sorted(path.name for path in folder.iterdir()) == before
    (folder / "more.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    try:
        assert (opened(made, "legacy").path / "more.safetensors").is_file()
    finally:
        (folder / "more.safetensors").unlink()


def test_where_transformers_reads_otherwise_than_sentencepiece_is_said(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind, said in (("mistral", True), ("gemma", False)):
        shutil.copytree(made / kind / "base", tmp_path / kind)
        # Another file, so that it is not known yet.
        (tmp_path / kind / "added_tokens.json").write_text("{}\n ", "utf-8")
        caplog.clear()
        with caplog.at_level("WARNING", "ggufy"):
            bases.opened(tmp_path / kind, kind, said="the name")
        assert [line for line in caplog.messages if "otherwise than SentencePiece does: 'Hello' begins" in line] == (
            caplog.messages if said else []
        )
        assert bool(caplog.messages) is said


def test_a_space_that_llama_cpp_puts_twice_is_said_or_refused(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = opened(made, "legacy").path
    vocab._said.clear()
    with caplog.at_level("INFO", "ggufy"):
        vocab.check(base, small_tokenizers.ROWS, vocab.Texts.of(["<s>[INST] Who?"]))
    assert [line for line in caplog.messages if "one that begins with a space is read with one more" in line]
    with pytest.raises(ExportError, match="the first text that differs is '<s> Who\\?'"):
        vocab.check(base, small_tokenizers.ROWS, vocab.Texts.of(["<s> Who?"]))


def test_a_model_is_trained_exported_and_verified(run: Run, made: Path, tmp_path: Path) -> None:
    steps = ("--set", "train.max_steps=2", "--set", "train.save_steps=2")
    base = made / "legacy" / "base"
    done = run("train", "--recipe", "tiny", "--set", f"model.base={base}", *steps, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no tokenizer.json there; transformers makes it of tokenizer.model" in done.stderr
    done = run("export", "--quant", "q8_0", "--merged", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verified tiny-q8_0.gguf" in done.stderr
    assert not (base / "tokenizer.json").exists()
    [merged] = (tmp_path / "runs" / "tiny" / "export").rglob("tokenizer.model")
    assert not (merged.parent / "tokenizer.json").exists()
    # Which can be exported again, and says the same.
    done = run("export", str(merged.parent), "--quant", "q8_0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [again] = (tmp_path / "exports").rglob("*.gguf")
    assert contents(again) == contents(tmp_path / "runs" / "tiny" / "export" / "tiny-q8_0.gguf")


def test_an_adapters_own_tokenizer_has_it_made_too(made: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(made / "legacy" / "base" / name, tmp_path / name)
    base = made / "legacy" / "with"
    assert training_tokenizer.of(base, tmp_path).path == base
    # The base's own is of the same model file.
    (tmp_path / "chat_template.jinja").write_text(small_tokenizers.INST, "utf-8")
    taken = training_tokenizer.of(base, tmp_path).path
    assert taken != base
    assert (taken / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    # On another base, whose embedding it brings anew.
    embedding = {"base_model.model.model.embed_tokens.weight": torch.zeros(640, 8)}
    save_file(embedding, tmp_path / "adapter_model.safetensors")
    other = made / "gemma" / "with"
    found = training_tokenizer.of(other, tmp_path)
    assert found.said is not None
    judge = AutoTokenizer.from_pretrained(tmp_path)
    ids = [folders.FolderTokenizer(found.path).backend.encode(text).ids for text in TEXTS]
    assert ids == [judge(text)["input_ids"] for text in TEXTS]
    assert not (tmp_path / "tokenizer.json").exists()


def test_what_cannot_be_made_says_how(made: Path, tmp_path: Path) -> None:
    cases = {
        "damaged": (
            b"\x0a\x05ab",
            "none of SentencePiece's: .* package tiktoken",
            "install tiktoken",
        ),
        "unigram": (small_tokenizers.model(kind="unigram"), "of SentencePiece's kind UNIGRAM", "copy tokenizer.json"),
    }
    for name, (content, says, hint) in cases.items():
        base = tmp_path / name
        shutil.copytree(made / "mistral" / "base", base)
        (base / "tokenizer.model").write_bytes(content)
        with pytest.raises(ModelError, match=says) as raised:
            bases.opened(base, name, said="the name")
        assert hint in (raised.value.hint or "")


_WITHOUT = """
import sys
from importlib.machinery import PathFinder as finder
find = finder.find_spec
finder.find_spec = lambda name, path=None, target=None: None if name == sys.argv[1] else find(name, path, target)
from pathlib import Path
from ggufy.errors import GgufyError
from ggufy.model import bases
try:
    bases.opened(Path(sys.argv[2]), "it", said="the name")
except GgufyError as error:
    print(error.message, "|", error.hint)
"""


@pytest.mark.parametrize("package", ["transformers", "sentencepiece"])
def test_a_package_that_lacks_is_named(package: str, made: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT, package, str(made / "gemma" / "base")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "GGUFY_CACHE": str(tmp_path)}
    )
    expected = f"making the tokenizer.json of it needs the package {package}, which is not installed"
    assert done.stdout == f"{expected} | {installed.command('train')}\n"
