"""What the settings of training do, on real trainings of the tiny model: packing, stopping early, the best checkpoint.

All of them run in one process, one after the other, as in a notebook: importing torch is most of the cost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

# Every row in one batch: the loss of a step is then that of the same tokens, however they are put together.
WHOLE = (
    *("data.train_size=12", "train.batch_size=12", "train.max_steps=3", "model.max_length=300", "lora.r=4"),
    *("train.warmup=0", "train.save_steps=3"),
)
HELD_OUT = (
    *("data.train_size=20", "data.eval_size=6", "eval.steps=1", "eval.batch_size=4", "model.max_length=300"),
    "train.save_steps=100",
)
RUNS = {
    "unpacked": WHOLE,
    "packed": (*WHOLE, "train.packing=true"),
    "grouped": (*WHOLE, "train.group_by_length=true", "train.batch_size=3", "train.max_steps=4"),
    "shuffled": (*WHOLE, "train.batch_size=3", "train.max_steps=4"),
    # So fast that it soon unlearns.
    "stopped": (*HELD_OUT, "train.learning_rate=0.05", "train.early_stopping=2", "train.keep_best=true"),
    "stopped!": (*HELD_OUT, "train.learning_rate=0.05", "train.early_stopping=2", "train.keep_best=true"),
    "under": ("data.train_size=200", "train.batch_size=2", "train.max_steps=15", "train.gradient_accumulation=1"),
    "longer": (*WHOLE, "train.keep_checkpoints=1"),
    "longer+": (*WHOLE, "train.keep_checkpoints=2", "train.max_steps=5", "tracking.log_steps=2"),
    "longer-": (*WHOLE, "train.max_steps=2", "train.learning_rate=1e-5"),
}
# A sign after a name means that run once more; `!` that its adapter is to be made again from the checkpoints.
SCRIPT = """
import json, sys
from pathlib import Path

from ggufy import pipeline
from ggufy.system.progress import show_progress
from ggufy.errors import GgufyError

show_progress()
for name, settings in json.loads(sys.argv[1]).items():
    run = name.rstrip("+-!")
    print(f"== {name}", file=sys.stderr, flush=True)
    if name.endswith("!"):
        Path(f"runs/{run}/adapter").rename(f"first-{run}")
        Path(f"runs/{run}/stamps/adapter.json").unlink()
    try:
        pipeline.train("tiny", run_name=run, overrides=settings)
    except GgufyError as error:
        print(f"error: {error.message} hint: {error.hint}", file=sys.stderr, flush=True)
"""


# Of what was held out, one conversation at a time: the sum of the losses of all tokens that count, and their number.
EVALUATED = """
import datasets, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
from ggufy.stages import model_source
from ggufy.runs.run import Run

found = model_source.of_output_folder(Run(Path("runs/stopped")))
base = AutoModelForCausalLM.from_pretrained(found.base.path, dtype=torch.float32)
model = PeftModel.from_pretrained(base, found.adapter).eval()
total, count = 0.0, 0
for row in datasets.Dataset.from_file("runs/stopped/data/eval.arrow"):
    ids, labels = (torch.tensor(row[key]) for key in ("input_ids", "labels"))
    with torch.no_grad():
        logits = model(ids[None]).logits[0, :-1]
    total += torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=-100).item()
    count += int((labels[1:] != -100).sum())
print(total / count)
"""


@dataclass
class Trained:
    folder: Path
    said: dict[str, str]

    def metrics(self, run: str, key: str = "loss") -> dict[int, float]:
        lines = (self.folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return {entry["step"]: entry[key] for entry in map(json.loads, lines) if key in entry}

    def summary(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "runs" / run / "summary.json").read_text())
        return found

    def weights(self, run: str, of: str = "adapter") -> bytes:
        return (self.folder / "runs" / run / of / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("settings")
    command = [sys.executable, "-c", SCRIPT, json.dumps(RUNS)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = [part.partition("\n") for part in done.stderr.split("== ")[1:]]
    return Trained(folder, {name: said for name, _, said in parts})


def test_packed_and_unpacked_give_the_same_loss_on_the_same_tokens(trained: Trained) -> None:
    unpacked, packed = trained.metrics("unpacked"), trained.metrics("packed")
    assert list(unpacked) == list(packed) == [1, 2, 3]
    # The later steps also show that the gradients were the same.
    assert list(packed.values()) == pytest.approx(list(unpacked.values()), rel=2e-5)
    assert trained.summary("packed")["tokens"] == trained.summary("unpacked")["tokens"]
    assert trained.summary("packed")["samples"] == trained.summary("unpacked")["samples"] == 36
    before, after = (
        load_file(trained.folder / f"runs/{run}/adapter/adapter_model.safetensors") for run in ("unpacked", "packed")
    )
    assert all(abs(before[name] - after[name]).max() < 1e-4 for name in before)


def test_packing_says_how_full_the_rows_are(trained: Trained) -> None:
    assert "packed: 12 conversations in " in trained.said["packed"]
    assert "% full" in trained.said["packed"]


def test_grouping_by_length_trains_on_every_conversation_once(trained: Trained) -> None:
    assert trained.summary("grouped")["samples"] == 12
    assert list(trained.metrics("grouped")) == [1, 2, 3, 4]
    # The same conversations, in other company.
    assert trained.summary("grouped")["tokens"] == trained.summary("shuffled")["tokens"]
    assert trained.metrics("grouped") != trained.metrics("shuffled")


def test_early_stopping_keeps_the_best(trained: Trained) -> None:
    losses = trained.metrics("stopped", "eval_loss")
    best = min(losses, key=lambda step: losses[step])
    summary = trained.summary("stopped")
    assert summary["steps"] == max(losses) == best + 2 < 80
    assert summary["best_eval_step"] == best
    assert summary["best_eval_loss"] == losses[best]
    assert f"stopping early at step {best + 2}: 2 evaluations in a row" in trained.said["stopped"]
    assert f"the adapter is that of step {best}" in trained.said["stopped"]
    assert trained.weights("stopped") == trained.weights("stopped", f"checkpoints/checkpoint-{best}")
    assert trained.weights("stopped") != trained.weights("stopped", f"checkpoints/checkpoint-{best + 2}")


def test_the_eval_loss_is_the_mean_over_all_tokens_whatever_the_batches(trained: Trained, env: dict[str, str]) -> None:
    command = [sys.executable, "-c", EVALUATED]
    done = subprocess.run(command, cwd=trained.folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert trained.summary("stopped")["best_eval_loss"] == pytest.approx(float(done.stdout), rel=1e-5)


def test_what_stopped_early_stays_stopped(trained: Trained) -> None:
    steps = trained.summary("stopped")["steps"]
    assert f"resuming from step {steps}\n" in trained.said["stopped!"]
    assert trained.summary("stopped")["resumed_from_step"] == steps
    before = trained.folder / "first-stopped"
    assert {path.name: path.read_bytes() for path in before.iterdir()} == {
        path.name: path.read_bytes() for path in (trained.folder / "runs/stopped/adapter").iterdir()
    }


def test_less_than_an_epoch_with_a_falling_loss_is_undertrained(trained: Trained) -> None:
    summary = trained.summary("under")
    assert summary["samples"] == 30
    [advice] = summary["advice"]
    assert advice.startswith(f"undertrained: {summary['epochs']:.2f} of an epoch")
    assert f"train.max_steps={round(15 / summary['epochs'])} " in advice
    assert advice in trained.said["under"]
    assert not trained.summary("unpacked")["advice"]


def test_more_steps_go_on_from_the_last(trained: Trained) -> None:
    said = trained.said["longer+"]
    taken = "train.max_steps was 3 and is 5; train.keep_checkpoints was 1 and is 2; tracking.log_steps was 1 and is 2"
    assert f"continuing the run, with settings that may change: {taken}" in said
    assert "resuming from step 3" in said
    assert "the learning rate goes on at 0.0008 instead of 0, by the schedule's new end" in said
    assert trained.summary("longer")["steps"] == 5
    assert trained.summary("longer")["samples"] == 60
    assert list(trained.metrics("longer", "learning_rate").values())[-1] == pytest.approx(4e-4)


def test_fewer_steps_or_another_learning_rate_are_refused(trained: Trained) -> None:
    said = trained.said["longer-"]
    assert "was made with another recipe, base or data" in said
    assert "train.max_steps was 5 and is 2" in said
    assert "train.learning_rate was 0.002 and is 1e-05" in said
    assert "--fresh" in said


def test_the_summary_says_on_what_and_how_long(trained: Trained) -> None:
    summary = trained.summary("unpacked")
    losses = trained.metrics("unpacked")
    assert summary["final_loss"] == losses[3]
    assert summary["best_loss"] == min(losses.values())
    assert summary["epochs"] == 3
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 100e6
    assert summary["hardware"]["cores"] == len(os.sched_getaffinity(0))
    assert {"python", "torch", "transformers", "trl", "peft"} <= summary["versions"].keys()
    assert summary["backend"] == "hf"
    assert "backend: hf, because there is no CUDA GPU here" in trained.said["unpacked"]
