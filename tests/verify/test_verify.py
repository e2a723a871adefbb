"""Verify finds what is wrong with a file, names the cause, and never lets such a file have its final name."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from safetensors.torch import load_file, save_file

from ggufy.errors import ExportError, Unverified
from ggufy.llamacpp import gguf_reader, library
from ggufy.runs import run as run_module
from ggufy.verify.checks import verify
from ggufy.verify.expected import Expected
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
    slot = next(t for t in gguf_reader.read_gguf(source).tensors if t.name == tensor)
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


def test_a_template_with_two_bos_is_refused_before_anything_is_written(base: Path, run: Run, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{- bos_token }}" + config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    done = run("export", "model", "--quant", "q8_0", cwd=tmp_path)
    assert done.returncode == 1
    assert "writes 2 BOS tokens" in done.stderr
    assert not list(tmp_path.glob("exports/model/**/*.gguf"))
    done = run("export", "model", "--quant", "q8_0", "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_verify_a_run_and_a_damaged_one(quick: Path, run: Run) -> None:
    stamp = quick / "runs/quick/stamps/export--quick-q8_0.gguf.json"
    noted = json.loads(stamp.read_text())
    near = noted.pop("closeness")
    stamp.write_text(json.dumps(noted))
    done = run("verify", "quick", cwd=quick)
    assert done.returncode == 0, done.stderr
    # What was found is noted, as the export had noted it.
    assert json.loads(stamp.read_text())["closeness"] == pytest.approx(near)
    assert f"{100 * near['agreement']:.1f}% same top token" in done.stdout
    assert "adapter: unchanged since it was made" in done.stdout
    assert "quick-q8_0.gguf: 39 tensors valid" in done.stdout
    path = quick / "runs/quick/export/quick-q8_0.gguf"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    done = run("verify", "quick", cwd=quick)
    assert done.returncode == 1
    assert "quick-q8_0.gguf has been changed since it was made" in done.stderr


def test_verify_one_file(quick: Path, run: Run) -> None:
    """Where it lies in a run it is compared with what that was trained to; elsewhere with nothing."""
    done = run("verify", "runs/quick/export/quick-q8_0.gguf", "--no-logits", cwd=quick)
    assert done.stdout == (
        "runs/quick/export/quick-q8_0.gguf: unchanged since it was made\n"
        "quick-q8_0.gguf: 39 tensors valid, loads in llama.cpp, 15 probe texts tokenized as the base does, "
        "126 rows of weights as merged; 3 of 3 answers to training prompts stop\n"
    )
    shutil.copyfile(quick / "runs/quick/export/quick-q8_0.gguf", quick / "alone.gguf")
    done = run("verify", "alone.gguf", cwd=quick)
    assert done.stdout == "alone.gguf: 39 tensors valid, loads in llama.cpp\n"
    path = damaged(quick / "alone.gguf", quick / "runs/quick/export/quick-q8_0.gguf", "blk.0.ffn_up.weight", b"\1")
    done = run("verify", path.relative_to(quick).as_posix(), cwd=quick)
    assert done.returncode == 1
    assert "quick-q8_0.gguf has been changed since it was made" in done.stderr


def test_a_folder_of_exports(quick: Path, base: Path, run: Run) -> None:
    """Of an adapter from elsewhere with a base that had to be named: the folder, a file in it, and a talk with it."""
    shutil.copytree(quick / "runs/quick/adapter", quick / "mine")
    shutil.copytree(base, quick / "base")
    split = ("--split-max-size", "2M", "--quant", "q8_0")
    for more in (("--quant", "q4_0"), split):
        done = run("export", "mine", "--base", "base", *more, "--no-verify", cwd=quick)
        assert done.returncode == 0, done.stderr
    files = sorted((quick / "exports/mine/mine-q8_0").iterdir())
    assert len(files) > 1
    same = "39 tensors valid, loads in llama.cpp, 15 probe texts tokenized as the base does, 126 rows of weights"
    for what in ("exports/mine", "exports/mine/mine-q8_0", files[1].relative_to(quick).as_posix()):
        done = run("verify", what, "--no-logits", cwd=quick)
        assert done.returncode == 0, done.stderr
        assert f"mine-q8_0: {same}" in done.stdout
        assert (f"mine-q4_0.gguf: {same}" in done.stdout) == (what == "exports/mine")
    done = run("chat", "exports/mine", "--prompt", "Hi", "--max-tokens", "2", cwd=quick)
    assert done.returncode == 0, done.stderr
    (quick / "base").rename(quick / "other")
    done = run("verify", "exports/mine", cwd=quick)
    assert done.returncode == 1
    assert "exports/mine cannot be compared with what it was made from" in done.stderr
    (quick / "other").rename(quick / "base")
    config = json.loads((quick / "mine/adapter_config.json").read_text())
    (quick / "mine/adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * 2}))
    done = run("verify", "exports/mine", cwd=quick)
    assert done.returncode == 1
    assert "was made before its base or adapter changed" in done.stderr


def test_a_split_named_by_its_first_file(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x-q8_0"
    export(base, None, {"q8_0": folder}, split=1_500_000)
    first, second, *_ = sorted(folder.iterdir())
    assert verify(first, base, 2).tensors == 39
    tensor = gguf_reader.read_gguf(second).tensors[0].name
    whole = second.read_bytes()
    damaged(second, second, tensor, b"\x00\x7e")
    with pytest.raises(Unverified, match=rf"{second.name}: the data of {tensor} is not valid"):
        verify(first, base, 2)
    second.write_bytes(whole)
    second.rename(folder / "away")
    with pytest.raises(Unverified, match=f"{second.name} is missing; the model is in"):
        verify(first, base, 2)


def test_what_was_not_verified_is_verified_next_time(quick: Path, run: Run) -> None:
    command = ("export", "quick", "--quant", "q5_0", "--no-logits")
    assert run(*command, "--no-verify", cwd=quick).returncode == 0
    path = quick / "runs/quick/export/quick-q5_0.gguf"
    made = path.stat().st_mtime_ns
    for said in (True, False):
        done = run(*command, cwd=quick)
        assert done.returncode == 0, done.stderr
        assert "quick-q5_0.gguf  3." in done.stdout or "(up to date)" in done.stdout
        assert ("verified quick-q5_0.gguf: 39 tensors valid" in done.stderr) == said
        assert path.stat().st_mtime_ns == made


@pytest.mark.parametrize("tensor", ["blk.1.ffn_down.weight", "blk.2.attn_q.weight", "blk.0.ffn_norm.weight"])
@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m", "q2_k", "iq4_xs"])
def test_zeros_in_the_place_of_a_tensor(quant: str, tensor: str, made: Path, base: Path, tmp_path: Path) -> None:
    """Found without torch, whatever the type loses by itself."""
    expected = Expected.of(base, None)
    assert verify(made / f"{quant}.gguf", base, 2, expected=expected).rows == 126
    slot = next(t for t in gguf_reader.read_gguf(made / f"{quant}.gguf").tensors if t.name == tensor)
    path = damaged(made / f"{quant}.gguf", tmp_path / "x.gguf", tensor, bytes(slot.size))
    assert verify(path, base, 2).tensors == 39
    with pytest.raises(Unverified, match=f"row 0 of {tensor} is off by 100%".replace(".", r"\.")):
        verify(path, base, 2, expected=expected)


def test_one_tensor_in_the_place_of_another(made: Path, base: Path, tmp_path: Path) -> None:
    source = made / "q4_k_m.gguf"
    slots = {t.name: t for t in gguf_reader.read_gguf(source).tensors}
    other = slots["blk.2.ffn_up.weight"]
    data = source.read_bytes()[other.offset : other.offset + other.size]
    path = damaged(source, tmp_path / "x.gguf", "blk.1.ffn_up.weight", data)
    with pytest.raises(Unverified, match=r"row 0 of blk\.1\.ffn_up\.weight is off by 1[34]\d%"):
        verify(path, base, 2, expected=Expected.of(base, None))


@pytest.mark.parametrize("quant", ["bf16", "f32"])
def test_weights_below_float16_in_a_wide_file(quant: str, base: Path, tmp_path: Path) -> None:
    """As unused tokens have them: valid, though float16 knows no such numbers."""
    model = Path(shutil.copytree(base, tmp_path / "model"))
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][-1] = 1e-23
    weights["model.layers.1.mlp.down_proj.weight"][0] = 2e-7
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    export(model, None, {quant: tmp_path / "x.gguf"})
    assert verify(tmp_path / "x.gguf", model, 2, expected=Expected.of(model, None)).rows == 126
    path = damaged(tmp_path / "x.gguf", tmp_path / "y.gguf", "blk.1.ffn_down.weight", bytes(8))
    with pytest.raises(Unverified, match=r"row 0 of blk\.1\.ffn_down\.weight"):
        verify(path, model, 2, expected=Expected.of(model, None))


@pytest.mark.parametrize("quant", ["bf16", "f32"])
def test_weights_above_float16_in_a_wide_file(quant: str, base: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = 2.0**20
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    for kernels in ("auto", "llama.cpp"):
        export(model, None, {quant: tmp_path / f"{kernels}.gguf"}, kernels=kernels)
        assert verify(tmp_path / f"{kernels}.gguf", model, 2, expected=Expected.of(model, None)).rows == 126
        with pytest.raises(ExportError, match=r"1.05e\+06 is too large for F16.*down_proj.weight, row 3") as caught:
            export(model, None, {"q8_0": tmp_path / "x.gguf"}, kernels=kernels)
        assert "--quant bf16" in str(caught.value.hint)
    assert (tmp_path / "auto.gguf").read_bytes() == (tmp_path / "llama.cpp.gguf").read_bytes()


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m"])
def test_another_number_in_the_header(quant: str, made: Path, base: Path, tmp_path: Path) -> None:
    """The logits of a coarse quant do not tell; the file speaks, and worse."""
    data = bytearray((made / f"{quant}.gguf").read_bytes())
    key = b"llama.rope.freq_base"
    at = data.index(key) + len(key) + 4
    assert struct.unpack_from("<f", data, at) == (500000.0,)
    struct.pack_into("<f", data, at, 10000.0)
    (tmp_path / "x.gguf").write_bytes(data)
    assert verify(tmp_path / "x.gguf", base, 2).tensors == 39
    with pytest.raises(Unverified, match=r"the value of llama\.rope\.freq_base is not the base's"):
        verify(tmp_path / "x.gguf", base, 2, expected=Expected.of(base, None))


def test_an_adapter_alone(quick: Path, base: Path, run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quick, tmp_path / "copy"))
    done = run("export", "quick", "--adapter-gguf", cwd=folder)
    assert re.search(r"verified quick-adapter.gguf: (\d+) tensors valid, \1 of them the adapter's", done.stderr)
    path = folder / "runs/quick/export/quick-adapter.gguf"
    expected = Expected.of(base, folder / "runs/quick/adapter")
    assert expected is not None
    name = sorted(expected.merge.adapter.deltas)[0]
    expected.merge.adapter.deltas[name].b *= 1.0001
    with pytest.raises(Unverified, match=r"lora_b is not the adapter's"):
        verify(path, None, 2, expected=expected)
    done = run("verify", "quick", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "quick-adapter.gguf: " in done.stdout
    assert "of them the adapter's, byte for byte" in done.stdout


def test_an_export_knows_what_it_was_made_from_also_from_elsewhere(
    quick: Path, base: Path, run: Run, tmp_path: Path
) -> None:
    """The adapter's own word for its base is relative to where it was exported."""
    shutil.copytree(base, tmp_path / "base")
    adapter = Path(shutil.copytree(quick / "runs/quick/adapter", tmp_path / "mine"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    done = run("export", "mine", "--quant", "q8_0", "--no-logits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder, named in ((tmp_path, "exports/mine"), (elsewhere, "../exports/mine")):
        done = run("verify", named, "--no-logits", cwd=folder)
        assert done.returncode == 0, done.stderr
    adapter.rename(tmp_path / "moved")
    done = run("verify", "exports/mine", cwd=tmp_path)
    assert done.returncode == 1
    [error, hint] = done.stderr.splitlines()
    assert error.startswith("error: exports/mine cannot be compared with what it was made from: the folder ")
    assert error.endswith("mine no longer exists")
    assert hint == "hint: put it back where it was, or export again into another --out"


def test_a_folder_of_exports_that_somebody_else_works_on(quick: Path, base: Path, run: Run, tmp_path: Path) -> None:
    with run_module.Run(tmp_path / "out").lock():
        done = run(
            *("export", str(quick / "runs/quick/adapter"), "--base", str(base), "--out", "out", "--quant", "q8_0"),
            cwd=tmp_path,
        )
    assert done.returncode == 1
    assert f"error: the folder out is in use by another ggufy command (process {os.getpid()})" in done.stderr
    assert "another --out" in done.stderr


def test_ctrl_c_while_the_data_is_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map that something points into cannot be closed, which must not hide what happened."""

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "valid_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify(made / "q8_0.gguf", None, 2)


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
