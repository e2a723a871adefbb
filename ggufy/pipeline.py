"""The stages in order, and what each depends on: recipe -> data -> train -> adapter -> export -> chat.

Each stage is made once and reused while its inputs are the same. These functions are also ggufy's Python interface.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufy import (
    arguments,
    digest,
    doctor,
    exported,
    exports,
    ledger,
    plan_base,
    plan_lines,
    planner,
    recipe,
    record,
    run,
    subject,
)
from ggufy.base.resolve import Base
from ggufy.data import prepare, source
from ggufy.data.source import Source
from ggufy.errors import ChatError, ExportError, HubError, RecipeError, TrainError
from ggufy.export_wish import Wish
from ggufy.hub import beforehand, checkpoints, dataset, names, pull, push
from ggufy.recipe import Recipe
from ggufy.run import Run
from ggufy.stamps import Artifact
from ggufy.subject import Subject

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ggufy.chat.model import ChatModel
    from ggufy.data.report import Report
    from ggufy.evaluation.parts import Evaluation
    from ggufy.evaluation.wish import Wishes as EvalWishes
    from ggufy.export_wish import Wishes
    from ggufy.planner import Plan

log = logging.getLogger("ggufy")


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
    """Train a recipe to its adapter, or continue, or find it done. Returns the run.

    With `change_gpus` it may continue on another number of GPUs than its checkpoints were made on. Further arguments
    are values of the recipe: `max_steps=60`, `lora={"r": 8}`, `**{"eval.batch_size": 4}`.
    """
    from ggufy.export import stage
    from ggufy.train import job, ranks

    wanted = check(what, overrides, values)
    job.check_installed(wanted)
    job.check_device(wanted)
    ranks.check(wanted)
    this = run.named(wanted.name if run_name is None else run_name)
    this.refuse_foreign()
    if fresh or this.stamp("adapter") is None:
        beforehand.check(wanted, this)
        _refuse_hopeless(wanted)
    old = this.frozen if this.exists and not fresh else None
    base = record.base(wanted, old)
    stage.check_base(base.path, wanted.lora.modules)
    rows = record.rows(wanted, old)
    with this.lock("--run"):
        frozen = record.frozen(this, wanted, base, rows, fresh=fresh)
        data = _data(this, wanted, base, rows, frozen)
        identity = {"recipe": record.identity(wanted), "base": base.fingerprint, "data": data.sha256}
        if fresh:
            # Only now: whatever could refuse the new run has had its say.
            this.clear(keep="data")
        record.refuse_other_adapter(this, identity)
        if not this.exists or this.frozen != frozen:
            this.freeze(frozen)

        def build(places: dict[str, Path]) -> None:
            work = job.Job(
                recipe=wanted,
                base=base.path,
                data=data.path,
                checkpoints=this.path / "checkpoints",
                metrics=this.path / "metrics.jsonl",
                identity=digest.of_values({**identity, "recipe": record.training(wanted)}),
                change_gpus=change_gpus,
            )
            beforehand.check_counted(wanted, this)
            sending.enter_context(checkpoints.uploading(this, wanted))
            ranks.fit(work, places["adapter"])

        # What is still being sent is waited for when the adapter is in its place.
        with ExitStack() as sending:
            # Forced: `data` and `adapter` in a run are ggufy's own names; one that has lost its stamp is made again.
            adapter = this.make({"adapter": identity}, build, force=True)["adapter"]
    log.info("%s %s", adapter.path.as_posix(), "is up to date" if adapter.reused else "is trained")
    return this


def train_from_hub(repo: str, *, branch: str | None = None, run_name: str | None = None) -> Run:
    """Bring a run's checkpoints from the Hub, unless it is here already, and go on with its training."""
    this = pull.checkpoints(repo, branch, run_name)
    return train(recipe.from_values(this.frozen["recipe"]), run_name=this.name)


def check(
    what: str | os.PathLike[str] | Recipe, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Recipe:
    """Everything about a recipe that can be known without its model and data. Raises RecipeError."""
    from ggufy.export import layout

    overrides = tuple(overrides)
    if isinstance(what, Recipe):
        wanted = recipe.changed(what, overrides, values)
    else:
        wanted = recipe.load(what, overrides, values)

    def where(*key: str) -> str:
        return wanted.name if isinstance(what, Recipe) else recipe.place(what, overrides, key)

    try:
        layout.check_quants(wanted.export.quants)
    except ExportError as error:
        message = f"{where('export', 'quants')}: export.quants: {error.message}"
        raise RecipeError(message, "choose from these names") from None
    for key in ("repo", "branch", "tag"):
        try:
            names.check_one(wanted, key, wanted.name)
        except HubError as error:
            raise RecipeError(f"{where('hub', key)}: hub.{key}: {error.message}", error.hint) from None
    return wanted


@arguments.checked(arguments.PLAN, others=True)
def plan(
    what: str | os.PathLike[str] | Recipe, *, overrides: Iterable[str] = (), gpu: str | None = None, **values: Any
) -> Plan:
    """What a recipe needs, before anything runs: of the GPU named, else of the one here, else of this CPU."""
    return _planned(check(what, overrides, values), planner.device(gpu))


def _planned(wanted: Recipe, where: planner.Device) -> Plan:
    known = [planner.Measured(*one) for one in ledger.measured()]
    return planner.make(wanted, plan_base.base_of(wanted, source.sample_texts()), where, known)


def plan_all(gpu: str | None = None) -> list[Plan]:
    """The plans of ggufy's own recipes, those that fit and end in time first, best first."""
    from ggufy.train import estimate

    where = planner.device(gpu)
    wanted = [recipe.load(name) for name in recipe.names()]
    hopeless = {one.name for one in wanted if not where.cuda and estimate.is_hopeless(one)}
    plans = [_planned(one, where) for one in wanted]
    best = planner.recommended([one for one in plans if one.recipe not in hopeless])
    return best + [one for one in plans if one not in best]


def rehearse(
    what: str | os.PathLike[str], *, run_name: str | None = None, overrides: Iterable[str] = ()
) -> Iterator[str]:
    """What `train` would check before it loads anything, in lines. Raises what `train` would, and TrainError where
    the plan does not fit or something on this machine is broken."""
    from ggufy.train import job, ranks

    wanted = check(what, overrides)
    job.check_installed(wanted)
    job.check_device(wanted)
    ranks.check(wanted)
    source.check_local(wanted.data)
    this = run.named(wanted.name if run_name is None else run_name)
    this.refuse_foreign()
    yield f"{wanted.name}: the recipe is right"
    found = list(doctor.checks())
    for one in found:
        yield from doctor.in_lines(one)
    try:
        made = _planned(wanted, planner.device(None))
    except ExportError as error:
        # Another architecture can be trained; only its memory is not known.
        yield f"not planned: {error.message}"
        made = None
    yield from plan_lines.of(made) if made else ()
    if broken := [one for one in found if one.state == doctor.BROKEN]:
        raise TrainError(f"{broken[0].name}: {broken[0].text}", broken[0].mend)
    if this.stamp("adapter") is None:
        _refuse_hopeless(wanted)
    if made and not made.fits:
        raise TrainError(plan_lines.verdict(made), plan_lines.hint(made))
    if made:
        planner.check_space(made, run.runs_folder())


def inspect(what: str | os.PathLike[str] | Recipe, overrides: Iterable[str] = ()) -> Report:
    """Prepare a recipe's data as training would, and say what came of it. Of the base only the tokenizer is needed."""
    from tempfile import TemporaryDirectory

    from ggufy.base import resolve
    from ggufy.data import report, source

    wanted = check(what, overrides)
    model, texts = wanted.model, source.sample_texts()
    base = resolve.tokenizer(model.base, model.revision, offline=wanted.hub.offline, builtin_texts=texts)
    rows = record.rows(wanted, None)
    with TemporaryDirectory(prefix="ggufy-") as folder:
        return report.make(rows, wanted.data, base, model.max_length, record.today(), Path(folder))


def push_data(what: str | os.PathLike[str] | Recipe, wish: dataset.Wish, overrides: Iterable[str] = ()) -> push.Pushed:
    """Prepare a recipe's data as training would, and send its rows to the Hub as a data set."""
    from tempfile import TemporaryDirectory

    from ggufy.base import resolve
    from ggufy.data import publish

    wanted = check(what, overrides)
    may = dataset.check(wish)
    model, texts = wanted.model, source.sample_texts()
    base = resolve.tokenizer(model.base, model.revision, offline=wanted.hub.offline, builtin_texts=texts)
    rows = record.rows(wanted, None)
    frozen = {"recipe": wanted.model_dump(mode="json"), "data": record.places(wanted, rows)}
    with TemporaryDirectory(prefix="ggufy-") as folder:
        scratch = Path(folder)
        day, check_row = record.today(), dataset.checker()
        made = publish.publish(rows, wanted.data, base, model.max_length, day, scratch, check_row)
        return dataset.send(wish, may, scratch, dataset.contents(frozen, made.columns, made.rows, made.counts))


@arguments.checked(arguments.EXPORT)
def export(
    what: str | os.PathLike[str] | Run | None = None,
    *,
    base: str | None = None,
    out: Path | None = None,
    **wish: Unpack[Wishes],
) -> dict[str, Artifact]:
    """Make the GGUF files of a run, an adapter or a checkpoint: those named, else those of the run's recipe.

    The other arguments are those of `ggufy.export_wish.Wish`: `quants`, `merged` ("f16" or "bf16"), `adapter_gguf`,
    `imatrix`, `split_max_size`, `threads`, `force`, ... Each GGUF is verified before it gets its final name, unless
    `check_files` is false. Returns what was made, by name.
    """
    wanted = Wish(**wish)
    room, find = _subject(what, base, out)
    exports.check(wanted, room)
    with room.lock(None if room.exists else "--out"):
        return exports.make(find(), wanted)


def verify(
    what: str | os.PathLike[str] | None = None, *, threads: int | None = None, logits: bool = True
) -> Iterator[str]:
    """Check a run, a folder of exports, or one GGUF in one of these or elsewhere: a line for each thing that is good.

    With `logits` files are compared with the training model itself, which takes its memory in float32. Raises
    Unverified.
    """
    from ggufy import soundness

    yield from soundness.lines(what, threads, logits=logits)


def evaluate(*what: str | os.PathLike[str] | Run, **wish: Unpack[EvalWishes]) -> Evaluation:
    """Evaluate a run, a folder of exports or GGUF files; several are compared. The newest run if nothing is named.

    The arguments are those of `ggufy.evaluation.wish.Wish`: `only`, `data`, `limit`, `against`, `max_kl`, ... What was
    measured before is not measured again.
    """
    from ggufy.evaluation import parts
    from ggufy.evaluation.wish import Wish

    return parts.make(what, Wish(**wish))


def plan_export(
    what: str | os.PathLike[str] | Run | None = None,
    *,
    base: str | None = None,
    out: Path | None = None,
    **wish: Unpack[Wishes],
) -> list[str]:
    """What an export would write, in lines for people. Raises what the export would, as far as it can be known.

    Nothing is written but to the system's folder for such.
    """
    from tempfile import TemporaryDirectory

    wanted = Wish(**wish)
    room, find = _subject(what, base, out)
    exports.check(wanted, room)
    with TemporaryDirectory(prefix="ggufy-") as scratch:
        return exports.plan(find(), wanted, Path(scratch))


def _subject(
    what: str | os.PathLike[str] | Run | None, base: str | None, out: Path | None
) -> tuple[Run, Callable[[], Subject]]:
    """Where the outputs go, and how to find what is exported once that place is locked."""
    if isinstance(what, Run) or subject.is_run(what):
        this = what if isinstance(what, Run) else run.find(what)
        if base is not None or out is not None:
            raise ExportError("--base and --out are for adapters and checkpoints; a run has its own", "leave them out")
        return this, lambda: subject.of_run(this)
    found = subject.of_folder(what or "", base, out)
    return found.room, lambda: found


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


def gguf_of(what: str | os.PathLike[str] | Run | None, quant: str | None = None, branch: str | None = None) -> Path:
    """The GGUF file that a user means: a file, the newest one of a run or of a folder of exports, or one on the Hub."""
    if isinstance(what, str | os.PathLike) and (Path(what).suffix == ".gguf" or Path(what).is_file()):
        if not Path(what).is_file():
            raise ChatError(f"no file {Path(what).as_posix()}", "check the path")
        return Path(what)
    if isinstance(what, str) and pull.is_meant(what):
        return pull.gguf(what, branch, quant)
    return exported.gguf_of(what if isinstance(what, Run) else run.room(what), quant)


def _data(this: Run, wanted: Recipe, base: Base, rows: Source, frozen: dict[str, Any]) -> Artifact:
    inputs = {
        "source": rows.fingerprint,
        "settings": wanted.data.model_dump(mode="json", exclude={"source"}),
        "max_length": wanted.model.max_length,
        "base": base.fingerprint,
        "date": frozen["date"],
    }

    def build(places: dict[str, Path]) -> None:
        day = date.fromisoformat(frozen["date"])
        report = prepare.prepare(rows, wanted.data, base.path, wanted.model.max_length, day, places["data"])
        for name, counts in report.items():
            log.info("%s: %s", name, counts.text())

    return this.make({"data": inputs}, build, force=True)["data"]


def _refuse_hopeless(wanted: Recipe) -> None:
    """Say so where a training that nobody insisted on would take days on this machine."""
    from ggufy.train import estimate

    if wanted.train.backend != "auto" or not estimate.is_hopeless(wanted):
        return
    import torch

    if not torch.cuda.is_available():
        raise estimate.hopeless(wanted)
