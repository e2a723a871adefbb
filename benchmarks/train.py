"""Time a step of ggufy against a script of trl written by hand with the same settings, data and model.

    python benchmarks/train.py [--steps 24] [--rounds 5]

On a CPU: the built-in tiny model. Where there is a CUDA GPU: random weights of the 1B shape (`make vendor` first), and,
with unsloth installed, also Unsloth by hand and ggufy with it, in a process of their own, since Unsloth changes trl.
The two of a pair take turns in one process; a step's time is that from the end of the first step to the end of the
last, so loading and the save at the end are not in it, and logging every step is. Asked is at most 2% over.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

VOCABULARY = Path(__file__).parents[1] / "vendor" / "llama.cpp" / "models" / "ggml-vocab-llama-bpe.gguf"
LIMIT = 1.02


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--steps", type=int, default=24)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--inside", nargs=2, metavar=("BACKEND", "FOLDER"))
    options = asked.parse_args()
    if options.inside:
        print(json.dumps(measure(options.inside[0], Path(options.inside[1]), options.steps, options.rounds)))
        return
    import torch

    from ggufy.train import job

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if torch.cuda.is_available():
            from ggufy.model import random_llama

            random_llama.write(folder / "base", random_llama.SHAPES["1b"], VOCABULARY)
        backends = ["hf", *(["unsloth"] if torch.cuda.is_available() and job.find_spec("unsloth") else [])]
        for backend in backends:
            show(backend, inside(backend, folder, options))
        if "unsloth" not in backends:
            print("unsloth: not measured, it needs a CUDA GPU and its package")


def inside(backend: str, folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    counts = ("--steps", str(options.steps), "--rounds", str(options.rounds))
    command = [sys.executable, str(Path(__file__).absolute()), *counts, "--inside", backend, str(folder)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    seconds: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def show(backend: str, seconds: dict[str, list[float]]) -> None:
    by_hand, ggufy = (median(seconds[name]) for name in ("by hand", "ggufy"))
    pairs = [ours / theirs for ours, theirs in zip(seconds["ggufy"], seconds["by hand"], strict=True)]
    peer = "trl" if backend == "hf" else "unsloth"
    print(f"{peer} by hand          {1000 * by_hand:8.2f} ms a step")
    print(f"ggufy, backend {backend:8} {1000 * ggufy:7.2f} ms a step")
    verdict = "kept" if median(pairs) <= LIMIT else "MISSED"
    shown = ", ".join(f"{pair:.3f}" for pair in pairs)
    print(f"ratio {median(pairs):.3f}, the median of {shown}; asked is at most {LIMIT}: {verdict}")


def settings(folder: Path, steps: int) -> dict[str, Any]:
    own = {"train.max_steps": steps, "train.save_steps": 10 * steps, "train.warmup": 0}
    if (folder / "base").is_dir():
        big = {"model.base": folder / "base", "data.source": "builtin:samples", "data.train_size": 200}
        return own | big | {"model.load_in": "4bit", "model.max_length": 1024, "train.batch_size": 4}
    return own | {"train.batch_size": 4, "train.gradient_accumulation": 2}


def measure(backend: str, folder: Path, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of both, a value a round."""
    # Beside this file is a kernels.py, which transformers would take for the package of that name.
    sys.path = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    recipe = "1b_qlora" if (folder / "base").is_dir() else "tiny"
    changes = [f"{key}={value}" for key, value in settings(folder, steps).items()]
    if backend == "unsloth":
        from unsloth import FastLanguageModel  # noqa: F401 - before all that it changes
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    from ggufy import pipeline

    class Clock(TrainerCallback):  # type: ignore[misc]
        ends: list[float] = []  # noqa: RUF012

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, state, control
            Clock.ends.append(time.perf_counter())

    DEFAULT_CALLBACKS.append(Clock)

    def timed(run: Callable[[], object]) -> float:
        Clock.ends = []
        run()
        assert len(Clock.ends) == steps
        return (Clock.ends[-1] - Clock.ends[0]) / (steps - 1)

    def ggufy() -> object:
        return pipeline.train(recipe, run_name=backend, overrides=[*changes, f"train.backend={backend}"], fresh=True)

    ggufy()  # makes the data, and warms everything up
    frozen = json.loads(Path(f"runs/{backend}/run.json").read_text())["recipe"]
    base = Path(frozen["model"]["base"])
    if not base.is_dir():
        from ggufy.recipe import recipe as recipes
        from ggufy.stages import provenance

        base = provenance.base(recipes.from_values(frozen), None).path
    data = Path(f"runs/{backend}/data/train.arrow").rename(f"{backend}.arrow").absolute()
    ways = {"by hand": lambda: by_hand(backend, frozen, base, data, folder / "out"), "ggufy": ggufy}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    return seconds


def by_hand(backend: str, recipe: dict[str, Any], base: Path, data: Path, out: Path) -> None:
    """What somebody would write who has the same rows of ids and labels."""
    import datasets
    import torch
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    train, lora = recipe["train"], recipe["lora"]
    gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = (unsloth_model if backend == "unsloth" else plain_model)(recipe, base)
    assert lora["target_modules"] == "all"
    arguments = SFTConfig(
        output_dir=str(out),
        seed=train["seed"],
        max_length=recipe["model"]["max_length"],
        dataset_kwargs={"skip_prepare_dataset": True},
        max_steps=train["max_steps"],
        per_device_train_batch_size=train["batch_size"],
        gradient_accumulation_steps=train["gradient_accumulation"],
        learning_rate=train["learning_rate"],
        lr_scheduler_type=train["schedule"],
        optim={"adamw": "adamw_torch"}.get(train["optimizer"], train["optimizer"]),
        weight_decay=train["weight_decay"],
        max_grad_norm=train["max_grad_norm"],
        gradient_checkpointing=train["gradient_checkpointing"] and backend != "unsloth",
        bf16=gpu,
        use_cpu=not gpu,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
    )
    rows = datasets.Dataset.from_file(str(data))
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(trainer.callback_handler.callbacks[-1])  # the printer
    trainer.train()


def plain_model(recipe: dict[str, Any], base: Path) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    gpu = torch.cuda.is_available()
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16 if gpu else torch.float32,
        device_map={"": 0} if gpu else None,
        quantization_config=quantized if recipe["model"]["load_in"] == "4bit" else None,
    )
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = recipe["lora"]
    config = LoraConfig(r=lora["r"], lora_alpha=int(lora["alpha"]), target_modules=modules, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def unsloth_model(recipe: dict[str, Any], base: Path) -> Any:
    import torch
    from unsloth import FastLanguageModel

    four = recipe["model"]["load_in"] == "4bit"
    model, _ = FastLanguageModel.from_pretrained(
        str(base), max_seq_length=recipe["model"]["max_length"], dtype=torch.bfloat16, load_in_4bit=four
    )
    lora = recipe["lora"]
    return FastLanguageModel.get_peft_model(
        model, r=lora["r"], lora_alpha=int(lora["alpha"]), use_gradient_checkpointing="unsloth", random_state=3407
    )


if __name__ == "__main__":
    main()
