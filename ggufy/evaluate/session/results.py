"""The results of measurements, kept in eval/ of a run row by row, each row with a key of all it depends on.

So a file holds rows of every set of conversations, question and setting that it was ever asked for, and none of them
is lost because others are asked for now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ggufy.evaluate.metrics import rows
from ggufy.evaluate.metrics.rows import Row
from ggufy.runs.run import Run
from ggufy.system import digest, progress

Do = Callable[[int], Mapping[str, Any]]
"""Gives the values of a row by its index."""
Write = Callable[[Do], object]
Measured = Callable[[list[Path], Write], None]
"""Gets the files of the models, loads them, and has the rows written that are not there."""


def keys(same: Mapping[str, Any], own: Iterable[Any]) -> list[str]:
    """A key for each row: of what all rows depend on, and of its own."""
    return rows.distinct(digest.of_values([same, one]) for one in own)


class Results:
    """The rows in one run or folder of exports, whose lock the caller holds."""

    def __init__(self, output_folder: Run) -> None:
        self.output_folder = output_folder

    def find(self, output: str, wanted: Sequence[str]) -> list[Row] | None:
        """The rows of these keys, where all of them are there."""
        there = self.all(output)
        return [there[key] for key in wanted] if all(key in there for key in wanted) else None

    def all(self, output: str) -> dict[str, Row]:
        """Every row of an output by its key; none where it is not as ggufy left it."""
        return rows.read(self.output_folder.path / output) if self.output_folder.valid(output) else {}

    def add(self, output: str, wanted: Sequence[str], build: Callable[[Path, dict[str, Row]], None]) -> list[Row]:
        """Have rows made that are not there. `build` gets where to write, and the rows that are there."""
        known = self.all(output)
        inputs = {"rows": digest.of_values(sorted({*known, *wanted}))}
        # Forced: eval/ in a run is ggufy's own, and what has lost its stamp is made again.
        self.output_folder.make({output: inputs}, lambda places: build(places[output], known), force=True)
        there = self.all(output)
        return [there[key] for key in wanted]

    def measure(
        self,
        output: str,
        wanted: Sequence[str],
        what: str,
        models: Callable[[], list[Path]],
        measured: Measured,
        unit: str = "conversations",
    ) -> list[Row]:
        """The rows of these keys, measuring those that are not there. `what` and `unit` are for the progress."""
        if (there := self.find(output, wanted)) is not None:
            return there
        # Before this output is begun: making them is a stage of its own.
        paths = models()

        def build(place: Path, known: dict[str, Row]) -> None:
            with progress.bar(what, len(wanted)) as bar:
                done = lambda count: bar.update(count, f"{count} {unit}")  # noqa: E731
                measured(paths, lambda do: rows.write(place, wanted, do, [known], done))

        return self.add(output, wanted, build)
