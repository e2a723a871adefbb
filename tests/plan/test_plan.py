"""`ggufy plan` against what it plans: peft's parameters, real optimizer states, live tensors, files on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ggufy.model import random_llama, tiny
from ggufy.plan import base_sizes, estimate, footprint, gpus, known_bases, planner
from ggufy.recipe import recipe
from ggufy.recipe.schema import ATTENTION, MLP, Lora

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]
VOCABULARY = Path(__file__).parents[2] / "vendor/llama.cpp/models/ggml-vocab-llama-bpe.gguf"
SHAPES = {**random_llama.SHAPES, "tiny": tiny.SHAPE}


@pytest.fixture
def plan(light_run: Run, tmp_path: Path) -> Callable[..., Any]:
    """plan("--gpu", "t4", "lora.r=8") is what `ggufy plan --json` says, on a machine without torch or network."""

    def plan(*arguments: str, name: str = "3b_qlora", cwd: Path = tmp_path) -> Any:
        changes = [part for one in arguments if "=" in one for part in ("--set", one)]
        plain = [one for one in arguments if "=" not in one]
        done = light_run("plan", *(("--recipe", name) if name else ()), *plain, *changes, "--json", cwd=cwd)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return plan


def test_attention_with_rank_32_of_3b_is_18350080_parameters(plan: Callable[..., Any]) -> None:
    made = plan("lora.r=32", "lora.target_modules=attention", "--gpu", "t4")
    assert made["trainable"] == 18_350_080
    assert made["parameters"] == 3_212_749_824
    assert made["parts"]["lora"] == made["parts"]["gradients"] == 73_400_320


@pytest.mark.parametrize("size", ["1b", "3b"])
@pytest.mark.parametrize(
    ("modules", "dora"), [(ATTENTION, False), (MLP + ATTENTION, False), (("q_proj", "mlp.up_proj"), True)]
)
def test_peft_trains_as_many(size: str, modules: tuple[str, ...], dora: bool) -> None:
    from tests.plan.live_memory import adapted

    shape = replace(SHAPES[size], layers=3)
    theirs = sum(p.numel() for p in adapted(shape, modules, 8, dora).parameters() if p.requires_grad)
    assert footprint.trainable(shape, Lora(r=8, target_modules=modules, dora=dora)) == theirs


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_the_optimizer_holds_what_is_planned(optimizer: str) -> None:
    import bitsandbytes as bnb
    import torch

    lora = Lora(r=6)
    trained = [torch.nn.Parameter(torch.ones(size)) for size in footprint.adapter_tensors(tiny.SHAPE, lora).values()]
    kinds = {
        "adamw": torch.optim.AdamW,
        "adamw_8bit": bnb.optim.AdamW8bit,
        "paged_adamw_8bit": bnb.optim.PagedAdamW8bit,
        "paged_adamw_32bit": bnb.optim.PagedAdamW32bit,
    }
    real = kinds[optimizer](trained, lr=1e-3)
    sum(p.sum() for p in trained).backward()
    real.step()
    states = [value for state in real.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in states if tensor.numel() > 1 or tensor.dim()}
    # Some are smaller than the 4,096 numbers from which on bitsandbytes packs, some larger.
    assert min(p.numel() for p in trained) < 4096 < max(p.numel() for p in trained)
    assert footprint.optimizer_bytes(tiny.SHAPE, lora, optimizer) == sum(held.values())


@pytest.mark.parametrize("load_in", ["16bit", "8bit", "4bit"])
def test_the_base_takes_what_is_planned(load_in: str, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    how = {"16bit": None, "8bit": BitsAndBytesConfig(load_in_8bit=True), "4bit": four}[load_in]
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=how, device_map={"": "cpu"}
    )
    held = {p.data_ptr(): p.nbytes for p in model.parameters()}
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            # QuantState.as_dict writes every tensor of it, its two tables and its offset as one small blob.
            inner = state.state2
            tensors = (state.absmax, state.code, inner.absmax, inner.code, state.offset)
            held |= {parameter.data_ptr() + n + 1: tensor.nbytes for n, tensor in enumerate(tensors)}
        if (scales := getattr(parameter, "SCB", None)) is not None:
            held[parameter.data_ptr() + 1] = scales.nbytes
    vocab = model.config.vocab_size
    assert footprint.weight_bytes(replace(tiny.SHAPE, vocab=vocab), load_in, 2) == sum(held.values())


@pytest.mark.parametrize(
    ("batch", "length", "again", "modules"),
    [(1, 512, False, MLP + ATTENTION), (2, 1024, True, MLP + ATTENTION), (1, 700, False, ATTENTION)],
)
def test_no_more_is_alive_than_planned(batch: int, length: int, again: bool, modules: tuple[str, ...]) -> None:
    from tests.plan.live_memory import peak

    shape = replace(SHAPES["3b"], layers=2)
    static, most = peak(shape, modules, 16, batch=batch, length=length, again=again, chunk=footprint.CHUNK)
    changes = ["lora.r=16", f"train.gradient_checkpointing={str(again).lower()}", "train.optimizer=adamw"]
    wanted = recipe.load("3b_lora", [*changes, f"lora.target_modules=[{', '.join(modules)}]"])
    parts = footprint.needs(shape, wanted, 2, batch, length, cuda=False)
    # Buffers, such as the frequencies of the rotary embedding, are a few hundred bytes.
    assert static == pytest.approx(parts.weights + parts.lora, abs=2000)
    assert parts.total - static == pytest.approx(most - static, rel=0.08)


def test_the_files_of_a_run_are_as_large_as_planned(plan: Callable[..., Any], quick: Path) -> None:
    (quick / "quick.yaml").write_text("extends: tiny\nexport:\n  quants: [q8_0]\n", "utf-8")
    made = plan(name="quick.yaml", cwd=quick)
    run = quick / "runs/quick"
    assert made["export_exact"]
    assert made["export_bytes"] == {"q8_0": (run / "export/quick-q8_0.gguf").stat().st_size}
    real = {
        name: sum(p.stat().st_size for p in (run / name).rglob("*")) for name in ("adapter", "checkpoints/checkpoint-4")
    }
    assert made["adapter_bytes"] == pytest.approx(real["adapter"], rel=0.02)
    assert made["checkpoint_bytes"] == pytest.approx(real["checkpoints/checkpoint-4"], rel=0.02)


@pytest.mark.skipif(not VOCABULARY.is_file(), reason="`make vendor` brings llama.cpp's vocabulary files")
def test_the_export_of_a_known_base_needs_no_files(tmp_path: Path) -> None:
    size = "1b"
    random_llama.write_tokenizer(tmp_path, VOCABULARY)
    (tmp_path / "config.json").write_text(json.dumps(random_llama.config(SHAPES[size])), "utf-8")
    wanted = recipe.load(f"{size}_lora")
    known = base_sizes.base_of(wanted, [])
    whole = base_sizes.Base(known.name, known.shape, known.config, tmp_path)
    quants = ["f16", "q4_k_m"]
    (guessed, off), (right, exact) = (base_sizes.export_sizes(one, quants, "x") for one in (known, whole))
    assert (off, exact) == (10_000, 0)
    for quant in quants:
        assert guessed[quant] == pytest.approx(right[quant], abs=10_000)


# Recipe, parameters as the model cards count them, and LoRA parameters r * (in + out) of the seven matrices a layer.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2_135m", 134_515_008),
        ("smollm2_360m", 361_821_120),
        ("llama31_8b_qlora", 8_030_261_248),
        ("qwen3_4b_qlora", 4_022_468_096),
        ("gemma3_4b_qlora", 4_300_079_472 - 419_816_304),
    ],
)
def test_bases_known_by_name_are_as_large_as_published_and_as_transformers_makes_them(
    name: str, parameters: int, plan: Callable[..., Any]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    made = plan("--gpu", "t4", name=name)
    assert made["parameters"] == parameters
    config = known_bases.config(recipe.load(name).model.base)
    assert config is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert model.num_parameters() == parameters
    lora = LoraConfig(r=16, target_modules=list(MLP + ATTENTION), task_type="CAUSAL_LM")
    with torch.device("meta"):
        theirs = get_peft_model(model, lora)
    assert made["trainable"] == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert made["fits"]
    assert made["export_within"] == 10_000
    assert ("reads images" in " ".join(made["notes"])) is name.startswith("gemma")


def test_a_folder_with_a_config_alone_can_be_planned(plan: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    values = random_llama.config(SHAPES["1b"]) | {"num_hidden_layers": 2}
    (tmp_path / "base/config.json").write_text(json.dumps(values), "utf-8")
    made = plan("model.base=./base", "--gpu", "t4")
    assert made["parameters"] == sum(math.prod(s) for s in replace(SHAPES["1b"], layers=2).tensors().values())
    assert made["download_bytes"] == 0


def test_the_largest_that_fits_fits_and_one_more_does_not(plan: Callable[..., Any]) -> None:
    made = plan("--gpu", "rtx3060")
    for key, size in (("train.batch_size", made["largest_batch"]), ("model.max_length", made["largest_length"])):
        assert plan("--gpu", "rtx3060", f"{key}={size}")["fits"]
        assert not plan("--gpu", "rtx3060", f"{key}={size + 1}")["fits"]


def test_what_does_not_fit_comes_with_what_would(plan: Callable[..., Any], light_run: Run, tmp_path: Path) -> None:
    too_much = ("train.gradient_checkpointing=false", "train.batch_size=8", "model.load_in=16bit")
    made = plan("--gpu", "t4", *too_much)
    assert not made["fits"]
    assert made["remedy"]
    assert plan("--gpu", "t4", *too_much, *made["remedy"])["fits"]
    changes = [part for one in too_much for part in ("--set", one)]
    done = light_run("plan", "--recipe", "3b_qlora", "--gpu", "t4", *changes, cwd=tmp_path)
    assert done.returncode == 0
    assert "does not fit" in done.stdout
    assert done.stderr.startswith("hint: it fits with --set ")


def test_no_smaller_a_batch_is_advised_than_it_takes(plan: Callable[..., Any]) -> None:
    made = plan("--gpu", "l4", "train.batch_size=256", "train.gradient_accumulation=1")
    assert not made["fits"]
    advised = dict(one.split("=") for one in made["remedy"])
    size = int(advised.pop("train.batch_size"))
    assert advised == {"train.gradient_accumulation": str(256 // size)}
    assert size > 1
    larger = (f"train.batch_size={2 * size}", f"train.gradient_accumulation={128 // size}")
    assert not plan("--gpu", "l4", *larger)["fits"]


def test_memory_grows_and_shrinks_with_what_it_should() -> None:
    def made(*changes: str) -> planner.Plan:
        wanted = recipe.load("3b_qlora", changes)
        return planner.make(wanted, base_sizes.base_of(wanted, []), planner.device("a100"))

    def total(*changes: str) -> int:
        return made(*changes).parts.total

    plain = total()
    assert total("model.load_in=16bit") > total("model.load_in=8bit") > plain > total("lora.r=4")
    assert total("train.gradient_checkpointing=false") > plain
    assert total("train.optimizer=adamw") > plain
    # The logits of all tokens at once would be 14 bytes for each of 128,256 words.
    assert made().logits_at_once == 2048 * 128_256 * 14


def test_without_a_recipe_the_best_that_fits_is_first(plan: Callable[..., Any], light_run: Run, tmp_path: Path) -> None:
    made = plan("--gpu", "t4", name="")
    assert sorted(one["recipe"] for one in made) == recipe.names()
    fitting = [one for one in made if one["fits"]]
    assert made[: len(fitting)] == fitting
    assert fitting[0]["parameters"] == max(one["parameters"] for one in fitting)
    done = light_run("plan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # How many of them end in time depends on the machine.
    assert done.stdout.splitlines()[1].split()[0] in ("smollm2_360m", "smollm2_135m", "tiny")
    assert "3b_qlora" in done.stdout
    assert "too slow" in done.stdout


@pytest.mark.parametrize("gpu", gpus.GPUS)
def test_every_gpu_has_a_time_that_says_where_it_is_from(gpu: str) -> None:
    wanted = recipe.load("1b_qlora")
    made = planner.make(wanted, base_sizes.base_of(wanted, []), planner.device(gpu))
    assert made.seconds is not None
    assert made.seconds > 0
    assert "estimated" in made.how
    assert "not measured" in made.how


@pytest.mark.parametrize(
    ("title", "memory_mib", "name"),
    [
        ("Tesla T4", 15360, "t4"),
        ("NVIDIA L4", 23034, "l4"),
        ("NVIDIA GeForce RTX 3060", 12288, "rtx3060"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-80"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA GeForce RTX 3060", 8192, None),
        ("NVIDIA GeForce GTX 1080", 8192, None),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(title: str, memory_mib: int, name: str | None) -> None:
    found = gpus.like(title, memory_mib << 20)
    assert (found.name if found else None) == name


def test_the_gpu_that_is_here(env: dict[str, str], tmp_path: Path) -> None:
    from tests.conftest import runner

    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 24564, 8.9, 560.1'\n", "utf-8")
    tool.chmod(0o755)
    here = runner(env | {"PATH": f"{tmp_path}:{env['PATH']}", "CUDA_VISIBLE_DEVICES": "0"})
    done = here("plan", "--recipe", "3b_qlora", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "on NVIDIA GeForce RTX 4090" in done.stdout


def test_bad_input(fails: Fails, run: Run, tmp_path: Path) -> None:
    fails("plan", "--gpu", "rtx4900", cwd=tmp_path, naming=["rtx4900", "did you mean rtx4090"], hinting=["t4"])
    fails("plan", "--recipe", "3b_qlra", cwd=tmp_path, naming=["did you mean"])
    no_module = ("plan", "--recipe", "3b_qlora", "--set", "lora.target_modules=[qproj]")
    fails(*no_module, cwd=tmp_path, naming=["no module named qproj"])
    no_base = ("plan", "--recipe", "3b_qlora", "--set", "model.base=nobody/nothing")
    fails(*no_base, cwd=tmp_path, naming=["nobody/nothing"])
    assert run("plan", "--set", "lora.r=8", cwd=tmp_path).returncode == 2


def test_a_dry_run_checks_and_loads_nothing(run: Run, fails: Fails, tmp_path: Path) -> None:
    done = run("train", "--recipe", "tiny", "--dry-run", cwd=tmp_path, python=["-X", "importtime"])
    assert done.returncode == 0, done.stderr
    assert "the recipe is valid" in done.stdout
    assert "606,208" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers"}
    assert not list(tmp_path.iterdir())
    fails("train", "--recipe", "tiny", "--dry-run", "--set", "lora.r=0", cwd=tmp_path, naming=["lora.r"])


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("--gpus", "2"), "there are 0 GPUs here"),
        (("--gpus", "3", "--backend", "hf"), "which 3 GPUs cannot share"),
        (("--backend", "unsloth"), "unsloth"),
        (("--set", "data.source=nofile.jsonl"), "data file nofile.jsonl does not exist"),
    ],
    ids=str,
)
def test_a_dry_run_refuses_what_training_does(
    arguments: tuple[str, ...], naming: str, fails: Fails, tmp_path: Path
) -> None:
    for more in ((), ("--dry-run",)):
        fails("train", "--recipe", "tiny", *arguments, *more, cwd=tmp_path, naming=[naming])


def test_what_is_left_out_is_said(run: Run, tmp_path: Path) -> None:
    done = run("plan", "--recipe", "1b_qlora", "--gpu", "t4", "--set", "train.gpus=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "those of one GPU alone; 2 GPUs share each step" in done.stdout


def test_packed_rows_are_full() -> None:
    wanted = recipe.load("1b_r16_10k")
    rows = wanted.train.batch_size * wanted.train.gradient_accumulation
    assert estimate.work(wanted) == (600, rows * wanted.model.max_length)
    one_epoch = recipe.load("1b_r16_10k", ["train.max_steps=null", "data.train_size=8192", "train.epochs=2"])
    # 8,192 conversations of 500 tokens are 2,000 rows of 2,048.
    assert estimate.work(one_epoch) == (2 * 2000 // rows, rows * 2048)
    assert estimate.work(recipe.load("1b_r16_10k", ["train.packing=false"])) == (600, rows * 500)


def test_a_dry_run_fails_where_training_would(env: dict[str, str], tmp_path: Path) -> None:
    from tests.conftest import runner

    record = tmp_path / "site" / "peft-0.1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1.0\n", "utf-8")
    done = runner(env | {"PYTHONPATH": f"{record.parent}:{env.get('PYTHONPATH', '')}"})(
        "train", "--recipe", "tiny", "--dry-run", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "error: training: peft 0.1.0 is not" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_of_another_architecture_says_that_it_is_not_planned(run: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    config = json.loads((base / "config.json").read_text("utf-8")) | {"architectures": ["OlmoForCausalLM"]}
    (tmp_path / "base/config.json").write_text(json.dumps(config), "utf-8")
    done = run("train", "--recipe", "tiny", "--dry-run", "--set", "model.base=./base", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not planned:" in done.stdout
    assert "OlmoForCausalLM" in done.stdout
