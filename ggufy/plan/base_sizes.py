"""The shape of a base and the sizes of its exports, found without its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ggufy.errors import RecipeError
from ggufy.export import families
from ggufy.export.gguf import layout, quant_support
from ggufy.model import bases, download, llama3, text_part, tiny
from ggufy.model.llama3 import Shape
from ggufy.model.safetensors import Checkpoint, Tensor
from ggufy.plan import known_bases
from ggufy.recipe.schema import Recipe
from ggufy.system.version import __version__

# Of a vocabulary that nobody has counted: between those of Gemma (25) and Llama 3 (61).
_BYTES_A_TOKEN = 45
_KNOWN_WITHIN, _GUESSED_WITHIN = 10_000, 5_000_000


@dataclass(frozen=True)
class Base:
    """What is known of a base without its weights. `folder` has config.json and, if `whole`, the tokenizer."""

    name: str
    shape: Shape
    config: dict[str, Any]
    folder: Path | None

    @property
    def whole(self) -> bool:
        return self.folder is not None and (self.folder / "tokenizer.json").is_file()

    @property
    def parameters(self) -> int:
        return sum(math.prod(size) for size in self.shape.tensors().values())


def base_of(recipe: Recipe, builtin_texts: Iterable[str]) -> Base:
    """The shape of a recipe's base: of a known name from a table, of others from config.json."""
    name = recipe.model.base
    folder: Path | None = Path(name).expanduser()
    if name == bases.BUILTIN:
        folder = tiny.ensure(builtin_texts)
    elif not Path(name).expanduser().is_dir():
        if (config := known_bases.config(name)) is not None:
            return Base(name, _shape(config), config, None)
        if not download.is_repository(name):
            raise RecipeError(f"base model folder {name} does not exist", "check model.base in the recipe")
        folder, _ = download.snapshot(name, recipe.model.revision, "model", ["config.json"], offline=recipe.hub.offline)
    assert folder is not None
    config = text_part.settings(json.loads((folder / "config.json").read_text("utf-8")))
    return Base(name, families.read(folder).shape, config, folder)


def _shape(config: dict[str, Any]) -> Shape:
    with TemporaryDirectory(prefix="ggufy-") as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return families.read(Path(scratch)).shape


def export_sizes(base: Base, quants: Sequence[str], name: str) -> tuple[dict[str, int], int]:
    """Bytes of each GGUF, and how far off they may be: asked of llama.cpp by the export's own layout.

    Without the base's tokenizer its part of the header is that of the vocabulary known for its size, to 10 kB, else a
    guess.
    """
    with TemporaryDirectory(prefix="ggufy-") as scratch:
        folder = base.folder if base.folder is not None and base.whole else _stand_in(base, Path(scratch))
        family = families.read(folder)
        there = {key: Tensor(key, "BF16", size, folder, 0, 0) for key, size in base.shape.tensors().items()}
        planned = family.plan(Checkpoint(there, base.name))
        general = {"name": name, "ggufy.version": __version__, "ggufy.date": "2026-01-01"}
        wanted = layout.Wanted(family, planned, general)
        names = [quant for quant in layout.check_quants(quants) if _plannable(quant)]
        made = layout.make(names, wanted, Path(scratch))
    if base.whole:
        return {quant: found.size for quant, found in made.items()}, 0
    vocabulary, within = known_bases.vocabulary_bytes(base.shape.vocab), _KNOWN_WITHIN
    if vocabulary is None:
        vocabulary, within = base.shape.vocab * _BYTES_A_TOKEN, _GUESSED_WITHIN
    heads = {quant: sum(len(part.head) for part in found.parts) for quant, found in made.items()}
    return {quant: found.size - heads[quant] + vocabulary for quant, found in made.items()}, within


def _plannable(quant: str) -> bool:
    """Those that need an importance matrix have their types chosen by it: `ggufy export --dry-run` knows them."""
    return not quant_support.needs_imatrix(quant)


def _stand_in(base: Base, folder: Path) -> Path:
    """A folder with config.json and a tokenizer of the right kind with no words, for llama.cpp to choose types by."""
    split = {"type": "Split", "pattern": {"Regex": llama3.SPLIT}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    model = {"type": "BPE", "ignore_merges": True, "vocab": {}, "merges": []}
    files = {"config.json": base.config, "tokenizer_config.json": {}}
    files["tokenizer.json"] = {"model": model, "pre_tokenizer": steps, "added_tokens": []}
    for file, values in files.items():
        (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return folder
