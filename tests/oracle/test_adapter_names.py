"""Adapters whose names are not those that peft saves: what they mean is exported, or the true reason is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import ggufy
from ggufy.data import source
from ggufy.errors import ExportError
from ggufy.export.adapter.adapter import Adapter
from ggufy.model import tiny
from tests.oracle.test_export_bytes import logits
from tests.oracle.test_weights_kinds import TOKENS, load, rename, said

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tiny.ensure(source.sample_texts())
    return Path(shutil.copytree(folder, tmp_path / "base", ignore=shutil.ignore_patterns("stamp.json")))


def train(model: torch.nn.Module, out: Path) -> Path:
    torch.manual_seed(7)
    made = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    made.save_pretrained(out)
    return out


def assert_speaks(base: Path, adapter: Path, expected: np.ndarray) -> None:
    """The whole command, so that nothing calls the file wrong that is right."""
    made = ggufy.export(adapter, base=str(base), out=base.parent / "out", quants=["f32"])
    found = logits(made["f32"].path, TOKENS)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


RENAMES: dict[str, Callable[[str], str]] = {
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "the prefix twice": lambda name: f"base_model.model.{name}",
    "in a model with a value head": lambda name: f"pretrained_model.{name}",
    "no prefix at all": lambda name: name.removeprefix("base_model.model.model."),
}


@pytest.mark.parametrize("kind", RENAMES)
def test_prefixes(kind: str, base: Path) -> None:
    adapter = train(load(base), base.parent / "adapter")
    expected = said(PeftModel.from_pretrained(load(base), adapter))
    rename(adapter, RENAMES[kind])
    assert_speaks(base, adapter, expected)


def test_trained_on_a_model_without_its_head(base: Path) -> None:
    adapter = train(AutoModel.from_pretrained(base, dtype=torch.float32), base.parent / "adapter")
    shutil.copytree(adapter, base.parent / "whole")
    rename(base.parent / "whole", lambda name: name.replace("base_model.model.", "base_model.model.model."))
    assert_speaks(base, adapter, said(PeftModel.from_pretrained(load(base), base.parent / "whole")))


def test_the_same_part_twice(base: Path) -> None:
    path = train(load(base), base.parent / "adapter") / "adapter_model.safetensors"
    held = load_file(path)
    save_file(held | {name.removeprefix("base_model.model."): held[name].clone() for name in held}, path)
    with pytest.raises(ExportError, match="are in it twice, with and without"):
        Adapter.open(path.parent)


def test_a_value_head_beside_it(base: Path) -> None:
    adapter = train(load(base), base.parent / "adapter")
    expected = said(PeftModel.from_pretrained(load(base), adapter))
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), "v_head.summary.weight": torch.ones(1, 256)}, path, {"format": "pt"})
    assert_speaks(base, adapter, expected)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_an_adapter_of_another_task(task: str, base: Path) -> None:
    path = train(load(base), base.parent / "adapter") / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"task_type": task}), "utf-8")
    with pytest.raises(ExportError, match=f"task_type {task} is that of a classifier"):
        Adapter.open(path.parent)
