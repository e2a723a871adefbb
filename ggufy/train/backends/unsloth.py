"""The unsloth backend: LoRA of a 4-bit or 16-bit base through FastLanguageModel, on a CUDA GPU.

Unsloth rewrites trl, transformers and peft as it is imported, so it comes first, and only here. `job.fit` sets what it
reads at that moment. ggufy uses it to load and to train, never to save or to convert.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unsloth import FastLanguageModel  # isort: skip

import torch

from ggufy.train import trainer
from ggufy.train.job import Job


def fit(job: Job, out: Path) -> None:
    """Train, and write the adapter to the folder `out`."""
    trainer.fit(job, out, trainer.Backend("unsloth", load, flat=True, checkpoints_gradients=True))


def load(job: Job, dtype: torch.dtype) -> Any:
    """The base on the GPU with a fresh adapter, patched by Unsloth. `job.choose` has ruled out an 8-bit one."""
    model, _ = FastLanguageModel.from_pretrained(**loading(job, dtype))
    return FastLanguageModel.get_peft_model(model, **adapting(job))


def loading(job: Job, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of FastLanguageModel.from_pretrained."""
    model = job.recipe.model
    return {
        "model_name": job.base.as_posix(),
        "max_seq_length": model.max_length,
        "dtype": dtype,
        "load_in_4bit": model.load_in == "4bit",
        "load_in_16bit": model.load_in == "16bit",
        "trust_remote_code": False,
        # Without it another repository, quantized beforehand, may take the place of the base that was asked for.
        "use_exact_model_name": True,
        "use_gradient_checkpointing": _checkpointing(job),
        "random_state": job.recipe.train.seed,
        "local_files_only": True,
    }


def adapting(job: Job) -> dict[str, Any]:
    """The arguments of FastLanguageModel.get_peft_model."""
    lora = job.recipe.lora
    wanted = {
        "r": lora.r,
        "lora_alpha": lora.alpha if lora.alpha % 1 else int(lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": list(job.targets),
        "bias": "none",
        "use_gradient_checkpointing": _checkpointing(job),
        "random_state": job.recipe.train.seed,
        "use_rslora": lora.rslora,
    }
    return wanted | ({"use_dora": True} if lora.dora else {})


def _checkpointing(job: Job) -> str | bool:
    return "unsloth" if job.recipe.train.gradient_checkpointing else False
