"""The trainer's arguments. Imported by trainer.py only, which says in which order with Unsloth."""

from __future__ import annotations

import torch
from trl import SFTConfig

from ggufy.train import distributed
from ggufy.train.job import Job

_OPTIMIZERS = {"adamw": "adamw_torch"}


def arguments(job: Job, dtype: torch.dtype, *, checkpointing: bool) -> SFTConfig:
    """What a recipe says, as trl has it. `checkpointing`: the trainer is to make activations again."""
    recipe, train = job.recipe, job.recipe.train
    gpu = torch.cuda.is_available()
    constant = "constant_with_warmup" if train.warmup else "constant"
    count = distributed.place()[1]
    batch_size, accumulation = (
        distributed.share(train, count) if count > 1 else (train.batch_size, train.gradient_accumulation)
    )
    made = SFTConfig(
        output_dir=job.checkpoints.as_posix(),
        seed=train.seed,
        data_seed=train.seed,
        max_length=recipe.model.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_steps=train.max_steps or -1,
        num_train_epochs=train.epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=recipe.eval.batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=constant if train.schedule == "constant" else train.schedule,
        warmup_steps=train.warmup if train.warmup < 1 else int(train.warmup),
        optim=_OPTIMIZERS.get(train.optimizer, train.optimizer),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        bf16=gpu and dtype == torch.bfloat16,
        fp16=gpu and dtype == torch.float16,
        use_cpu=not gpu,
        ddp_backend="gloo" if count > 1 and not gpu else None,
        ddp_find_unused_parameters=False if count > 1 else None,
        # trl's own count of tokens begins anew with every resume.
        include_num_input_tokens_seen="non_padding",
        log_level_replica="error",
        logging_steps=recipe.tracking.log_steps,
        logging_first_step=True,
        report_to="none",
        project="ggufy",
        run_name=job.metrics.parent.name,
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
    made._n_gpu = min(1, made.n_gpu)
    if count > 1 and not gpu:
        # Several processes share the CPU, which has no number; with one, torch cannot load the optimizer's file.
        assert made.device.type == "cpu"
        made.__dict__["_setup_devices"] = torch.device("cpu")
    return made
