"""Bases in bitsandbytes' 4 bits against bitsandbytes' own numbers, and against llama.cpp's converter on them."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import httpx
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ggufy.data import source
from ggufy.errors import GgufyError, HubError, ModelError
from ggufy.export import rows
from ggufy.model import bases, tiny
from ggufy.model.safetensors import Checkpoint
from ggufy.stages import model_source
from tests.oracle.converter import convert, export
from tests.oracle.test_export_bytes import assert_same_file

pytestmark = pytest.mark.filterwarnings("ignore")

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def base() -> Path:
    torch.set_num_threads(1)
    return tiny.ensure(source.sample_texts())


def four_bit_copy(base: Path, folder: Path, kind: str, *, nested: bool, dtype: str) -> Path:
    """The tiny model as transformers and bitsandbytes save it in 4 bits."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )
    AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[dtype], quantization_config=config).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile(base / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def packed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_bit_copy(base, tmp_path_factory.mktemp("packed") / "tiny-4", "nf4", nested=True, dtype="bfloat16")


def save(folder: Path, weight: torch.Tensor, **how: Any) -> Any:
    """One tensor in 4 bits as a safetensors file, and what bitsandbytes makes of it."""
    data, state = bnb.quantize_4bit(weight, **how)
    parts = {f"w.{name}": part for name, part in state.as_dict(packed=True).items()}
    save_file({"w": data, **parts, "other": torch.ones(3)}, folder / "model.safetensors")
    return data, state


def read(folder: Path, start: int, stop: int, columns: int) -> np.ndarray:
    out = np.full((stop - start, columns), np.nan, np.float32)
    rows.read_rows(Checkpoint.open(folder), "w", start, stop, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_numbers_are_those_of_bitsandbytes(kind: str, nested: bool, dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    weight = (torch.randn(300, 192) * 0.05).to(DTYPES[dtype])
    # A block of nothing, and one far larger than the rest.
    weight[0, :64], weight[1, :64] = 0, weight[1, :64] * 1000
    data, state = save(tmp_path, weight, quant_type=kind, blocksize=64, compress_statistics=nested)
    assert state.nested == nested
    expected = bnb.dequantize_4bit(data, state)
    assert expected.dtype == DTYPES[dtype]
    found = read(tmp_path, 0, 300, 192)
    # FP4 has a zero with either sign, and bitsandbytes' kernels differ in which one they give.
    assert np.array_equal(found, expected.float().numpy())
    if kind == "nf4":
        assert found.tobytes() == expected.float().numpy().tobytes()
    assert Checkpoint.open(tmp_path)["w"].shape == (300, 192)
    assert set(Checkpoint.open(tmp_path).tensors) == {"w", "other"}


@pytest.mark.parametrize(("rows", "columns", "block"), [(7, 96, 64), (128, 32, 64), (31, 33, 32), (3, 5, 4096)])
def test_any_rows_also_where_blocks_run_across_them(rows: int, columns: int, block: int, tmp_path: Path) -> None:
    """As one long row, bitsandbytes has no rows to cut blocks at; on a CPU its kernel goes wrong where there are."""
    torch.manual_seed(5)
    size = rows * columns
    flat = torch.nn.functional.pad(torch.randn(size), (0, -size % block)).to(torch.bfloat16)
    data, state = bnb.quantize_4bit(flat[None], quant_type="nf4", blocksize=block)
    expected = bnb.dequantize_4bit(data, state).float().numpy().reshape(-1)[:size].reshape(rows, columns)
    state.shape = (rows, columns)
    parts = {f"w.{name}": part for name, part in state.as_dict(packed=True).items()}
    save_file({"w": data.reshape(-1, 1)[: (size + 1) // 2].contiguous(), **parts}, tmp_path / "model.safetensors")
    for start, stop in [(0, rows), (1, 2), (rows - 1, rows), (1, rows), *[(row, row + 1) for row in range(rows)]]:
        assert read(tmp_path, start, stop, columns).tobytes() == expected[start:stop].tobytes(), (start, stop)


@pytest.mark.parametrize(("kind", "nested", "dtype"), [("nf4", True, "bfloat16"), ("fp4", False, "float16")])
def test_a_checkpoint_in_4_bits_is_exported_as_what_it_stands_for(
    kind: str, nested: bool, dtype: str, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    four = four_bit_copy(base, tmp_path / "four", kind, nested=nested, dtype=dtype)
    with caplog.at_level(logging.INFO, "ggufy"):
        found = model_source.of_folder(four, None, tmp_path / "out")
    [warned] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "four holds its weights in bitsandbytes' 4 bits" in warned
    outputs = {"f16": tmp_path / "f16.gguf", "merged": tmp_path / "merged"}
    export(found.base.path, None, outputs, found.notes)
    theirs = AutoModelForCausalLM.from_pretrained(four).dequantize().state_dict()
    ours = load_file(outputs["merged"] / "model.safetensors")
    assert ours.keys() | {"lm_head.weight"} == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name].to(torch.float16))] == []
    config = json.loads((outputs["merged"] / "config.json").read_text())
    assert "quantization_config" not in config
    assert AutoModelForCausalLM.from_pretrained(outputs["merged"]).dtype == torch.float16
    if kind == "nf4":
        convert(outputs["merged"], tmp_path / "theirs.gguf")
        assert_same_file(outputs["f16"], tmp_path / "theirs.gguf")


def make_adapter(named: Path | str, base: Path, out: Path, **settings: Any) -> Path:
    torch.manual_seed(7)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.peft_config["default"].base_model_name_or_path = str(named)
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("named", ["by the adapter", "by --base"])
def test_an_adapter_on_a_local_base_in_4_bits(
    named: str, packed: Path, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_adapter(packed if named == "by the adapter" else "some/where", base, tmp_path / "adapter")
    with caplog.at_level(logging.WARNING, "ggufy"):
        found = model_source.of_folder(folder, None if named == "by the adapter" else str(packed), tmp_path / "out")
    assert [record.getMessage() for record in caplog.records if "4 bits" in record.getMessage()]
    export(found.base.path, found.adapter, {"merged": tmp_path / "merged"}, found.notes)
    model = AutoModelForCausalLM.from_pretrained(packed).dequantize().to(torch.float32)
    expected = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        torch.testing.assert_close(tensor.float(), expected[name], rtol=2.0**-11, atol=1e-7)


NAME = "someone/tiny-bnb-4bit"
HUB = {
    "has both": None,
    "has no original": RepositoryNotFoundError,
    "gates the original": GatedRepoError,
    "is out of reach": LocalEntryNotFoundError,
}


@pytest.fixture
def hub(request: pytest.FixtureRequest, base: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The Hub's client, which has the 4-bit copy, and of the original what HUB says."""

    def snapshot(name: str, **_: Any) -> str:
        if name == NAME:
            return str(packed)
        assert name == "someone/tiny"
        kind = HUB[request.param]
        if kind is LocalEntryNotFoundError:
            raise kind("no route")
        if kind is not None:
            raise kind("no", response=httpx.Response(404, request=httpx.Request("GET", "https://hub.test")))
        return str(base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return str(request.param)


@pytest.mark.parametrize("hub", HUB, indirect=True)
def test_a_base_named_as_a_4_bit_copy(
    hub: str, base: Path, packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its original is used if there is one; only where the Hub has none, not where it cannot say, the copy itself."""
    folder = make_adapter(NAME, base, tmp_path / "adapter")
    if hub in ("gates the original", "is out of reach"):
        with pytest.raises(HubError, match="someone/tiny"):
            model_source.of_folder(folder, None, tmp_path / "out")
        return
    with caplog.at_level(logging.INFO, "ggufy"):
        found = model_source.of_folder(folder, None, tmp_path / "out")
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert f"names the 4-bit base {NAME}" in said
    assert found.base.path == (base if hub == "has both" else packed)
    assert ("have lost quality" in said) == (hub != "has both")
    assert ("the Hub has no someone/tiny" in said) == (hub != "has both")


def with_config(packed: Path, folder: Path, quantization: Any) -> Path:
    shutil.copytree(packed, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return folder


@pytest.mark.parametrize(
    ("quantization", "naming"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantized with gptq"),
        ({"quant_method": "awq", "bits": 4}, "quantized with awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes in 8 bits"),
        ({"bits": 3}, "an unknown method"),
    ],
    ids=["gptq", "awq", "int8", "unknown"],
)
def test_other_quantizations_are_refused(quantization: Any, naming: str, base: Path, tmp_path: Path) -> None:
    mine = with_config(base, tmp_path / "mine", quantization)
    [file] = mine.glob("*.safetensors")
    # As these keep their weights: whole numbers, several packed in each.
    save_file(load_file(file) | {"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 4, dtype=torch.int32)}, file)
    with pytest.raises(ModelError, match=naming) as caught:
        model_source.of_folder(mine, None, tmp_path / "out")
    assert caught.value.hint


def test_training_on_4_bits_is_refused(packed: Path, base: Path, tmp_path: Path) -> None:
    unsaid = tmp_path / "unsaid"
    shutil.copytree(packed, unsaid)
    shutil.copyfile(base / "config.json", unsaid / "config.json")
    for folder in (packed, unsaid):
        with pytest.raises(ModelError, match="already quantized") as caught:
            bases.resolve(str(folder), None, offline=True, builtin_texts=())
        assert "model.load_in" in str(caught.value.hint)


@pytest.mark.parametrize("damage", ["no absmax", "short absmax", "no codes", "no settings", "other type", "cut weight"])
def test_damaged_4_bits(damage: str, tmp_path: Path) -> None:
    save(tmp_path, torch.randn(64, 64), quant_type="nf4", blocksize=64)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    state = "w.quant_state.bitsandbytes__nf4"
    if damage == "no absmax":
        del tensors["w.absmax"]
    elif damage == "short absmax":
        tensors["w.absmax"] = tensors["w.absmax"][:-1].clone()
    elif damage == "no codes":
        del tensors["w"]
    elif damage == "cut weight":
        tensors["w"] = tensors["w"][:-1].clone()
    else:
        text = b"{" if damage == "no settings" else bytes(tensors[state].numpy()).replace(b'"nf4"', b'"nf5"')
        tensors[state] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    save_file(tensors, file)
    with pytest.raises(GgufyError, match=r"\bw\b") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.hint
