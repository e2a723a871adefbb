"""The training stage: train a recipe to its adapter, after the checks that need nothing loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from ggufy.data import source
from ggufy.errors import ExportError, TrainError
from ggufy.hub import beforehand, checkpoints
from ggufy.model import text_part
from ggufy.plan import doctor, estimate, planner
from ggufy.recipe.schema import Recipe
from ggufy.runs import run
from ggufy.runs.run import Run
from ggufy.stages import data, provenance, special_tokens, vocabulary
from ggufy.system import digest
from ggufy.train import distributed, job

log = logging.getLogger("ggufy")


def train(wanted: Recipe, run_name: str | None, *, fresh: bool, change_gpus: bool) -> Run:
    """Train, or continue, or find it done."""
    from ggufy.export import engine

    job.check_installed(wanted)
    job.check_device(wanted)
    distributed.check(wanted)
    this = run.named(wanted.name if run_name is None else run_name)
    this.refuse_foreign()
    if fresh or this.stamp("adapter") is None:
        beforehand.check(wanted, this)
        _refuse_hopeless(wanted)
    old = this.frozen if this.exists and not fresh else None
    base = provenance.base(wanted, old)
    modules = engine.check_base(base.path, wanted.lora)
    rows = provenance.rows(wanted, old)
    with this.lock("--run"):
        frozen = provenance.frozen(this, wanted, base, rows, fresh=fresh)
        prepared = data.of_run(this, wanted, base, rows, frozen)
        identity = {"recipe": provenance.identity(wanted), "base": base.fingerprint, "data": prepared.sha256}
        if prepared.reused and this.valid("adapter", identity) is None:
            # What a training goes on with has to be what it began with, to the byte.
            prepared = data.of_run(this, wanted, base, rows, frozen, rehash=True)
            identity["data"] = prepared.sha256
        if fresh:
            # Only now: whatever could refuse the new run has had its say.
            this.clear(keep="data")
        provenance.refuse_other_adapter(this, identity)
        if not this.exists or this.frozen != frozen:
            this.freeze(frozen)

        def build(places: dict[str, Path]) -> None:
            work = job.Job(
                recipe=wanted,
                base=base.path,
                data=prepared.path,
                checkpoints=this.path / "checkpoints",
                metrics=this.path / "metrics.jsonl",
                identity=digest.of_values({**identity, "recipe": provenance.training(wanted)}),
                change_gpus=change_gpus,
                modules=modules,
                other_parts=text_part.other_parts(base.path),
            )
            special_tokens.check(wanted, base.path, prepared.path)
            vocabulary.check(base.path, prepared.path)
            beforehand.check_counted(wanted, this)
            sending.enter_context(checkpoints.uploading(this, wanted))
            distributed.fit(work, places["adapter"])

        # What is still being sent is waited for when the adapter is in its place.
        with ExitStack() as sending:
            # Forced: `data` and `adapter` in a run are ggufy's own names; one that has lost its stamp is made again.
            adapter = this.make({"adapter": identity}, build, force=True)["adapter"]
    log.info("%s %s", adapter.path.as_posix(), "is up to date" if adapter.reused else "is trained")
    return this


def rehearse(wanted: Recipe, run_name: str | None) -> Iterator[str]:
    """What `train` would check before it loads anything, in lines. Raises what `train` would, and TrainError where
    the plan does not fit or something on this machine is broken."""
    job.check_installed(wanted)
    job.check_device(wanted)
    distributed.check(wanted)
    source.check_local(wanted.data)
    this = run.named(wanted.name if run_name is None else run_name)
    this.refuse_foreign()
    yield f"{wanted.name}: the recipe is valid"
    found = list(doctor.checks())
    for one in found:
        yield from doctor.in_lines(one)
    try:
        made = planner.plan(wanted, planner.device(None))
    except ExportError as error:
        # Another architecture can be trained; only its memory is not known.
        yield f"not planned: {error.message}"
        made = None
    yield from made.lines() if made else ()
    if broken := [one for one in found if one.state == doctor.BROKEN]:
        raise TrainError(f"{broken[0].name}: {broken[0].text}", broken[0].mend)
    if this.stamp("adapter") is None:
        _refuse_hopeless(wanted)
    if made and not made.fits:
        raise TrainError(made.verdict(), made.hint())
    if made:
        planner.check_space(made, run.runs_folder())


def _refuse_hopeless(wanted: Recipe) -> None:
    """Say so where a training that nobody insisted on would take days on this machine."""
    if wanted.train.backend != "auto" or not estimate.is_hopeless(wanted):
        return
    import torch

    if not torch.cuda.is_available():
        raise estimate.hopeless(wanted)
