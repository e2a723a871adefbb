"""The hf backend: transformers and peft, on a GPU or a CPU; bitsandbytes for a 4-bit or 8-bit base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from ggufy.errors import MissingExtra
from ggufy.train import trainer
from ggufy.train.job import Job


def fit(job: Job, out: Path) -> None:
    """Train, and write the adapter to the folder `out`."""
    trainer.fit(job, out, trainer.Backend("hf", _load))


def _load(job: Job, dtype: torch.dtype) -> Any:
    recipe = job.recipe
    quantization = None
    if recipe.model.load_in != "16bit":
        quantization = _quantization(recipe.model.load_in, dtype)
    device = {"": torch.cuda.current_device()} if torch.cuda.is_available() else {"": "cpu"}
    known = AutoConfig.from_pretrained(job.base, trust_remote_code=False, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        dtype=dtype,
        device_map=device if quantization is not None or torch.cuda.is_available() else None,
        quantization_config=quantization,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        # Gemma 2 caps the scores of its attention, which PyTorch's fused attention leaves out.
        attn_implementation="eager" if getattr(known.get_text_config(), "attn_logit_softcapping", None) else None,
    )
    lora = recipe.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha if lora.alpha % 1 else int(lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=list(job.targets),
        exclude_modules=rf"(.*\.)?({'|'.join(job.other_parts)})\..*" if job.other_parts else None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model.config.get_text_config().use_cache = model.config.use_cache = False
    # The adapter's first values depend on the seed alone, not on what loading the base drew before.
    transformers.set_seed(recipe.train.seed)
    made = get_peft_model(model, config)
    for part in job.other_parts:
        # Nothing is computed with what reads images, so it need not be in memory.
        if hasattr(model.base_model, part):
            setattr(model.base_model, part, None)
    return made


def _quantization(load_in: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    try:
        import bitsandbytes
    except ModuleNotFoundError:
        raise MissingExtra(f"model.load_in: {load_in}", "train", "bitsandbytes") from None
    del bitsandbytes
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
