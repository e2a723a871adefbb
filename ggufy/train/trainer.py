"""The training that all backends share: trl's trainer on ggufy's own ids and labels.

A backend says how the base is loaded and what it does by itself (`Backend`). Unsloth changes trl when it is imported,
so its file imports it before this module, and nothing else imports this one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import AutoTokenizer
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from trl import SFTTrainer

from ggufy.errors import TrainError
from ggufy.system import progress
from ggufy.system.disk import write_json
from ggufy.system.interrupts import StopSignals
from ggufy.train import batches, checkpoints, config, distributed, loss_curve, memory, saving, summary, trackers
from ggufy.train.job import Job
from ggufy.train.watch import Watch

log = logging.getLogger("ggufy")

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Backend:
    """In what one backend differs from another."""

    name: str
    load: Callable[[Job, torch.dtype], Any]
    """The base, computing in a type, with a fresh adapter on it."""
    flat: bool = False
    """Packed rows of a batch become one long row, with their lengths."""
    checkpoints_gradients: bool = False
    """The model does its own gradient checkpointing; the trainer is to leave it alone."""


class _Trainer(SFTTrainer):
    """trl's trainer with ggufy's order of rows, a count of conversations, and without a model card in checkpoints.

    Its eval loss is the mean over all tokens that count, as `ggufy eval` has it, and not the mean over batches.
    """

    rows: batches.Collate
    order: batches.LengthGrouped | None = None
    samples = 0
    heard, counted = 0.0, 0
    """Of the evaluation under way, in this process: the sum of the losses of so many tokens."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        return

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        held = self.rows.conversations(inputs)
        if self.args.world_size > 1:
            held = int(self.accelerator.gather(torch.tensor([held], device=self.args.device)).sum())
        self.samples += held
        return super().training_step(model, inputs, *rest, **named)

    def evaluation_loop(self, *rest: Any, **named: Any) -> Any:
        self.heard, self.counted = 0.0, 0
        done = super().evaluation_loop(*rest, **named)
        sums = torch.tensor([[self.heard, self.counted]], dtype=torch.float64, device=self.args.device)
        heard, counted = self.accelerator.gather(sums).sum(dim=0).tolist()
        done.metrics["eval_loss"] = heard / counted if counted else math.nan
        return done

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        labels[self._own(len(labels)) :] = batches.IGNORED
        counted = int((labels[:, 1:] != batches.IGNORED).sum())
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach()
        if counted:
            self.heard += float(loss) * counted
            self.counted += counted
        return loss, None, None

    def _own(self, rows: int) -> int:
        """How many rows of a batch are this process's own: the last one is filled up with rows of the beginning."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return rows
        return int(min(rows, max(0, state.remainder - self.accelerator.process_index * rows)))

    def _get_train_sampler(self, *rest: Any, **named: Any) -> Any:
        return self.order if self.order is not None else super()._get_train_sampler(*rest, **named)

    def _save_checkpoint(self, *rest: Any, **named: Any) -> Any:
        with checkpoints.saving(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            return super()._save_checkpoint(*rest, **named)


def fit(job: Job, out: Path, backend: Backend) -> None:
    """Train from the newest checkpoint that verifies, or from the start, and write the adapter to `out`."""
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(job.recipe.train.seed)
    gpu = torch.cuda.is_available()
    dtype = choose_dtype(job.recipe.model.dtype)
    rank, count = distributed.place()
    if gpu and count > 1:
        torch.cuda.set_device(rank)
    made_on = {
        "device": "cuda" if gpu else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "backend": backend.name,
        "gpus": str(count),
    }
    resume = checkpoints.newest(job.checkpoints, job.identity, made_on, change_gpus=job.change_gpus)
    done = checkpoints.step_of(resume) if resume else 0
    if resume:
        log.info("resuming from step %d", done)
    splits = _splits(job)
    if unpaged := memory.unpaged(job.recipe.train.optimizer, gpu=gpu):
        log.info("optimizer: %s", unpaged)
    with warnings.catch_warnings(), _tidy_stdout(), memory.explained(job.recipe, gpu=gpu):
        warnings.simplefilter("ignore")
        trainer = _trainer(job, backend, dtype, splits)
        total = _total_steps(trainer)
        before = checkpoints.manifest(resume).get("seen", {}) if resume else {}
        trainer.samples = int(before.get("samples", 0))
        started = time.monotonic()

        def seen() -> dict[str, float]:
            seconds = before.get("seconds", 0.0) + time.monotonic() - started
            return {"samples": trainer.samples, "seconds": round(seconds, 3)}

        shown = progress.bar("training", total, done) if rank == 0 else contextlib.nullcontext()
        with shown as bar, StopSignals() as signals:
            watch = Watch(job, bar, done, made_on, signals, seen)
            trainer.add_callback(watch)
            if resume and _is_over(job, resume, total):
                _take(trainer, resume)
            else:
                trainer.train(resume_from_checkpoint=resume.as_posix() if resume else None)
    if rank > 0:
        return
    history = trainer.state.log_history
    best = loss_curve.best(loss_curve.logged(history)) if job.recipe.train.keep_best else None
    chosen = job.checkpoints / f"checkpoint-{best[0]}" if best else None
    saving.save(trainer.model, job, out, best=chosen)
    if best:
        log.info("the adapter is that of step %d, with the lowest eval loss: %.4f", *best)
    _report(trainer, job, watch, done, {"backend": backend.name, "gpus": count, "dtype": made_on["dtype"], **seen()})


def choose_dtype(asked: str) -> torch.dtype:
    """The type the base computes in: as asked, or by what the device has."""
    if asked != "auto":
        return _DTYPES[asked]
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _splits(job: Job) -> dict[str, datasets.Dataset]:
    paths = {name: job.data / f"{name}.arrow" for name in ("train", "eval")}
    splits = {name: datasets.Dataset.from_file(path.as_posix()) for name, path in paths.items() if path.is_file()}
    train = job.recipe.train
    if "eval" not in splits and (train.keep_best or train.early_stopping):
        raise TrainError(
            "train.keep_best and train.early_stopping need an eval loss, but no rows are held out",
            "hold some out with data.eval_size, or leave these two out",
        )
    if train.packing:
        job.checkpoints.mkdir(parents=True, exist_ok=True)
        count, rank = len(splits["train"]), distributed.place()[0]
        path = job.checkpoints / (f"packed-{rank}.arrow" if rank else "packed.arrow")
        splits["train"] = batches.pack(splits["train"], job.recipe.model.max_length, path)
        full = float(batches.lengths(splits["train"]).mean()) / job.recipe.model.max_length
        log.info(
            "packed: %s conversations in %s rows, %.0f%% full", f"{count:,}", f"{len(splits['train']):,}", 100 * full
        )
    return splits


def _trainer(job: Job, backend: Backend, dtype: torch.dtype, splits: dict[str, datasets.Dataset]) -> _Trainer:
    model, tokenizer = backend.load(job, dtype), _tokenizer(job.base)
    rows = batches.Collate(tokenizer.pad_token_id, flat=backend.flat)
    train = job.recipe.train
    checkpointing = train.gradient_checkpointing and not backend.checkpoints_gradients
    trainer = _Trainer(
        model=model,
        args=config.arguments(job, dtype, checkpointing=checkpointing),
        data_collator=rows,
        train_dataset=splits["train"],
        eval_dataset=splits.get("eval"),
        processing_class=tokenizer,
    )
    trainer.rows = rows
    if train.group_by_length:
        group = train.batch_size * train.gradient_accumulation
        trainer.order = batches.LengthGrouped(batches.lengths(splits["train"]).tolist(), group, train.seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # trl rounds the adapter of a quantized base to bf16, which a GPU without bf16 cannot train.
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    for tracker in trackers.callbacks(job):
        trainer.add_callback(tracker)
    return trainer


def _tokenizer(base: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        reserved = "<|finetune_right_pad_id|>"
        tokenizer.pad_token = reserved if reserved in tokenizer.get_vocab() else tokenizer.eos_token
    return tokenizer


def _total_steps(trainer: _Trainer) -> int:
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    per_epoch = -(-len(trainer.get_train_dataloader()) // trainer.args.gradient_accumulation_steps)
    # The trainer counts so too, rounding up.
    return max(1, int(-(-per_epoch * trainer.args.num_train_epochs // 1)))


def _is_over(job: Job, checkpoint: Path, total: int) -> bool:
    """Whether there is nothing left to train. The trainer, asked all the same, would do one step too many."""
    stalled = loss_curve.has_stalled(loss_curve.of_checkpoint(checkpoint), job.recipe.train.early_stopping)
    return checkpoints.step_of(checkpoint) >= total or stalled


def _take(trainer: _Trainer, checkpoint: Path) -> None:
    """The weights and the figures of a checkpoint at which training had ended."""
    trainer._load_from_checkpoint(checkpoint.as_posix())
    trainer.state = TrainerState.load_from_json((checkpoint / "trainer_state.json").as_posix())


def _report(trainer: _Trainer, job: Job, watch: Watch, resumed: int, facts: dict[str, Any]) -> None:
    """summary.json, loss.png, and what is to be said about the losses."""
    state = trainer.state
    advice = summary.advice(job.recipe, state.log_history, state.epoch or 0.0)
    for line in advice:
        log.info("%s", line)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    values = {
        "steps": state.global_step,
        "resumed_from_step": resumed,
        **summary.losses(state.log_history),
        "epochs": state.epoch,
        "samples": facts.pop("samples"),
        "tokens": state.num_input_tokens_seen,
        "seconds": facts.pop("seconds"),
        "tokens_per_second": round(watch.tokens_per_second, 1),
        "trainable_parameters": sum(p.numel() for p in trained),
        "adapter_bytes": sum(p.numel() * p.element_size() for p in trained),
        "lora_memory": memory.of_adapter(trainer.model, trainer.optimizer).values(),
        **facts,
        **summary.peak_memory(),
        "hardware": summary.hardware(),
        "versions": summary.versions(),
        "advice": advice,
    }
    write_json(job.metrics.with_name("summary.json"), values)
    loss_curve.draw(job.metrics, job.metrics.with_name("loss.png"), job.metrics.parent.name)


class _tidy_stdout:  # noqa: N801 - used like a function
    """Send what the libraries print to standard error: standard output belongs to the command's answer."""

    def __enter__(self) -> None:
        self.before, sys.stdout = sys.stdout, sys.stderr

    def __exit__(self, *_: object) -> None:
        sys.stdout = self.before
