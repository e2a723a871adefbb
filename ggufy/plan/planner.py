"""Plan what a recipe needs before anything runs: parameters, memory, disk, steps, time, and whether it fits a GPU.

Nothing is downloaded but, for a base that is not known by name, its config.json. Torch is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.data import source
from ggufy.errors import RecipeError, TrainError
from ggufy.plan import base_sizes, estimate, footprint, gpus, known_bases
from ggufy.plan.base_sizes import Base
from ggufy.plan.footprint import Parts
from ggufy.plan.gpus import Gpu
from ggufy.plan.plan import Plan
from ggufy.recipe import recipe as recipes
from ggufy.recipe.schema import Recipe
from ggufy.runs import history
from ggufy.system import machine

# tokenizer.json by its number of tokens: Llama 3's, SmolLM2's, Qwen3's and Gemma 3's; of others about as much.
_TOKENIZERS = {128256: 17_210_000, 49152: 2_104_000, 151936: 11_422_000, 262208: 33_385_000}
_SMALL_FILES = 60_000
_MOST = 4096


@dataclass(frozen=True)
class Measured:
    """The measured speed of an earlier training: device, base, how it was loaded, tokens per second."""

    device: str
    base: str
    load_in: str
    tokens_per_second: float


@dataclass(frozen=True)
class Device:
    """What the plan is for: a GPU of the table, the one that is here, or this machine's CPU."""

    title: str
    bytes: int
    gpu: Gpu | None
    here: bool
    cuda: bool = True


def device(name: str | None) -> Device:
    """The GPU of that name, else the one that is here, else the CPU."""
    if name is not None:
        gpu = gpus.find(name)
        return Device(gpu.title, gpu.bytes, gpu, here=False)
    if card := machine.card():
        like = gpus.like(card.name, card.bytes)
        # Its driver keeps a part; torch sees what is in the table.
        return Device(card.name, like.bytes if like else int(0.97 * card.bytes), like, here=True)
    return Device("CPU", machine.memory()[1], None, here=True, cuda=False)


def plan(recipe: Recipe, where: Device) -> Plan:
    """The plan of a recipe on a device, with the speeds that trainings on this machine had."""
    known = [Measured(*one) for one in history.measured()]
    return make(recipe, base_sizes.base_of(recipe, source.sample_texts()), where, known)


def plan_all(where: Device) -> list[Plan]:
    """The plans of ggufy's own recipes, those that fit and end in time first, best first."""
    own = [recipes.load(name) for name in recipes.names()]
    hopeless = {one.name for one in own if not where.cuda and estimate.is_hopeless(one)}
    plans = [plan(one, where) for one in own]
    best = recommended([one for one in plans if one.recipe not in hopeless])
    return best + [one for one in plans if one not in best]


def make(recipe: Recipe, base: Base, where: Device, measured: Sequence[Measured] = ()) -> Plan:
    """The plan of a recipe on a device. Raises RecipeError where the base has none of its target modules."""
    shape = base.shape
    trained = footprint.adapter_tensors(shape, recipe.lora)
    for module in recipe.lora.modules_in({name.split(".")[-2] for name in shape.tensors()}):
        if not any(f".{module}." in f".{name}" for name in trained):
            raise RecipeError(
                f"lora.target_modules: {base.name} has no module named {module}", "see `ggufy recipes show`"
            )
    compute = _compute(recipe, where)

    def parts(batch: int, length: int) -> Parts:
        return footprint.needs(shape, recipe, compute, batch, length, cuda=where.cuda)

    batch, length = recipe.train.batch_size, recipe.model.max_length
    wanted = parts(batch, length)
    longest = int(base.config.get("max_position_embeddings", footprint.LONGEST))
    export, within = base_sizes.export_sizes(base, recipe.export.quants, recipe.name)
    tokenizer = _size_of(base.folder, "tokenizer.json") if base.whole else _tokenizer_bytes(base)
    states = footprint.optimizer_bytes(shape, recipe.lora, recipe.train.optimizer)
    count = footprint.trainable(shape, recipe.lora)
    steps, tokens = estimate.work(recipe)
    seconds, how = _time(recipe, base, where, steps, tokens, measured)
    return Plan(
        recipe=recipe.name,
        base=base.name,
        parameters=base.parameters,
        trainable=count,
        load_in=recipe.model.load_in,
        optimizer=recipe.train.optimizer,
        batch=batch,
        length=length,
        layers_kept="with gradient checkpointing" if recipe.train.gradient_checkpointing else "of every layer",
        device=where.title,
        device_bytes=where.bytes,
        parts=wanted,
        fits=wanted.total <= where.bytes,
        largest_batch=footprint.largest(lambda n: parts(n, length).total <= where.bytes, _MOST),
        largest_length=footprint.largest(lambda n: parts(batch, n).total <= where.bytes, longest),
        logits_at_once=footprint.logits_at_once(shape, batch * length),
        checkpoint_bytes=4 * count + states + tokenizer + _SMALL_FILES,
        # While one is written the ones to keep are still there.
        checkpoints=recipe.train.keep_checkpoints + 1,
        adapter_bytes=4 * count + tokenizer,
        export_bytes=export,
        export_exact=not within,
        export_within=within,
        download_bytes=2 * base.parameters if base.folder is None else 0,
        steps=steps,
        tokens_a_step=tokens,
        seconds=seconds,
        how=how,
        remedy=[] if wanted.total <= where.bytes else remedy(recipe, base, where),
        notes=tuple(_left_out(recipe, base)),
    )


def _left_out(recipe: Recipe, base: Base) -> Iterator[str]:
    if said := known_bases.note(base.name) if base.folder is None else "":
        yield said
    if recipe.train.gpus > 1:
        yield f"memory and time are those of one GPU alone; {recipe.train.gpus} GPUs share each step"
    if recipe.train.backend == "unsloth":
        yield "memory and time are those of the hf backend; unsloth should take less"


def _compute(recipe: Recipe, where: Device) -> int:
    """Bytes of the compute type; as the hf backend chooses it."""
    if recipe.model.dtype == "auto":
        return 2 if where.cuda else 4
    return 4 if recipe.model.dtype == "fp32" else 2


def _tokenizer_bytes(base: Base) -> int:
    return _TOKENIZERS.get(base.shape.vocab, 100 * base.shape.vocab)


def _size_of(folder: Path | None, name: str) -> int:
    return (folder / name).stat().st_size if folder is not None and (folder / name).is_file() else 0


def _time(
    recipe: Recipe, base: Base, where: Device, steps: int | None, tokens: int, measured: Sequence[Measured]
) -> tuple[float | None, str]:
    """Seconds of the whole training, and where that number comes from."""
    if steps is None:
        return None, "the number of rows is not known before the data is read"
    for run in reversed(measured) if where.here else ():
        same = (run.base, run.load_in) == (base.name, recipe.model.load_in)
        if same and run.device.lower() == where.title.lower() and run.tokens_per_second > 0:
            return (
                steps * tokens / run.tokens_per_second,
                f"measured: {run.tokens_per_second:,.0f} tokens/s in a run here",
            )
    if where.gpu is not None:
        batches = recipe.train.gradient_accumulation
        one = gpus.seconds(
            where.gpu,
            base.parameters,
            base.shape.layers,
            tokens // batches,
            recipe.model.load_in,
            again=recipe.train.gradient_checkpointing,
        )
        return steps * batches * one, gpus.HOW
    if where.cuda:
        return None, f"no speed is known for {where.title}"
    hours = estimate.cpu_hours(recipe)
    if hours is None:
        return None, "no speed is known for this base on this CPU"
    return 3600 * hours, "estimated from a matrix product on this CPU"


def recommended(plans: Sequence[Plan]) -> list[Plan]:
    """Those that fit, the largest model first, and of one model the one with more of its bits."""
    return sorted((p for p in plans if p.fits), key=lambda p: (p.parameters, p.parts.weights), reverse=True)


def remedy(recipe: Recipe, base: Base, where: Device) -> list[str]:
    """What to --set so that a recipe fits, gentlest first and no more than it takes. Empty where nothing does."""
    tries = [("train", update) for update in _smaller_batches(recipe)]
    if not recipe.train.gradient_checkpointing:
        tries.append(("train", {"gradient_checkpointing": True}))
    if recipe.model.load_in != "4bit":
        tries.append(("model", {"load_in": "4bit"}))
    tries += [
        ("model", {"max_length": length}) for length in (4096, 2048, 1024, 512) if length < recipe.model.max_length
    ]
    said: dict[str, Any] = {}
    made = recipe
    for section, update in tries:
        made = _with(made, section, update)
        said |= {f"{section}.{key}": value for key, value in update.items()}
        if _fits(made, base, where):
            break
    else:
        return []
    # What came after the batch may have made room for a larger one again.
    sizes = {"batch_size": recipe.train.batch_size, "gradient_accumulation": recipe.train.gradient_accumulation}
    for update in (sizes, *_smaller_batches(recipe)):
        if _fits(_with(made, "train", update), base, where):
            said |= {f"train.{key}": value for key, value in update.items()}
            break
    if said.get("train.batch_size") == recipe.train.batch_size:
        said = {key: value for key, value in said.items() if key.removeprefix("train.") not in sizes}
    return [f"{key}={str(value).lower()}" for key, value in said.items()]


def _smaller_batches(recipe: Recipe) -> list[dict[str, Any]]:
    """The same rows a step in more parts: half as many at once, a quarter, ... one."""
    size, rows = recipe.train.batch_size, recipe.train.batch_size * recipe.train.gradient_accumulation
    found = []
    while size > 1:
        size //= 2
        if rows % size == 0:
            found.append({"batch_size": size, "gradient_accumulation": rows // size})
    return found


def _with(recipe: Recipe, section: str, update: dict[str, Any]) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=update)})


def _fits(recipe: Recipe, base: Base, where: Device) -> bool:
    compute = _compute(recipe, where)
    size, length = recipe.train.batch_size, recipe.model.max_length
    return footprint.needs(base.shape, recipe, compute, size, length, cuda=where.cuda).total <= where.bytes


def check_space(made: Plan, folder: Path) -> None:
    """Raise TrainError where the disk of the runs does not hold what a training and its export write."""
    if (left := machine.free(folder)) < made.disk_bytes:
        raise TrainError(
            f"no space on the disk: {made.disk_bytes / 1e9:,.1f} GB needed in {folder.as_posix()}, "
            f"{left / 1e9:,.1f} GB free",
            "free some space, set GGUFY_RUNS to a folder on another disk, or lower train.keep_checkpoints",
        )
