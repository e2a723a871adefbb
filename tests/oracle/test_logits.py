"""A file is compared with the training model itself: what says something else never gets its final name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from ggufy import pipeline
from ggufy.errors import Unverified
from ggufy.export import engine, imatrix
from ggufy.llamacpp import gguf_reader
from ggufy.model import random_llama
from ggufy.model.llama3 import Shape
from ggufy.runs import run
from ggufy.stages import model_source
from ggufy.verify import reference
from ggufy.verify.checks import verify
from ggufy.verify.expected import Expected
from ggufy.verify.reference import Reference
from tests.oracle.converter import export
from tests.oracle.test_export_bytes import MODULES, make_adapter

Run = Callable[..., CompletedProcess[str]]
RNG = np.random.default_rng(11)
OWN = [[736, *RNG.integers(0, 700, length).tolist()] for length in (20, 60)]
WEIGHTS = "its weights are not those of the training model"


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    make_adapter(base, LoraConfig(r=8, lora_alpha=16, target_modules=MODULES), folder)
    return folder


@pytest.fixture(scope="module")
def expected(base: Path, adapter: Path) -> Reference:
    found = reference.of(base, adapter, lambda: OWN)
    assert found.texts
    return found


@pytest.fixture(scope="module")
def made(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    export(base, adapter, {name: folder / f"{name}.gguf" for name in ("f32", "f16", "bf16", "q8_0", "q4_k_m", "q2_k")})
    imatrix.compute(folder / "f16.gguf", OWN, "own", folder / "matrix", 2)
    matrix = imatrix.read(folder / "matrix")
    export(base, adapter, {name: folder / f"{name}.gguf" for name in ("iq1_s", "iq2_xxs")}, imatrix=matrix)
    return folder


def test_the_reference_is_peft_in_float32(base: Path, adapter: Path, expected: Reference) -> None:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    merged = model.merge_and_unload().eval()
    assert [list(text) for text in expected.texts[:2]] == OWN
    assert len(expected.texts) == 3
    with torch.inference_mode():
        for text, logits in zip(expected.texts, expected.logits, strict=True):
            theirs = merged(torch.tensor([list(text)])).logits[0].numpy()
            np.testing.assert_allclose(logits, theirs, atol=1e-4 * np.abs(theirs).max())


def test_a_correct_file_passes_and_states_its_figures(made: Path, base: Path, expected: Reference) -> None:
    positions = sum(len(text) for text in expected.texts)
    near = {}
    for path in made.glob("*.gguf"):
        found = verify(path, base, 2, expected)
        assert found.closeness is not None
        assert found.closeness.positions == positions
        near[path.stem] = found.closeness
        figures = (
            r"logits off by \S+%, \S+% same top token, KL \S+, \S+ of what training changed, over "
            + f"{positions} positions"
        )
        assert re.search(f"against the training model: {figures}$", found.text())
    assert near["f32"].relative < 2e-3
    assert near["f16"].relative < 2e-3
    assert near["bf16"].relative < 2e-2
    order = [near[name].divergence for name in ("f16", "q8_0", "q4_k_m", "q2_k", "iq1_s")]
    assert order == sorted(order)
    assert near["f16"].agreement > 0.98
    assert -1e-9 < near["f16"].divergence < 1e-4


@pytest.mark.parametrize("quant", ["f16", "bf16", "f32", "q8_0", "q4_k_m"])
def test_weights_without_the_adapter(
    quant: str, base: Path, adapter: Path, expected: Reference, tmp_path: Path
) -> None:
    """An adapter that was silently lost is the worst that can happen to an export."""
    export(base, None, {quant: tmp_path / "x.gguf"})
    with pytest.raises(Unverified, match=WEIGHTS):
        verify(tmp_path / "x.gguf", base, 2, expected)
    with pytest.raises(Unverified, match=WEIGHTS):
        verify(tmp_path / "x.gguf", base, 2, expected=Expected.of(base, adapter))


@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_k_m", "q2_k", "iq1_s"])
def test_the_rows_alone_tell_a_part_of_an_adapter(quant: str, made: Path, base: Path, adapter: Path) -> None:
    """Without torch; also where an importance matrix has changed what rounding takes."""
    assert verify(made / f"{quant}.gguf", base, 2, expected=Expected.of(base, adapter)).rows == 126
    for share in (0.5, 2.0):
        expected = Expected.of(base, adapter)
        assert expected is not None
        for delta in expected.merge.adapter.deltas.values():
            delta.scaling *= share
        with pytest.raises(Unverified, match=WEIGHTS):
            verify(made / f"{quant}.gguf", base, 2, expected=expected)


@pytest.mark.parametrize("quant", ["q8_0", "q6_k"])
def test_finely_rounded_logits_are_near(quant: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    """A norm of zeros in a fine quant: found by the logits too, which know nothing of ggufy's own merge."""
    export(base, adapter, {quant: tmp_path / "x.gguf"})
    found = reference.of(base, adapter, lambda: OWN)
    near = verify(tmp_path / "x.gguf", base, 2, found).closeness
    assert near is not None
    assert near.relative < 0.15
    slot = next(t for t in gguf_reader.read_gguf(tmp_path / "x.gguf").tensors if t.name == "blk.0.ffn_norm.weight")
    data = bytearray((tmp_path / "x.gguf").read_bytes())
    data[slot.offset : slot.offset + slot.size] = bytes(slot.size)
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(Unverified, match=WEIGHTS):
        verify(tmp_path / "x.gguf", base, 2, found)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_half_an_adapter(share: float, base: Path, adapter: Path, expected: Reference, tmp_path: Path) -> None:
    less = Path(shutil.copytree(adapter, tmp_path / "less"))
    config = json.loads((less / "adapter_config.json").read_text())
    (less / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * share}))
    export(base, less, {"q8_0": tmp_path / "x.gguf"})
    with pytest.raises(
        Unverified, match=rf"{WEIGHTS}.* ({10 * share:.0f}\d|{10 * share - 1:.0f}9)% of what training changed"
    ):
        verify(tmp_path / "x.gguf", base, 2, expected)


@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_k_m", "q2_k"])
def test_weights_of_another_model(quant: str, base: Path, expected: Reference, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    vocab = json.loads((base / "config.json").read_text())["vocab_size"]
    random_llama.write_model(other, Shape(layers=4, hidden=256, heads=8, kv_heads=2, head_dim=32, ffn=768, vocab=vocab))
    export(other, None, {quant: tmp_path / "x.gguf"})
    with pytest.raises(Unverified, match=WEIGHTS):
        verify(tmp_path / "x.gguf", base, 2, expected)


def edited(source: Path, target: Path, tensor: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy with other, still valid, 16-bit values in one tensor."""
    slot = next(slot for slot in gguf_reader.read_gguf(source).tensors if slot.name == tensor)
    data = bytearray(source.read_bytes())
    values = np.frombuffer(data, np.float16, slot.size // 2, slot.offset).copy()
    data[slot.offset : slot.offset + slot.size] = change(values).astype(np.float16).tobytes()
    target.write_bytes(data)
    return target


CHANGES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "zeros": ("blk.2.ffn_up.weight", np.zeros_like),
    "rows not permuted": ("blk.1.attn_q.weight", lambda values: np.roll(values.reshape(256, 256), 1, 0).reshape(-1)),
    "another sign": ("blk.0.attn_v.weight", np.negative),
    "another scale": ("blk.3.ffn_down.weight", lambda values: values * np.float16(1.1)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_one_wrong_tensor(kind: str, made: Path, base: Path, expected: Reference, tmp_path: Path) -> None:
    path = edited(made / "f16.gguf", tmp_path / "x.gguf", *CHANGES[kind])
    assert verify(path, base, 2).tensors == 39
    with pytest.raises(Unverified, match=WEIGHTS):
        verify(path, base, 2, expected)


def test_logits_that_are_no_numbers(made: Path, base: Path, expected: Reference) -> None:
    broken = Reference(expected.texts, [np.full_like(logits, np.nan) for logits in expected.logits])
    for quant in ("f16", "q4_k_m"):
        with pytest.raises(Unverified, match=WEIGHTS):
            verify(made / f"{quant}.gguf", base, 2, broken)


def test_the_cause_is_named_before_the_weights(made: Path, base: Path, expected: Reference, tmp_path: Path) -> None:
    """A wrong template or tokenizer says so, and not that the weights are wrong."""
    other = Path(shutil.copytree(base, tmp_path / "template"))
    config = json.loads((other / "tokenizer_config.json").read_text())
    config["chat_template"] += " "
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(Unverified, match="its chat template is not the base's"):
        verify(made / "f16.gguf", other, 2, expected)
    other = Path(shutil.copytree(base, tmp_path / "tokenizer"))
    spec = json.loads((other / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    (other / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(Unverified, match="differently from the base's tokenizer"):
        verify(made / "f16.gguf", other, 2, expected)


def test_a_wrong_file_stays_under_partial(quick: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that writes one matrix wrong, through the whole of `export`."""
    monkeypatch.chdir(quick)
    whole = engine.export

    def wrong(request: engine.Request, threads: int | None = None) -> None:
        whole(request, threads)
        place = request.outputs["f16"]
        edited(place, place, "blk.1.attn_output.weight", np.negative)

    monkeypatch.setattr(engine, "export", wrong)
    found = model_source.of_run(run.find("quick"))
    monkeypatch.setattr(
        model_source, "of_run", lambda this: model_source.ModelSource(**{**vars(found), "output_folder": this})
    )
    with pytest.raises(Unverified, match=WEIGHTS):
        pipeline.export("quick", quants=["f16"])
    assert base.is_dir()
    assert not (quick / "runs/quick/export/quick-f16.gguf").exists()
    assert len(list((quick / "runs/quick/partial").rglob("quick-f16.gguf"))) == 1
    monkeypatch.setattr(engine, "export", whole)
    made = pipeline.export("quick", quants=["f16"])
    assert made["f16"].path.is_file()
    assert not (quick / "runs/quick/partial").exists()


def test_a_wrong_file_that_was_not_verified_is_made_again(
    quick: Path, base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(quick)
    whole = engine.export

    def wrong(request: engine.Request, threads: int | None = None) -> None:
        whole(request, threads)
        edited(request.outputs["f16"], request.outputs["f16"], "blk.1.attn_output.weight", np.negative)

    monkeypatch.setattr(engine, "export", wrong)
    found = model_source.of_run(run.find("quick"))
    monkeypatch.setattr(
        model_source, "of_run", lambda this: model_source.ModelSource(**{**vars(found), "output_folder": this})
    )
    path = pipeline.export("quick", quants=["f16"], check_files=False)["f16"].path
    before = path.read_bytes()
    assert pipeline.export("quick", quants=["f16"], check_files=False)["f16"].reused
    with pytest.raises(Unverified, match=r"row 0 of blk\.1\.attn_output\.weight is off by 200%"):
        pipeline.export("quick", quants=["f16"], check_logits=False)
    assert pipeline.gguf_of("quick").name == "quick-q8_0.gguf"
    monkeypatch.setattr(engine, "export", whole)
    with caplog.at_level("WARNING", "ggufy"):
        assert not pipeline.export("quick", quants=["f16"], check_logits=False)["f16"].reused
    assert path.read_bytes() != before
    assert pipeline.gguf_of("quick") == path
    assert base.is_dir()


def test_the_command_states_the_figures(quick: Path, run: Run) -> None:
    done = run("export", "quick", "--quant", "f16", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert re.search(r"verified quick-f16\.gguf: .*; against the training model: logits off by 0\.\d+%", done.stderr)


# As on a machine with only the light core: these packages are not there.
LIGHT = """
import importlib.util, sys
there = importlib.util.find_spec
gone = ("torch", "transformers", "peft", "datasets", "pyarrow", "trl", "bitsandbytes", "accelerate", "safetensors")
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in gone else there(name, package)
sys.argv = ["ggufy", *sys.argv[1:]]
from ggufy.cli import entry
sys.exit(entry())
"""


def light(env: dict[str, str], cwd: Path, *args: str) -> CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LIGHT, *args], cwd=cwd, env=env, capture_output=True, text=True)


def test_without_torch(quick: Path, env: dict[str, str]) -> None:
    """A checkpoint and a run alike are exported and verified, and it is said what was not compared."""
    (quick / "mine").symlink_to(quick / "runs/quick/adapter")
    for what in ("quick", "mine"):
        done = light(env, quick, "export", what, "--quant", "f16")
        assert done.returncode == 0, done.stderr
        said = "logits are not compared with the training model: torch is not installed"
        assert done.stderr.count(said) == 1
        assert "15 probe texts tokenized as the base does" in done.stderr
        assert "logits off" not in done.stderr
    done = light(env, quick, "verify", "quick")
    assert done.returncode == 0, done.stderr
