"""The public functions, in the order of the pipeline: recipe -> data -> train -> export -> verify -> chat, eval.

Each stage is made once and reused while its inputs are the same. These functions are also ggufy's Python interface.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufy.hub import pull
from ggufy.plan import planner
from ggufy.recipe import recipe
from ggufy.recipe.schema import Recipe
from ggufy.runs.run import Run
from ggufy.runs.stamps import Artifact
from ggufy.stages import arguments, exported, model_source, recipes
from ggufy.stages import data as data_stage
from ggufy.stages import export as export_stage
from ggufy.stages.export_options import ExportOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ggufy.chat.model import ChatModel
    from ggufy.data.report import Report
    from ggufy.evaluate.session.options import EvalArguments
    from ggufy.evaluate.session.sections import Evaluation
    from ggufy.hub import dataset, push
    from ggufy.plan.plan import Plan
    from ggufy.stages.export_options import ExportArguments


def check(
    what: str | os.PathLike[str] | Recipe, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Recipe:
    """Check all of a recipe that can be checked without its model and data. Raises RecipeError."""
    return recipes.check(what, overrides, values)


@arguments.checked(arguments.PLAN, others=True)
def plan(
    what: str | os.PathLike[str] | Recipe, *, overrides: Iterable[str] = (), gpu: str | None = None, **values: Any
) -> Plan:
    """Plan what a recipe needs: on the named GPU, else on the one in this machine, else on this CPU."""
    return planner.plan(recipes.check(what, overrides, values), planner.device(gpu))


def plan_all(gpu: str | None = None) -> list[Plan]:
    """The plans of ggufy's own recipes, those that fit and end in time first, best first."""
    return planner.plan_all(planner.device(gpu))


def inspect(what: str | os.PathLike[str] | Recipe, overrides: Iterable[str] = ()) -> Report:
    """Prepare a recipe's data as training would, and report on it. Only the base's tokenizer is needed."""
    return data_stage.inspect(recipes.check(what, overrides))


def push_data(
    what: str | os.PathLike[str] | Recipe, options: dataset.DatasetOptions, overrides: Iterable[str] = ()
) -> push.Pushed:
    """Prepare a recipe's data as training would, and send its rows to the Hub as a data set."""
    return data_stage.send(recipes.check(what, overrides), options)


def rehearse(
    what: str | os.PathLike[str], *, run_name: str | None = None, overrides: Iterable[str] = ()
) -> Iterator[str]:
    """What `train` would check before it loads anything, in lines. Raises what `train` would, and TrainError where
    the plan does not fit or something on this machine is broken."""
    from ggufy.stages import training

    yield from training.rehearse(recipes.check(what, overrides), run_name)


@arguments.checked(arguments.TRAIN, others=True)
def train(
    what: str | os.PathLike[str] | Recipe,
    *,
    run_name: str | None = None,
    overrides: Iterable[str] = (),
    fresh: bool = False,
    change_gpus: bool = False,
    **values: Any,
) -> Run:
    """Train a recipe to its adapter, or continue a training; nothing is done if it is finished. Returns the run.

    With `change_gpus` it may continue on another number of GPUs than its checkpoints were made on. Further arguments
    are values of the recipe: `max_steps=60`, `lora={"r": 8}`, `**{"eval.batch_size": 4}`.
    """
    from ggufy.stages import training

    return training.train(recipes.check(what, overrides, values), run_name, fresh=fresh, change_gpus=change_gpus)


def train_from_hub(repo: str, *, branch: str | None = None, run_name: str | None = None) -> Run:
    """Bring a run's checkpoints from the Hub, unless it is here already, and go on with its training."""
    this = pull.checkpoints(repo, branch, run_name)
    return train(recipe.from_values(this.frozen["recipe"]), run_name=this.name)


@arguments.checked(arguments.EXPORT)
def export(
    what: str | os.PathLike[str] | Run | None = None,
    *,
    base: str | None = None,
    out: Path | None = None,
    **options: Unpack[ExportArguments],
) -> dict[str, Artifact]:
    """Make the GGUF files of a run, an adapter or a checkpoint: those named, else those of the run's recipe.

    The other arguments are those of `ggufy.stages.export_options.ExportOptions`: `quants`, `merged` ("f16" or "bf16"),
    `adapter_gguf`, `imatrix`, `split_max_size`, `threads`, `force`, ... Each GGUF is verified before it gets its final
    name, unless `check_files` is false. Returns what was made, by name.
    """
    wanted = ExportOptions(**options)
    output_folder, find = model_source.find(what, base, out)
    export_stage.check(wanted, output_folder)
    with output_folder.lock(None if output_folder.exists else "--out"):
        return export_stage.make(find(), wanted)


def plan_export(
    what: str | os.PathLike[str] | Run | None = None,
    *,
    base: str | None = None,
    out: Path | None = None,
    **options: Unpack[ExportArguments],
) -> list[str]:
    """Describe what an export would write, in lines for people. Raises the export's errors as far as they can be known.

    Nothing is written, except to the system's temporary folder.
    """
    from tempfile import TemporaryDirectory

    wanted = ExportOptions(**options)
    output_folder, find = model_source.find(what, base, out)
    export_stage.check(wanted, output_folder)
    with TemporaryDirectory(prefix="ggufy-") as scratch:
        return export_stage.plan(find(), wanted, Path(scratch))


def verify(
    what: str | os.PathLike[str] | None = None, *, threads: int | None = None, logits: bool = True
) -> Iterator[str]:
    """Verify a run, a folder of exports, or any single GGUF. Returns a line for each check that passed.

    With `logits` files are compared with the training model itself, which takes its memory in float32. Raises
    Unverified.
    """
    from ggufy.stages import verify as verify_stage

    yield from verify_stage.lines(what, threads, logits=logits)


def gguf_of(what: str | os.PathLike[str] | Run | None, quant: str | None = None, branch: str | None = None) -> Path:
    """The GGUF file that a user means: a file, the newest one of a run or of a folder of exports, or one on the Hub."""
    return exported.gguf_of(what, quant, branch)


@arguments.checked(arguments.CHAT)
def chat(
    what: str | os.PathLike[str] | Run | None = None,
    *,
    quant: str | None = None,
    context: int = 4096,
    threads: int | None = None,
    day: date | None = None,
    branch: str | None = None,
) -> ChatModel:
    """Load a GGUF to talk to: a file, the newest export of a run or in a folder of exports, or one on the Hub."""
    from ggufy.chat.model import ChatModel

    return ChatModel(gguf_of(what, quant, branch), context, threads, day)


def evaluate(*what: str | os.PathLike[str] | Run, **options: Unpack[EvalArguments]) -> Evaluation:
    """Evaluate a run, a folder of exports or GGUF files; several are compared. The newest run if nothing is named.

    The arguments are those of `ggufy.evaluate.session.options.EvalOptions`: `only`, `data`, `limit`, `against`,
    `max_kl`, ... What was measured before is not measured again.
    """
    from ggufy.evaluate.session import sections
    from ggufy.evaluate.session.options import EvalOptions

    return sections.make(what, EvalOptions(**options))
