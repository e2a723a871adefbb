"""The hf backend: transformers, peft and trl, on a GPU or a CPU; bitsandbytes for a 4-bit or 8-bit base."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from ggufy import progress
from ggufy.errors import MissingExtra
from ggufy.recipe import Recipe
from ggufy.run import write_json
from ggufy.train import checkpoints
from ggufy.train.job import Job
from ggufy.train.watch import StopSignals, Watch

log = logging.getLogger("ggufy")

_OPTIMIZERS = {"adamw": "adamw_torch"}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class _Trainer(SFTTrainer):
    """trl's trainer, without the model card it puts into every checkpoint."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        return


def fit(job: Job, out: Path) -> None:
    """Train from the newest checkpoint that verifies, or from the start, and write the adapter to `out`."""
    recipe = job.recipe
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(recipe.train.seed)
    dtype = choose_dtype(recipe.model.dtype)
    made_on = {"device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": str(dtype).removeprefix("torch.")}
    resume = checkpoints.newest(job.checkpoints, job.identity, made_on)
    done = checkpoints.step_of(resume) if resume else 0
    if resume:
        log.info("resuming from step %d", done)
    model = _load(job, dtype)
    splits = {name: datasets.Dataset.from_file(f"{job.data}/{name}.arrow") for name in _splits(job.data)}
    started = time.monotonic()
    with warnings.catch_warnings(), _tidy_stdout():
        warnings.simplefilter("ignore")
        trainer = _Trainer(
            model=model,
            args=_arguments(job, dtype),
            train_dataset=splits["train"],
            eval_dataset=splits.get("eval"),
            processing_class=_tokenizer(job.base),
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                # trl rounds the adapter of a quantized base to bf16, which a GPU without bf16 cannot train.
                parameter.data = parameter.data.float()
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.remove_callback(transformers.trainer_callback.ProgressCallback)
        total = _total_steps(trainer, recipe)
        with progress.bar("training", total, done) as bar:
            watch = Watch(job, bar, done, made_on)
            trainer.add_callback(watch)
            with StopSignals(watch):
                trainer.train(resume_from_checkpoint=resume.as_posix() if resume else None)
        if "eval" in splits and watch.evaluated_at != trainer.state.global_step:
            trainer.evaluate()
    _save(trainer.model, job, out)
    write_json(job.metrics.with_name("summary.json"), _summary(trainer, watch, done, time.monotonic() - started))


def choose_dtype(asked: str) -> torch.dtype:
    """The type the base computes in: as asked, or by what the device has."""
    if asked != "auto":
        return _DTYPES[asked]
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _load(job: Job, dtype: torch.dtype) -> Any:
    recipe = job.recipe
    quantization = None
    if recipe.model.load_in != "16bit":
        quantization = _quantization(recipe.model.load_in, dtype)
    device = {"": 0} if torch.cuda.is_available() else {"": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        dtype=dtype,
        device_map=device if quantization is not None or torch.cuda.is_available() else None,
        quantization_config=quantization,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    lora = recipe.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha if lora.alpha % 1 else int(lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=list(lora.modules),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model.config.use_cache = False
    # The adapter's first values depend on the seed alone, not on what loading the base drew before.
    transformers.set_seed(recipe.train.seed)
    return get_peft_model(model, config)


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


def _arguments(job: Job, dtype: torch.dtype) -> SFTConfig:
    recipe, train = job.recipe, job.recipe.train
    gpu = torch.cuda.is_available()
    constant = "constant_with_warmup" if train.warmup else "constant"
    arguments = SFTConfig(
        output_dir=job.checkpoints.as_posix(),
        seed=train.seed,
        data_seed=train.seed,
        max_length=recipe.model.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_steps=train.max_steps or -1,
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=recipe.eval.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=constant if train.schedule == "constant" else train.schedule,
        warmup_steps=train.warmup if train.warmup < 1 else int(train.warmup),
        optim=_OPTIMIZERS.get(train.optimizer, train.optimizer),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        bf16=gpu and dtype == torch.bfloat16,
        fp16=gpu and dtype == torch.float16,
        use_cpu=not gpu,
        logging_steps=recipe.tracking.log_steps,
        logging_first_step=True,
        report_to=list(recipe.tracking.report_to) or "none",
        run_name=recipe.name,
        save_strategy="steps",
        save_steps=train.save_steps,
        # Old checkpoints are removed by ggufy, after the new one verifies.
        save_total_limit=None,
        eval_strategy="steps" if recipe.eval.steps else "no",
        eval_steps=recipe.eval.steps,
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
        # A loss that is not a number has to be seen, not replaced by 0.
        logging_nan_inf_filter=False,
    )
    # The trainer would multiply the batch by the number of GPUs it sees, in silence.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _tokenizer(base: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        reserved = "<|finetune_right_pad_id|>"
        tokenizer.pad_token = reserved if reserved in tokenizer.get_vocab() else tokenizer.eos_token
    return tokenizer


def _splits(data: Path) -> list[str]:
    return [name for name in ("train", "eval") if (data / f"{name}.arrow").is_file()]


def _total_steps(trainer: SFTTrainer, recipe: Recipe) -> int:
    if recipe.train.max_steps:
        return recipe.train.max_steps
    per_epoch = -(-len(trainer.get_train_dataloader()) // recipe.train.gradient_accumulation)
    return max(1, int(per_epoch * recipe.train.epochs))


def _save(model: Any, job: Job, out: Path) -> None:
    """Write the adapter with the tokenizer of its base: the same bytes for the same training, on any day."""
    if out.exists():
        shutil.rmtree(out)
    model.save_pretrained(out, safe_serialization=True)
    (out / "README.md").unlink(missing_ok=True)
    path = out / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = job.recipe.model.base
    config["revision"] = job.recipe.model.revision
    # peft keeps these as sets, whose order changes from process to process.
    config = {key: sorted(value) if key == "target_modules" else value for key, value in sorted(config.items())}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _TOKENIZER_FILES:
        if (job.base / name).is_file():
            shutil.copyfile(job.base / name, out / name)


def _summary(trainer: SFTTrainer, watch: Watch, resumed: int, seconds: float) -> dict[str, Any]:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {
        "steps": trainer.state.global_step,
        "resumed_from_step": resumed,
        "final_loss": losses[-1] if losses else None,
        "best_loss": min(losses) if losses else None,
        "eval_loss": watch.latest.get("eval_loss"),
        "epochs": trainer.state.epoch,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(watch.tokens_per_second, 1),
        "trainable_parameters": trainable,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


class _tidy_stdout:  # noqa: N801 - used like a function
    """Send what the libraries print to standard error: standard output belongs to the command's answer."""

    def __enter__(self) -> None:
        self.before, sys.stdout = sys.stdout, sys.stderr

    def __exit__(self, *_: object) -> None:
        sys.stdout = self.before
