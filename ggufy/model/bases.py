"""Find or download the 16-bit base model that a recipe names, and check it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ggufy.errors import ModelError
from ggufy.model import download, safetensors, tiny
from ggufy.model.tokenizer import converted
from ggufy.system import digest

BUILTIN = "builtin:tiny"
_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
)
_TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.jinja"),
    *("config.json", "generation_config.json"),
)
CONTENT = ("config.json", "*.safetensors", "tokenizer.json", "tokenizer_config.json", "*.jinja")
# What an export uses too. It is apart, because the fingerprints in the records of runs are of CONTENT.
BESIDE = (
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class Base:
    """A base model on this disk. `name` is what the recipe calls it.

    `path` is its folder, or one that links to it and has the tokenizer.json that it lacks.
    """

    name: str
    path: Path
    commit: str | None
    fingerprint: str

    @property
    def config(self) -> dict[str, Any]:
        values = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return dict(values)


def resolve(
    name: str,
    revision: str | None,
    *,
    offline: bool,
    builtin_texts: Iterable[str],
    four_bit: bool = False,
    said: str = "model.base in the recipe",
) -> Base:
    """Find the base model, downloading it from the Hub if it is a repository. Raises ModelError or HubError.

    `four_bit` takes one in bitsandbytes' 4 bits too, which can be exported but not trained on. `said` is where the user
    says which base, for hints.
    """
    if name == BUILTIN:
        folder, commit = tiny.ensure(builtin_texts), None
    elif name.startswith("builtin:"):
        raise ModelError(f"unknown built-in model {name!r}", f"the only one is {BUILTIN}")
    elif Path(name).expanduser().is_dir():
        folder, commit = Path(name).expanduser(), None
    elif Path(name).expanduser().is_file():
        raise ModelError(f"the base {name} is a file, not a model folder", f"check {said}")
    elif not download.is_repository(name):
        raise ModelError(f"base model folder {name} does not exist", f"check {said}")
    else:
        folder, commit = snapshot(name, revision, _FILES, offline=offline)
    return opened(folder, name, commit, four_bit=four_bit, said=said)


def opened(folder: Path, name: str, commit: str | None = None, *, four_bit: bool = False, said: str) -> Base:
    """The base in a folder, checked, and its tokenizer.json made where it has none. Raises ModelError."""
    check(folder, name, four_bit=four_bit, said=said)
    whole = converted.folder_of(folder, name)
    return Base(name, whole, commit, digest.of_folder(whole, CONTENT))


def snapshot(name: str, revision: str | None, files: tuple[str, ...], *, offline: bool) -> tuple[Path, str]:
    """Download these files of a repository: its folder and its commit. Raises HubError.

    Of one without tokenizer.json also those that it is made of.
    """
    folder, commit = download.snapshot(name, revision, "model", files, offline=offline)
    if (folder / "config.json").is_file() and not (folder / "tokenizer.json").is_file():
        folder, commit = download.snapshot(name, commit, "model", (*files, *converted.MORE), offline=offline)
    return folder, commit


def tokenizer(name: str, revision: str | None, *, offline: bool, builtin_texts: Iterable[str]) -> Path:
    """A folder with the base's tokenizer and template, without its weights. Raises ModelError or HubError."""
    if name.startswith("builtin:") or not download.is_repository(name) or Path(name).expanduser().is_dir():
        return resolve(name, revision, offline=offline, builtin_texts=builtin_texts).path
    folder, _ = snapshot(name, revision, _TOKENIZER, offline=offline)
    _check_tokenizer(folder, name)
    return converted.folder_of(folder, name)


def is_four_bit(folder: Path) -> bool:
    """Whether weights of a model folder are in bitsandbytes' 4 bits."""
    return any(tensor.dtype == safetensors.FOUR_BIT for tensor in safetensors.Checkpoint.open(folder).tensors.values())


def check(folder: Path, name: str, *, four_bit: bool = False, said: str = "model.base in the recipe") -> None:
    """Refuse what cannot be a base: no config, pickled weights, no weights, already quantized but for `four_bit`."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"{name}: no config.json there, so it is not a model folder", f"check {said}")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise ModelError(f"{name}: config.json cannot be read: {error}", "copy the model folder again") from None
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if pickled:
            raise ModelError(
                f"{name}: its weights are pickled ({pickled[0]}), and unpickling can run any code",
                "use the repository's safetensors version, or convert it if you trust it",
            )
        raise ModelError(f"{name}: no .safetensors weights there", "copy the model folder again")
    # Also reads every header, so that a truncated or missing part is known before hours of training.
    packed = is_four_bit(folder)
    if not four_bit and ("quantization_config" in values or packed):
        raise ModelError(
            f"{name}: this base is already quantized; ggufy starts from the 16-bit one",
            "name the 16-bit repository in model.base; model.load_in: 4bit loads it in 4 bits for training",
        )
    if how := _quantized(values.get("quantization_config")):
        if _is_float(folder):
            raise ModelError(
                f"{name}: config.json has a quantization_config ({how}), and the weights are not quantized",
                "remove quantization_config from config.json, if these weights are the model",
            )
        raise ModelError(
            f"{name}: its weights are quantized with {how}; of quantized models ggufy reads bitsandbytes' 4 bits only",
            "name the 16-bit original, or a copy of it in 16 bits",
        )
    _check_tokenizer(folder, name)


def _quantized(config: Any) -> str:
    """How a quantization_config says that a model is quantized, unless it is not or in bitsandbytes' 4 bits."""
    if config is None:
        return ""
    settings = config if isinstance(config, dict) else {}
    method = str(settings.get("quant_method") or "an unknown method")
    if method != "bitsandbytes":
        return method
    return "bitsandbytes in 8 bits" if settings.get("load_in_8bit") else ""


def _is_float(folder: Path) -> bool:
    """Whether every weight is a number by itself: a leftover in config.json then says otherwise."""
    tensors = safetensors.Checkpoint.open(folder).tensors.values()
    return all(tensor.dtype in ("F64", "F32", "F16", "BF16") for tensor in tensors)


class _JsonObject(BaseModel):
    """Any: its values are checked as JSON, and not kept, which for a vocabulary takes a fifth of the time."""


def _check_tokenizer(folder: Path, name: str) -> None:
    made = converted.source_of(folder) is not None
    for needed in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / needed).is_file():
            if made:
                continue
            raise ModelError(f"{name}: no {needed} there", "copy the tokenizer's files beside the weights")
        try:
            _JsonObject.model_validate_json((folder / needed).read_bytes())
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ModelError(f"{name}: {needed} cannot be read: {reason}", "copy the tokenizer's files again") from None
