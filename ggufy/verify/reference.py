"""The training model (base and adapter in transformers and peft) and its logits on a few texts.

A file is only what was trained if it says the same. In float32, so that a difference is the file's and not this
model's. Its matrices stay on the disk (`disk_tensor.py`), so that any memory holds it. Where torch is not installed,
there is nothing to compare with, and that is said.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.export.adapter import names
from ggufy.export.converter import conversion
from ggufy.model import config_files, text_part
from ggufy.model.safetensors import Checkpoint
from ggufy.model.template import ChatTemplate, text_of
from ggufy.model.tokenizer import folder
from ggufy.verify import lazy_loading
from ggufy.verify.probes import PROBES, rendered

log = logging.getLogger("ggufy")

_LONGEST = 96
_WITHOUT_HEAD = tuple(f"base_model.model.{part}." for part in ("layers", "embed_tokens", "norm"))


@dataclass(frozen=True)
class Reference:
    """Texts as token ids, and the logits after each token, float32 (tokens, vocabulary). Empty: nothing to compare."""

    texts: Sequence[Sequence[int]]
    logits: Sequence[Any]
    untrained: Sequence[Any] | None = None
    """The base's own logits, without the adapter."""


NOTHING = Reference((), ())
# What two matrices a module may be told; with any other setting there is more to an adapter than these.
_PLAIN = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
}


def of(
    base: Path, adapter: Path | None, own: Callable[[], Sequence[Sequence[int]]], tokenizer: Path | None = None
) -> Reference:
    """The training model on its `own` texts and on probes of ggufy's. Says why where there is nothing to compare.

    `tokenizer` is the folder with the tokenizer of the training, if it is not the base.
    """
    lacking = missing(base, adapter)
    try:
        if not lacking:
            texts = [*own(), *_probes(tokenizer or base)]
            return run(base, adapter, [text[: _context(base)] for text in texts])
    except Exception as error:  # noqa: BLE001 - a KeyError, too, is what the libraries say of a model they cannot load
        # This check is one more, and costs nobody the file; but it should have worked, so it is a warning.
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        log.warning("logits are not compared with the training model, which failed: %s", said)
        return NOTHING
    log.info("logits are not compared with the training model: %s", lacking)
    return NOTHING


def run(base: Path, adapter: Path | None, texts: Sequence[Sequence[int]]) -> Reference:
    """The training model on these texts, with its matrices left on the disk."""
    import torch

    with lazy_loading.left_on_disk(), torch.inference_mode():
        with opened(base, adapter) as model:
            if not adapter or not _mixes(model):
                return _in_turn(model, texts, adapter)
            # Where a layer gets the tokens of all texts in one row, peft cannot tell them apart, and says so.
            with suppress(ValueError):
                return _at_once(model, texts)
        # What peft hooked into that model is still there.
        with opened(base, adapter) as model:
            return _in_turn(model, texts, adapter)


def _at_once(model: Any, texts: Sequence[Sequence[int]]) -> Reference:
    names = ["default"] * len(texts) + ["__base__"] * len(texts)
    both = _logits(model, [*texts, *texts], adapter_names=names)
    return Reference(texts, both[: len(texts)], both[len(texts) :])


def _in_turn(model: Any, texts: Sequence[Sequence[int]], adapter: Path | None) -> Reference:
    logits = _logits(model, texts)
    if not adapter:
        return Reference(texts, logits)
    with model.disable_adapter():
        return Reference(texts, logits, _logits(model, texts))


def _mixes(model: Any) -> bool:
    """Whether peft computes with and without the adapter in one pass, so that the weights are read once for both.

    It does for LoRA alone; whole tensors, biases and what is added to the weights themselves take a pass each.
    """
    from peft import LoraConfig

    config = model.peft_config["default"]
    if not isinstance(config, LoraConfig):
        return False
    given, usual = config.to_dict(), LoraConfig().to_dict()
    return all(given[key] == usual.get(key) for key in given.keys() - _PLAIN)


@contextmanager
def opened(base: Path, adapter: Path | None) -> Iterator[Any]:
    """The training model in float32 on the CPU, ready to be asked."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as theirs

    config = text_part.settings(json.loads((base / "config.json").read_text(encoding="utf-8")))
    theirs.disable_progress_bar()
    # peft imports it wherever it is installed, and it says then which of its kernels it lacks.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            # Gemma 2 caps the scores of its attention, which PyTorch's fused attention leaves out.
            attn_implementation="eager" if config.get("attn_logit_softcapping") else None,
        )
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
        model.eval()
        yield model
    finally:
        theirs.enable_progress_bar()


def _logits(model: Any, texts: Sequence[Sequence[int]], **how: Any) -> list[Any]:
    """Of all texts in one pass, so that each weight is read once: each is as long as the longest.

    What follows a text changes nothing in it, as each position sees only those before it.
    """
    import torch

    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts])
    found = model(ids, use_cache=False, **how).logits.float().numpy()
    return [logits[: len(text)] for logits, text in zip(found, texts, strict=True)]


def _probes(base: Path) -> list[list[int]]:
    tokenizer = folder.open_backend(base)
    if not text_of(base):
        return [tokenizer.encode(" ".join(PROBES)).ids[:_LONGEST]]
    shown = rendered(ChatTemplate.from_folder(base)) or [" ".join(PROBES)]
    return [tokenizer.encode(text, add_special_tokens=False).ids[:_LONGEST] for text in shown[-1:]]


def _context(base: Path) -> int | None:
    """How many tokens the base was made for, beyond which transformers may rotate in another way."""
    config = text_part.settings(json.loads((base / "config.json").read_text(encoding="utf-8")))
    length = config.get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


def missing(base: Path, adapter: Path | None) -> str | None:
    """Why the training model cannot be run here, whatever the memory; None: it can."""
    from importlib.util import find_spec

    needed = ("torch", "transformers", *(["peft"] if adapter else []))
    if lost := [name for name in needed if find_spec(name) is None]:
        return f"{lost[0]} is not installed"
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        return "the base is in 4 bits"
    # Of the families known here transformers has code itself, and takes that.
    if conversion.is_foreign(base) and conversion.brings_code(base):
        return "the model has code of its own"
    return _unknown_names(base, adapter)


def _unknown_names(base: Path, adapter: Path | None) -> str | None:
    """Why transformers or peft would load something else, without an error."""
    weights = Checkpoint.open(base)
    if weights.wrapped:
        return "the names of the base's weights are wrapped by a trainer, which transformers does not read"
    file = adapter / "adapter_model.safetensors" if adapter else None
    if file is None or not file.is_file():
        return None
    change = names.open_weights(file)
    if not conversion.is_foreign(base) and any(name.startswith(_WITHOUT_HEAD) for name in change.tensors):
        return "the adapter is of a model without its output matrix, which peft does not load into one with it"
    brought, own = names.embedding(change), names.embedding(weights)
    config = config_files.read(base / "config.json")
    if text_part.is_part(config) and not any(
        name.startswith(text_part.IN_MEMORY) for name in map(names.module_of, change.tensors)
    ):
        return (
            "the adapter's weights have other names than transformers' for this base, so peft would load none of them"
        )
    if brought and own and brought.shape != own.shape:
        return "the adapter's vocabulary has another size than the base's, which peft does not load by itself"
    if change.wrapped:
        return "the names of the adapter's weights are wrapped by a trainer, which peft does not read"
    return None


def lacking_memory(base: Path) -> str | None:
    """Why the whole of the training model does not fit into memory; None: it does."""
    size = 4 * sum(math.prod(tensor.shape) for tensor in Checkpoint.open(base).tensors.values())
    free = _available()
    if free is not None and size * 1.2 > free:
        return f"it needs {size * 1.2 / 1e9:.1f} GB of memory in float32, and {free / 1e9:.1f} GB are free"
    return None


def _available() -> int | None:
    """Bytes of memory that can be had, where the system says it; within the limit of a container."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        group = Path("/sys/fs/cgroup")
        try:
            found.append(int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return min(found, default=None)
