"""Verify finds what is wrong with a file, names the cause, and never lets such a file have its final name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ggufy import ggml
from ggufy.errors import Unverified
from ggufy.export.verify import verify
from tests.oracle.converter import export

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    quants = ["f16", "q8_0", "q4_k_m", "q2_k", "iq4_xs", "mxfp4_moe"]
    export(base, None, {quant: folder / f"{quant}.gguf" for quant in quants}, {"name": "tiny"})
    return folder


@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_k_m", "q2_k", "iq4_xs", "mxfp4_moe"])
def test_a_sound_file(quant: str, made: Path, base: Path) -> None:
    found = verify(made / f"{quant}.gguf", base, 2)
    assert found.tensors == 39
    assert found.probes >= 15


def damaged(source: Path, target: Path, tensor: str, pattern: bytes) -> Path:
    """A copy with the first bytes of a tensor's data replaced."""
    data = bytearray(source.read_bytes())
    slot = next(t for t in ggml.read_gguf(source).tensors if t.name == tensor)
    data[slot.offset : slot.offset + len(pattern)] = pattern
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(("quant", "nan"), [("f16", b"\x00\x7e"), ("q8_0", b"\x00\x7e"), ("q4_k_m", b"\x00\x7e")])
def test_a_scale_that_is_no_number(quant: str, nan: bytes, made: Path, base: Path, tmp_path: Path) -> None:
    path = damaged(made / f"{quant}.gguf", tmp_path / "x.gguf", "blk.1.ffn_up.weight", nan)
    with pytest.raises(Unverified, match=r"blk\.1\.ffn_up\.weight is not valid"):
        verify(path, base, 2)


def test_another_template(made: Path, base: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    config = json.loads((other / "tokenizer_config.json").read_text())
    config["chat_template"] = config["chat_template"].replace("Today Date", "Date")
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(Unverified, match="chat template is not the base's"):
        verify(made / "q8_0.gguf", other, 2)


def test_another_tokenizer(made: Path, base: Path, tmp_path: Path) -> None:
    """Two tokens swapped: the file loads and talks, and means something else."""
    other = Path(shutil.copytree(base, tmp_path / "other"))
    spec = json.loads((other / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    (other / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(Unverified, match="differently from the base's tokenizer, at token"):
        verify(made / "q8_0.gguf", other, 2)


def test_every_export_is_verified(quick: Path, run: Run) -> None:
    done = run("export", "quick", "--quant", "q4_0", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert "verified quick-q4_0.gguf: 39 tensors valid" in done.stderr
    assert "against the training model: logits off by" in done.stderr
    assert "verified" not in run("export", "quick", "--quant", "q4_1", "--no-verify", cwd=quick).stderr


def test_the_training_model_can_be_left_out(quick: Path, run: Run) -> None:
    done = run("export", "quick", "--quant", "q5_1", "--no-logits", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert "verified quick-q5_1.gguf: 39 tensors valid, loads in llama.cpp, 15 probe texts" in done.stderr
    assert "against the training model" not in done.stderr
    again = run("verify", "quick", "--no-logits", cwd=quick)
    assert again.returncode == 0, again.stderr
    assert "quick-q5_1.gguf: 39 tensors valid" in again.stdout
    assert "against the training model" not in again.stdout


def test_a_template_with_two_bos_is_refused_and_kept_for_a_look(base: Path, run: Run, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{- bos_token }}" + config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    done = run("export", "model", "--quant", "q8_0", cwd=tmp_path)
    assert done.returncode == 1
    assert "writes 2 BOS tokens" in done.stderr
    assert not list(tmp_path.glob("exports/model/*.gguf"))
    assert len(list(tmp_path.glob("exports/model/partial/*/model-q8_0.gguf"))) == 1


def test_verify_a_run_and_a_damaged_one(quick: Path, run: Run) -> None:
    done = run("verify", "quick", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert "adapter: as it was made" in done.stdout
    assert "quick-q8_0.gguf: 39 tensors valid" in done.stdout
    path = quick / "runs/quick/export/quick-q8_0.gguf"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    done = run("verify", "quick", cwd=quick)
    assert done.returncode == 1
    assert "quick-q8_0.gguf was changed since it was made" in done.stderr


def test_verify_one_file(quick: Path, run: Run) -> None:
    done = run("verify", "runs/quick/export/quick-q8_0.gguf", cwd=quick)
    assert done.stdout == "quick-q8_0.gguf: 39 tensors valid, loads in llama.cpp\n"


def test_files_that_ggufy_did_not_make_are_not_written_over(base: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    mine = tmp_path / "out/model-q8_0.gguf"
    mine.parent.mkdir()
    mine.write_text("mine")
    done = run("export", "model", "--quant", "q8_0", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "ggufy did not make it" in done.stderr
    assert mine.read_text() == "mine"
    assert run("export", "model", "--quant", "q8_0", "--out", "out", "--force", cwd=tmp_path).returncode == 0
    assert mine.read_bytes()[:4] == b"GGUF"
