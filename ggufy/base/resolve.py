"""From the name in a recipe to a local folder with a 16-bit base model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy import digest, hubfetch, weights
from ggufy.base import tiny
from ggufy.errors import ModelError

BUILTIN = "builtin:tiny"
_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "*.jinja",
)
CONTENT = ("config.json", "*.safetensors", "tokenizer.json", "tokenizer_config.json", "*.jinja")


@dataclass(frozen=True)
class Base:
    """A base model on this disk. `name` is what the recipe calls it."""

    name: str
    path: Path
    commit: str | None
    fingerprint: str

    @property
    def config(self) -> dict[str, Any]:
        values = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return dict(values)


def resolve(name: str, revision: str | None, *, offline: bool, builtin_texts: Iterable[str]) -> Base:
    """Find the base model, downloading it from the Hub if it is a repository. Raises ModelError or HubError."""
    if name == BUILTIN:
        folder, commit = tiny.ensure(builtin_texts), None
    elif name.startswith("builtin:"):
        raise ModelError(f"unknown built-in model {name!r}", f"the one there is: {BUILTIN}")
    elif Path(name).expanduser().is_dir():
        folder, commit = Path(name).expanduser(), None
    elif not hubfetch.is_repository(name):
        raise ModelError(f"base model folder {name} does not exist", "check model.base in the recipe")
    else:
        folder, commit = hubfetch.snapshot(name, revision, "model", _FILES, offline=offline)
    check(folder, name)
    return Base(name, folder, commit, digest.of_folder(folder, CONTENT))


def check(folder: Path, name: str) -> None:
    """Refuse what cannot be a 16-bit base: no config, pickled weights, no weights, already quantized."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"{name}: no config.json there, so it is not a model folder", "check model.base in the recipe")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise ModelError(f"{name}: config.json cannot be read: {error}", "copy the model folder again") from None
    if not list(folder.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if pickled:
            raise ModelError(
                f"{name}: its weights are pickled ({pickled[0]}), and unpickling can run any code",
                "use the repository's safetensors version, or convert it where you trust it",
            )
        raise ModelError(f"{name}: no .safetensors weights there", "copy the model folder again")
    # Also reads every header, so that a truncated or missing part is known before hours of training.
    weights.Checkpoint.open(folder)
    if "quantization_config" in values:
        raise ModelError(
            f"{name}: this base is already quantized; ggufy starts from the 16-bit one",
            "name the 16-bit repository in model.base; model.load_in: 4bit loads it in 4 bits for training",
        )
    for needed in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / needed).is_file():
            raise ModelError(f"{name}: no {needed} there", "copy the tokenizer's files beside the weights")
        try:
            json.loads((folder / needed).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{name}: {needed} cannot be read: {error}", "copy the tokenizer's files again") from None
