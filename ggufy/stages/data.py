"""The data stage: prepare the data of a recipe for a run, for a report, or for the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ggufy.data import prepare, source
from ggufy.data.checks import unread
from ggufy.data.counts import not_read
from ggufy.data.rows.texts import names_of
from ggufy.data.source import Source
from ggufy.hub import dataset, push
from ggufy.model import bases
from ggufy.model.bases import Base
from ggufy.recipe.schema import Recipe
from ggufy.runs.run import Run
from ggufy.runs.stamps import Artifact
from ggufy.stages import provenance

if TYPE_CHECKING:
    from ggufy.data.report import Report

log = logging.getLogger("ggufy")


def of_run(
    this: Run, wanted: Recipe, base: Base, rows: Source, frozen: dict[str, Any], *, rehash: bool = False
) -> Artifact:
    """The prepared data of a run: made, or found made. The caller holds its lock.

    With `rehash` every byte of what is found is read; else its sizes and times are looked at.
    """
    inputs = {
        "source": rows.fingerprint,
        "settings": _settings(wanted),
        "max_length": wanted.model.max_length,
        "base": base.fingerprint,
        "date": frozen["date"],
    }

    if rehash and this.valid("data", inputs) and (damage := this.damage("data")):
        log.warning("%s since it was prepared; preparing it again", damage)
        this.discard("data")

    def build(places: dict[str, Path]) -> None:
        day = date.fromisoformat(frozen["date"])
        _say_unread(rows)
        report = prepare.prepare(rows, wanted.data, base.path, wanted.model.max_length, day, places["data"])
        for name, counts in report.items():
            log.info("%s: %s", name, counts.text())
        if columns := not_read(report.values()):
            log.info("not read: columns %s", names_of(columns))

    return this.make({"data": inputs}, build, force=True)["data"]


def inspect(wanted: Recipe) -> Report:
    """Prepare the data as training would, and say what came of it. Of the base only the tokenizer is needed."""
    from ggufy.data import report

    with _opened(wanted) as (rows, tokenizer, scratch):
        return report.make(rows, wanted.data, tokenizer, wanted.model.max_length, provenance.today(), scratch)


def send(wanted: Recipe, options: dataset.DatasetOptions) -> push.Pushed:
    """Prepare the data as training would, and send its rows to the Hub as a data set."""
    from ggufy.data import publish

    may = dataset.check(options)
    with _opened(wanted) as (rows, tokenizer, scratch):
        frozen = {"recipe": wanted.model_dump(mode="json"), "data": provenance.places(wanted, rows)}
        _say_unread(rows)
        day, check_row = provenance.today(), dataset.checker()
        made = publish.publish(rows, wanted.data, tokenizer, wanted.model.max_length, day, scratch, check_row)
        return dataset.send(options, may, scratch, dataset.contents(frozen, made.columns, made.rows, made.counts))


def _settings(wanted: Recipe) -> dict[str, Any]:
    """Those of the data. Without keys that came later and are not set, so that what was prepared stays valid."""
    values = wanted.data.model_dump(mode="json", exclude={"source"})
    for part in (values, *values["more"]):
        if not part["roles"]:
            del part["roles"]
    return values


def _say_unread(rows: Source) -> None:
    for by_choice, text in unread.lines(rows):
        log.log(logging.INFO if by_choice else logging.WARNING, "%s", text)


@contextmanager
def _opened(wanted: Recipe) -> Iterator[tuple[Source, Path, Path]]:
    """The rows of a recipe, the folder of the tokenizer of its base, and a folder to work in."""
    model, texts = wanted.model, source.sample_texts()
    tokenizer = bases.tokenizer(model.base, model.revision, offline=wanted.hub.offline, builtin_texts=texts)
    rows = provenance.rows(wanted, None)
    with TemporaryDirectory(prefix="ggufy-") as scratch:
        yield rows, tokenizer, Path(scratch)
