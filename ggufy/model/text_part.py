"""The language model inside one that also reads images: Gemma 3 from 4B on (`Gemma3ForConditionalGeneration`).

Its settings are under `text_config` in config.json, and its tensors behind a prefix: `language_model.model.` in the
files that Google published, `model.language_model.` in the memory of transformers and so in the names of an adapter.
What is here makes of both what a language model alone has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ggufy.errors import ModelError
from ggufy.model.safetensors import Checkpoint

INSIDE = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}
"""The architecture of the whole, and that of its language model."""
_OTHER_PARTS = ("vision_tower", "multi_modal_projector")
IN_MEMORY = "model.language_model."
"""What stands before a name of the language model in transformers' memory, and so in an adapter."""
_OLD = "language_model.model."
_OLD_HEAD = "language_model.lm_head"
# What the whole model decides, whatever its part has.
_OF_THE_WHOLE = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")


def is_part(config: Mapping[str, Any]) -> bool:
    """Whether the language model is a part of the model with this config.json."""
    names = config.get("architectures") or []
    return bool(names) and str(names[0]).removeprefix("FSDP") in INSIDE


def other_parts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules beside the language model; none where it is alone."""
    return _OTHER_PARTS if is_part(config) else ()


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The config.json of the language model; of a model that is nothing else, its own."""
    if not is_part(config):
        return config
    inner = {key: value for key, value in (config.get("text_config") or {}).items() if value is not None}
    outer = {key: value for key, value in config.items() if key not in ("text_config", "vision_config")}
    kept = {key: outer[key] for key in _OF_THE_WHOLE if key in outer}
    whole = str(config["architectures"][0]).removeprefix("FSDP")
    return {"tie_word_embeddings": True, **outer, **inner, **kept, "architectures": [INSIDE[whole]]}


def weights(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """The tensors of the language model, by the names that it has alone.

    Raises ModelError where they have these already: transformers would load none of them, and take random numbers.
    """
    if not is_part(config):
        return checkpoint
    held = {name: tensor for name, tensor in checkpoint.tensors.items() if not is_other(name)}
    if held and not prefix_of(held):
        raise ModelError(
            f"{checkpoint.where}: its weights have the names of another class: {next(iter(held))}, where that of "
            f"config.json, which also reads images, has {IN_MEMORY}... or {_OLD}...",
            "of a language model that was saved by itself, config.json has to say so: what is under text_config there, "
            f"and {' or '.join(INSIDE.values())} under architectures",
        )
    names = {name: short(name) for name in held}
    return Checkpoint(held, checkpoint.where, wrapped=checkpoint.wrapped).renamed(names)


def short(name: str) -> str:
    """The name that a tensor or module of the language model has where that is alone."""
    for prefix in (IN_MEMORY, _OLD):
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return "lm_head" + name.removeprefix(_OLD_HEAD) if name.startswith(_OLD_HEAD) else name


def is_other(name: str) -> bool:
    """Whether a tensor or module is of a part that reads images."""
    return not set(_OTHER_PARTS).isdisjoint(name.split(".")[:2])


def prefix_of(names: Iterable[str]) -> str:
    """What stands before the language model's names where they are these; empty: it stands alone."""
    return next((prefix for name in names for prefix in (IN_MEMORY, _OLD) if name.startswith(prefix)), "")


def full(name: str, prefix: str) -> str:
    """The name in the whole model, where its language model has this prefix, of one that `short` gives."""
    if prefix and name.startswith("model."):
        return prefix + name.removeprefix("model.")
    return f"language_model.{name}" if prefix == _OLD else name
