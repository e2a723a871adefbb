"""Names of an adapter's tensors, as peft saves them, and as a trainer's own state dict has them.

peft's `save_pretrained` takes the adapter's own name out of each key (`lora_A.default.weight` becomes `lora_A.weight`),
and puts a copy that is trained whole under the name of its module. A raw state dict has neither done, and peft then
loads nothing of it without a word; so what it means is read here.
"""

from __future__ import annotations

import re
from pathlib import Path

from ggufy.errors import ExportError
from ggufy.model import weight_names
from ggufy.model.safetensors import Checkpoint, Tensor

_PREFIX = "base_model.model."
_NAMED = re.compile(
    r"\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|modules_to_save"
    r"|trainable_tokens_delta)\.(?P<adapter>[^.]+)(?P<end>\.weight|\.bias|)$"
)
_PARTS = ("weight", "bias")
_EMBEDDINGS = tuple(
    f"embed_tokens.{part}weight" for part in ("", "modules_to_save.", "base_layer.", "token_adapter.base_layer.")
)
# A raw state dict holds the module of the base, too, of which a copy was trained.
_OF_THE_BASE = ".original_module."
# Of trl's model with a value head: it has no part in what the model writes, and peft leaves it out.
_VALUE_HEADS = ("v_head.", "value_head.")


def open_weights(file: Path) -> Checkpoint:
    """The tensors of an adapter under peft's names. Raises ExportError for a file with several adapters in it."""
    weights = _whole_names(Checkpoint.open(file))
    adapters: dict[str, str] = {}
    names: dict[str, str] = {}
    for name in weights.tensors:
        found = _NAMED.search(name)
        if found and found["adapter"] not in _PARTS:
            adapters[found["adapter"]] = name
            names[name] = f"{name[: found.start()]}.{found['kind']}{found['end']}"
    if len(adapters) > 1:
        raise ExportError(
            f"{file.as_posix()}: {len(adapters)} adapters are in it: {', '.join(sorted(adapters))}",
            "save each by itself, with peft's save_pretrained(FOLDER, selected_adapters=[NAME])",
        )
    held = {name: tensor for name, tensor in weights.tensors.items() if not _is_left_out(name)}
    if twice := next((name for name, short in names.items() if short in held), None):
        raise ExportError(
            f"{file.as_posix()}: {twice} and {names[twice]} are the same part of the adapter",
            "save it again with peft's save_pretrained, or remove one of the two",
        )
    if not names and len(held) == len(weights.tensors):
        return weights
    return Checkpoint(held, weights.where, wrapped=weights.wrapped or bool(names)).renamed(names)


def _whole_names(weights: Checkpoint) -> Checkpoint:
    """With peft's prefix once before each name, as it saves them: a state dict may have it not at all, or twice."""
    whole = {name: _PREFIX + weight_names.of_model(name) for name in weights.tensors}
    if all(name == short for name, short in whole.items()):
        return weights
    if len(set(whole.values())) < len(whole):
        raise ExportError(
            f"{weights.where}: some parts of the adapter are in it twice, with and without {_PREFIX}",
            "save it again with peft's save_pretrained",
        )
    return Checkpoint(weights.tensors, weights.where, wrapped=True).renamed(whole)


def _is_left_out(name: str) -> bool:
    return _OF_THE_BASE in name or module_of(name).startswith(_VALUE_HEADS)


def embedding(weights: Checkpoint) -> Tensor | None:
    """The embedding that an adapter brings, if it brings one whole."""
    return next((tensor for name, tensor in weights.tensors.items() if name.endswith(_EMBEDDINGS)), None)


def module_of(name: str) -> str:
    """The name in the base of what a tensor of an adapter belongs to, with the ending that says which part it is."""
    return name.removeprefix(_PREFIX)
