"""llama.cpp's own converter from `make vendor`, run as its users run it, and readers for what it makes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from ggufy.export import engine
from ggufy.export.request import Request

VENDOR = Path(__file__).parents[2] / "vendor" / "llama.cpp"

# The converter knows tokenizers by a hash of sample ids; a vocabulary of 800 has another. Nothing else is changed.
_RUN = """
import runpy, sys
sys.path.insert(0, {vendor!r})
from conversion.base import TextModel
if {tiny!r}:
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
sys.argv = ["convert_hf_to_gguf.py", {model!r}, "--outfile", {out!r}, "--outtype", {kind!r}, *{more!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


def convert(model: Path, out: Path, kind: str = "f16", *more: str, tiny: bool = True) -> None:
    """convert_hf_to_gguf.py MODEL --outfile OUT --outtype KIND MORE; with `tiny` it is told the tokenizer's kind."""
    script = VENDOR / "convert_hf_to_gguf.py"
    assert script.is_file(), "run `make vendor` first"
    given = {"vendor": str(VENDOR), "model": str(model), "out": str(out), "kind": kind, "script": str(script)}
    code = _RUN.format(**given, tiny=tiny, more=list(more))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr


def convert_lora(base: Path, adapter: Path, out: Path) -> None:
    """convert_lora_to_gguf.py --base BASE --outfile OUT ADAPTER"""
    script = VENDOR / "convert_lora_to_gguf.py"
    command = [sys.executable, str(script), "--base", str(base), "--outfile", str(out), str(adapter)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr


def export(
    base: Path,
    adapter: Path | None,
    outputs: Mapping[str, Path],
    general: Mapping[str, str] = {"name": "tiny"},
    threads: int | None = None,
    **request: Any,
) -> None:
    """ggufy's export stage in one call; `request` is the rest of a Request."""
    engine.export(Request(base, adapter, outputs, general, **request), threads)


@dataclass
class Contents:
    keys: dict[str, Any]
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]]


def contents(path: Path) -> Contents:
    """Keys in order (without general.* names and notes) and tensors in order, as gguf-py reads them."""
    reader = gguf.GGUFReader(path)
    keys = {
        name: (field.types, [bytes(field.parts[i]) for i in field.data] if field.data else None)
        for name, field in reader.fields.items()
        if not name.startswith(("general.", "GGUF."))
    }
    tensors = {t.name: (int(t.tensor_type), tuple(int(n) for n in t.shape), t.data.tobytes()) for t in reader.tensors}
    return Contents(keys, tensors)
