"""The class that transformers loads a model folder as, whatever its trainer wrote into config.json.

AutoModelForCausalLM goes by `model_type`; the names under `architectures` are the class that was saved. FSDP puts its
own name before it (transformers issue 40750), other wrappers put theirs in its place, and AutoModel saves a model
without its output matrix, which a tied model does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufy.errors import ExportError

_BY_TYPE = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
_WRAPPERS = (
    "DataParallel",
    "DeepSpeedEngine",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",
    "PeftModel",
    "PeftModelForCausalLM",
)
_CONV1D = ("GPT2", "OpenAIGPT", "ImageGPT", "DecisionTransformer")
# What a class for another task ends with, and what such a model gives in the place of text.
_OTHER_TASKS = {
    "ForSequenceClassification": "a classifier or reward model, which gives scores",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a model that marks answers in a text",
    "ForCausalLMWithValueHead": "a model with a value head, which gives scores",
}


def of(config: Mapping[str, Any]) -> str:
    """The class a folder with this config.json is loaded as; "none" where that cannot be told."""
    names = config.get("architectures") or ["none"]
    name = str(names[0]).removeprefix("FSDP")
    known = by_type(config)
    bare = (name == "none" or name in _WRAPPERS) and bool(config.get("model_type"))
    # LlamaModel beside LlamaForCausalLM, and what ends so, with a trainer's name before it; or another one's class.
    own = bool(known) and name.endswith((str(known), str(known).removesuffix("ForCausalLM") + "Model"))
    if known and (bare or own or name in _BY_TYPE.values()):
        return known
    return name


def by_type(config: Mapping[str, Any]) -> str | None:
    """The class that transformers makes of this model_type, where it is one of those known here."""
    return _BY_TYPE.get(str(config.get("model_type")))


def has_conv1d(config: Mapping[str, Any]) -> bool:
    """Whether its matrices are transformers' Conv1D, (columns, rows), and not Linear."""
    return of(config).startswith(_CONV1D)


def refuse_other_task(config: Mapping[str, Any], where: str) -> None:
    """Raise ExportError for a model that does not write text, of a family whose models do."""
    name = of(config)
    found = next((what for end, what in _OTHER_TASKS.items() if name.endswith(end)), None)
    if found and str(config.get("model_type")) in _BY_TYPE:
        raise ExportError(
            f"{where}: {name} is {found}, not text",
            "export the language model that it was made from; its own head has no place in a chat model's GGUF",
        )
