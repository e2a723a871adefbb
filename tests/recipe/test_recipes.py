"""The recipes of published runs, on small files of their formats: right, prepared, and trained on the tiny model."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from ggufy import pipeline
from ggufy.data import prepare, source
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.model import tiny
from ggufy.plan import footprint
from ggufy.recipe.schema import Recipe

DAY = date(2026, 3, 7)
FINETOME = ("1b_smoke", "1b_r16_10k", "1b_r64_10k", "1b_r64_30k", "3b_r64_30k")
PRICE = ("3b_price_lite", "3b_price_full")
QUESTION = "What does this cost to the nearest dollar?"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path.as_posix()


def finetome(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {
            "conversations": [{"from": "human", "value": f"How much is {n}+1?"}, {"from": "gpt", "value": f"{n + 1}."}],
            "source": "x",
            "score": 5.1,
        }
        for n in range(start, stop)
    ]


def tasks(start: int, stop: int) -> list[dict[str, Any]]:
    turns = [
        [{"role": "user", "content": f"text {n}"}, {"role": "assistant", "content": f"short {n}"}]
        for n in range(start, stop)
    ]
    return [{"TASK": "SUMMARIZE", "messages": each} for each in turns]


def prices(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{QUESTION}\n\n{'very ' * 60}nice kettle {n}\n\nPrice is $", "completion": f"{n}.00"}
        for n in range(start, stop)
    ]


@pytest.fixture(scope="module")
def chat_base() -> Path:
    return tiny.ensure(source.sample_texts())


@pytest.fixture(scope="module")
def plain_base(chat_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a base model: without a chat template."""
    folder = tmp_path_factory.mktemp("plain") / "base"
    shutil.copytree(chat_base, folder)
    (folder / "stamp.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config |= {"eos_token": "<|end_of_text|>"}
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def prepared(recipe: Recipe, base: Path, out: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The counts, and of each training row the text and what of it is trained on."""
    rows = source.locate(recipe.data, offline=True)
    report = prepare.prepare(rows, recipe.data, base, recipe.model.max_length, DAY, out)
    tokenizer = Tokenizer(base, DAY, "responses")
    with pa.OSFile((out / "train.arrow").as_posix()) as file:
        table = pa.ipc.open_stream(file).read_all().to_pylist()
    told = [
        (tokenizer.decode(row["input_ids"]), tokenizer.decode([n for n in row["labels"] if n != IGNORED]))
        for row in table
    ]
    return report, told


@pytest.mark.parametrize("name", FINETOME)
def test_finetome(name: str, chat_base: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", finetome(0, 70))
    recipe = pipeline.check(name, [f"data.source={file}"])
    wanted = {"1b_smoke": 64, "1b_r16_10k": 10_000, "1b_r64_10k": 10_000}.get(name, 30_000)
    assert recipe.data.train_size == wanted
    assert recipe.lora.r == (16 if name in ("1b_smoke", "1b_r16_10k") else 64)
    assert recipe.export.quants == ("q8_0",)
    assert recipe.model.load_in == "4bit"
    assert ("3B" if name.startswith("3b") else "1B") in recipe.model.base
    if name != "1b_smoke":
        train = recipe.train
        assert (train.batch_size, train.gradient_accumulation) == (2, 4)
        assert train.packing
        assert train.max_steps == (400 if name == "3b_r64_30k" else 600)
    smaller = pipeline.check(name, [f"data.source={file}", "data.train_size=64", "data.eval_size=6"])
    report, told = prepared(smaller, chat_base, tmp_path / "out")
    assert (report["train"].kept, report["eval"].kept) == (64, 6)
    assert told[7][1] == "8.<|eot_id|>"


def test_tools(chat_base: Path, tmp_path: Path) -> None:
    """Rows in the form that the set has, by Llama 3.2's own template; one that calls two at once is left out."""
    template = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates/meta-llama-Llama-3.2-3B-Instruct.jinja"
    if not template.is_file():
        pytest.skip("`make vendor` brings Llama 3.2's own template")
    base = Path(shutil.copytree(chat_base, tmp_path / "base"))
    shutil.copy(template, base / "chat_template.jinja")
    listed = [{"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}]

    def row(*turns: tuple[str, str], tools: str = json.dumps(listed)) -> dict[str, Any]:
        return {"conversations": [{"from": who, "value": text} for who, text in turns], "tools": tools}

    call, two = '{"name": "clock", "arguments": {"at": "Rome"}}', '[{"name": "clock"}, {"name": "clock"}]'
    answer = (("observation", '{"time": "7:00"}'), ("gpt", "It is seven."))
    rows = [
        row(("human", "Hi"), ("gpt", "Hello!"), tools="[]"),
        row(("human", "Time in Rome?"), ("function_call", call), *answer),
        row(("human", "Twice?"), ("function_call", two), *answer),
    ]
    file = write(tmp_path / "a.jsonl", rows)
    recipe = pipeline.check("3b_tools", [f"data.source={file}", "data.train_size=3", "data.eval_size=0"])
    assert (recipe.train.epochs, recipe.train.max_steps) == (1, None)
    report, told = prepared(recipe, base, tmp_path / "out")
    assert (report["train"].kept, report["train"].skipped_bad) == (2, 1)
    assert '"name": "clock"' not in told[0][0]
    assert '"name": "clock"' in told[1][0]
    assert told[1][1] == '{"name": "clock", "parameters": {"at": "Rome"}}<|eot_id|>It is seven.<|eot_id|>'


def test_tasks(chat_base: Path, tmp_path: Path) -> None:
    files = {
        "source": write(tmp_path / "a.jsonl", tasks(0, 9)),
        "eval_source": write(tmp_path / "b.jsonl", tasks(9, 12)),
    }
    recipe = pipeline.check("3b_tasks", [f"data.{key}={file}" for key, file in files.items()])
    train, lora = recipe.train, recipe.lora
    assert (recipe.model.max_length, lora.r, lora.alpha, lora.dropout, lora.target_modules) == (
        *(512, 16, 32, 0.05),
        "attention",
    )
    assert (train.epochs, train.max_steps, train.batch_size, train.gradient_accumulation) == (3, None, 8, 2)
    assert (train.learning_rate, train.optimizer) == (2e-4, "paged_adamw_8bit")
    assert train.keep_best
    report, told = prepared(recipe, chat_base, tmp_path / "out")
    assert (report["train"].kept, report["eval"].kept) == (9, 3)
    assert "\n\n[SUMMARIZE] text 4<|eot_id|>" in told[4][0]
    assert told[4][1] == "short 4<|eot_id|>"


@pytest.mark.parametrize("name", PRICE)
def test_prices(name: str, plain_base: Path, tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", prices(0, 9))
    write(tmp_path / "set" / "val.jsonl", prices(9, 12))
    readme = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "val"))
    (tmp_path / "set" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{readme}---\n", "utf-8"
    )
    recipe = pipeline.check(name, [f"data.source={tmp_path / 'set'}"])
    full = name == "3b_price_full"
    train, lora = recipe.train, recipe.lora
    assert recipe.model.base == "meta-llama/Llama-3.2-3B"
    assert recipe.model.max_length == 128
    assert (lora.r, lora.alpha, lora.dropout) == ((256, 512, 0.1) if full else (32, 64, 0.1))
    assert lora.target_modules == ("all" if full else "attention")
    assert (train.batch_size, train.epochs) == ((256, 3) if full else (32, 1))
    assert (train.learning_rate, train.schedule, train.warmup) == (1e-4, "cosine", 0.01)
    assert (train.weight_decay, train.optimizer, train.max_grad_norm) == (0.001, "paged_adamw_32bit", 0.3)
    report, told = prepared(recipe, plain_base, tmp_path / "out")
    assert (report["train"].kept, report["train"].prompts_cut, report["eval"].kept) == (9, 9, 3)
    assert report["train"].truncated == 0
    text, trained = told[5]
    # The question and the cue stay; what is between them gives way.
    assert text.startswith(f"<|begin_of_text|>{QUESTION}\n\nvery very")
    assert text.endswith("nice kettle 5\n\nPrice is $5.00<|end_of_text|>")
    assert trained == "5.00<|end_of_text|>"


TRAIN = """
import json, sys
import ggufy
for name, settings in json.loads(sys.argv[1]):
    run = ggufy.train(name, run_name=settings.pop("run"), overrides=[f"{k}={v}" for k, v in settings.items()])
    print(json.dumps(json.loads((run.path / "summary.json").read_text())))
"""


def test_each_format_trains(
    plain_base: Path, env: dict[str, str], light_run: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    small = {
        "model.load_in": "16bit",
        "train.max_steps": 2,
        "train.optimizer": "adamw",
        "lora.r": 4,
        "lora.alpha": 8,
        "train.batch_size": 2,
        "train.gradient_accumulation": 1,
        "train.gradient_checkpointing": "false",
    }
    alpaca = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(9)]
    written = [{"text": f"Chapter {n}. It was late."} for n in range(9)]
    files = {
        "sharegpt": write(tmp_path / "sharegpt.jsonl", finetome(0, 9)),
        "messages": write(tmp_path / "messages.jsonl", tasks(0, 9)),
        "pairs": write(tmp_path / "pairs.jsonl", prices(0, 9)),
        "alpaca": write(tmp_path / "alpaca.jsonl", alpaca),
        "text": write(tmp_path / "text.jsonl", written),
    }
    chat, plain = {"model.base": "builtin:tiny"}, {"model.base": plain_base.as_posix()}
    jobs = [
        ("1b_smoke", {**small, **chat, "data.source": files["sharegpt"], "run": "sharegpt"}),
        ("3b_tasks", {**small, **chat, "data.source": files["messages"], "run": "messages"}),
        ("3b_price_lite", {**small, **plain, "data.source": files["pairs"], "run": "pairs"}),
        ("1b_r16_10k", {**small, **plain, "data.source": files["alpaca"], "run": "alpaca"}),
        ("1b_r16_10k", {**small, **chat, "data.source": files["text"], "run": "text", "data.overflow": "split"}),
    ]
    jobs[1][1]["data.eval_source"] = write(tmp_path / "held-out.jsonl", tasks(9, 12))
    parts = {"data.split": "train[:7]", "data.eval_split": "train[7:]"}
    for key, value in {**parts, "data.eval_size": 2, "eval.steps": 1}.items():
        jobs[2][1][key] = value
    for at in (3, 4):
        jobs[at][1].update({"data.train_size": 7, "data.eval_size": 2})
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(jobs)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    summaries = [json.loads(line) for line in done.stdout.splitlines()]
    assert [summary["steps"] for summary in summaries] == [2] * 5
    assert all(0 < summary["final_loss"] < 20 for summary in summaries)
    assert all(summary["eval_loss"] is not None for summary in summaries[1:])
    for _, settings in jobs:
        assert (tmp_path / "runs" / str(settings["run"]) / "adapter" / "adapter_model.safetensors").is_file()
    # A base without a template makes a file without one.
    done = light_run("export", "pairs", "--quant", "q8_0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verified pairs-q8_0.gguf" in done.stderr


@pytest.fixture(scope="module")
def as_they_are(
    plain_base: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, Any]], str]:
    """The recipes with a paged optimizer, trained with all their settings but base, rows and steps."""
    folder = tmp_path_factory.mktemp("as-they-are")
    files = {
        "data.source": write(folder / "a.jsonl", tasks(0, 20)),
        "data.eval_source": write(folder / "b.jsonl", tasks(20, 24)),
    }
    for split, rows in (("train", prices(0, 33)), ("val", prices(33, 37))):
        write(folder / "set" / f"{split}.jsonl", rows)
    readme = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "val"))
    (folder / "set" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{readme}---\n", "utf-8"
    )
    priced = {"model.base": plain_base.as_posix(), "data.source": (folder / "set").as_posix(), "data.eval_size": 4}
    told = {"model.base": "builtin:tiny", **files, "train.max_steps": 3}
    jobs = [
        ("3b_tasks", {**told, "run": "3b_tasks"}),
        ("3b_tasks", {**told, "run": "unpaged", "train.optimizer": "adamw_8bit"}),
        ("3b_price_lite", {**priced, "run": "3b_price_lite"}),
        ("3b_price_full", {**priced, "run": "3b_price_full"}),
    ]
    code = TRAIN.replace("import ggufy\n", "import ggufy\nggufy.show_progress()\n")
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(jobs)], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = [str(settings["run"]) for _, settings in jobs]
    return folder, dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True)), done.stderr


@pytest.mark.parametrize(
    ("name", "optimizer", "steps"),
    [
        ("3b_tasks", "paged_adamw_8bit", 3),
        ("3b_price_lite", "paged_adamw_32bit", 2),
        ("3b_price_full", "paged_adamw_32bit", 3),
    ],
)
def test_a_recipe_trains_with_its_own_optimizer(
    as_they_are: tuple[Path, dict[str, dict[str, Any]], str], name: str, optimizer: str, steps: int
) -> None:
    folder, summaries, said = as_they_are
    recipe = pipeline.check(name)
    run, summary = folder / "runs" / name, summaries[name]
    frozen = json.loads((run / "run.json").read_text("utf-8"))["recipe"]
    assert (frozen["train"]["optimizer"], frozen["model"]["load_in"]) == (optimizer, "4bit")
    # One epoch of 33 rows in batches of 32, three of one batch, or as many as asked for.
    assert summary["steps"] == steps
    assert summary["eval_loss"] is not None
    shapes = footprint.adapter_tensors(tiny.SHAPE, recipe.lora)
    assert summary["trainable_parameters"] == sum(math.prod(size) for size in shapes.values())
    held = footprint.optimizer_bytes(tiny.SHAPE, recipe.lora, optimizer)
    count = 4 * summary["trainable_parameters"]
    assert summary["lora_memory"] == {
        "weights": count,
        "gradients": count,
        "optimizer": held,
        "total": 2 * count + held,
    }
    state = torch.load(run / f"checkpoints/checkpoint-{steps}/optimizer.pt", weights_only=True)["state"]
    # bitsandbytes keeps what is its own one level deeper.
    inner = [value for values in state.values() for value in values.values() if isinstance(value, dict)]
    kinds = {value["state1"].dtype for value in inner}
    assert (torch.uint8 in kinds) == optimizer.endswith("8bit")
    weights = load_file(run / "adapter/adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for key, tensor in weights.items() if "lora_B" in key)
    # No silent stand-in for pages that a CPU does not have.
    assert f"optimizer: {optimizer} does not page here: without a CUDA GPU its state stays in memory" in said


def test_without_a_gpu_a_paged_optimizer_makes_the_same_steps(
    as_they_are: tuple[Path, dict[str, dict[str, Any]], str],
) -> None:
    folder, _, said = as_they_are
    adapters = [
        (folder / "runs" / run / "adapter/adapter_model.safetensors").read_bytes() for run in ("3b_tasks", "unpaged")
    ]
    assert adapters[0] == adapters[1]
    assert said.count("does not page here") == 3
