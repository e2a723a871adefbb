"""The verify stage: check that a run, a folder of exports or one GGUF is unchanged and valid."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ggufy.errors import ChatError, RunError, Unverified
from ggufy.export import vocab
from ggufy.export.request import ADAPTER
from ggufy.runs import run
from ggufy.runs.run import Run
from ggufy.stages import calibration, exported, model_source
from ggufy.stages.model_source import ModelSource
from ggufy.system import machine
from ggufy.verify import answers, checks, reference
from ggufy.verify.checks import Verified
from ggufy.verify.expected import Expected
from ggufy.verify.reference import Reference

log = logging.getLogger("ggufy")


class Verifier:
    """Verifies files of one model source, each part of which is made ready once.

    With `logits` against the training model too, which takes a gigabyte of memory. What is wrong with its answers is
    logged.
    """

    def __init__(self, this: ModelSource, threads: int, *, logits: bool) -> None:
        self.this, self.threads = this, threads
        self._reference = None if logits else reference.NOTHING
        self._expected: Expected | None = None
        self._questions = answers.NOTHING
        self._opened = False
        self._said: set[str] = set()

    def verify(self, path: Path) -> Verified:
        """Check one GGUF: a file, or a folder of the files it is split into. Raises Unverified."""
        if not self._opened:
            self._expected, self._opened = (
                Expected.of(self.this.base.path, self.this.adapter, self.this.own_tokenizer),
                True,
            )
            self._questions = calibration.questions(self.this)
            # What is read from here on needs the memory.
            vocab.forget()
        found = checks.verify(path, self.this.tokenizer, self.threads, self._logits(), self._expected, self._questions)
        warning = found.answers.warning() if found.answers else None
        # Of several files of the same kind once; how many answers each has is in its own line.
        if warning and warning not in self._said:
            self._said.add(warning)
            log.warning("%s: %s", path.name, warning)
        return found

    def _logits(self) -> Reference:
        if self._reference is None:
            this = self.this
            self._reference = reference.of(
                this.base.path, this.adapter, lambda: calibration.probes(this), this.tokenizer
            )
        return self._reference


def lines(what: str | os.PathLike[str] | None, threads: int | None, *, logits: bool) -> Iterator[str]:
    """A line for each thing that is good. Raises Unverified for what is not."""
    cores = threads or machine.cores()
    path = Path(what) if what is not None else None
    if path and _is_model(path):
        place = run.holding(path)
        if place is None:
            yield checks.verify(path, None, cores).text()
            return
        yield from _of(place[0], [place[1]], cores, logits=logits)
        return
    this = run.output_folder(what)
    yield from _of(this, this.stamped(), cores, logits=logits)


def _is_model(path: Path) -> bool:
    """Whether this means one GGUF: a file, or a folder of the files it is split into."""
    if path.suffix == ".gguf" or path.is_file():
        if not path.exists():
            raise ChatError(f"no file {path.as_posix()}", "check the path")
        return True
    known = ("run.json", "source.json", "config.json", "adapter_config.json")
    return path.is_dir() and any(path.glob("*.gguf")) and not any((path / name).exists() for name in known)


def _of(this: Run, outputs: list[str], threads: int, *, logits: bool) -> Iterator[str]:
    """Some outputs of a run or a folder of exports."""
    problems: dict[str, str] = {}
    for output in outputs:
        if problem := this.damage(output):
            problems[output] = problem
        else:
            yield f"{(this.path / output).as_posix()}: unchanged since it was made"
    models = exported.models(this)
    valid = [output for output in outputs if _is_compared(this, output, models) and output not in problems]
    # What the others are compared with.
    if valid and "adapter" not in problems:
        yield from _models(this, valid, threads, logits=logits)
    if problems:
        output, problem = next(iter(problems.items()))
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise Unverified(
            f"{problem} since it was made{more}", f"run the command that made {(this.path / output).as_posix()} again"
        )


def _is_compared(this: Run, output: str, models: Container[str]) -> bool:
    """Whether it is a GGUF of the base and the adapter, or of the adapter alone."""
    inputs = (this.stamp(output) or {"inputs": {}})["inputs"]
    return output in models or inputs.get("quant") == ADAPTER


def _models(this: Run, outputs: list[str], threads: int, *, logits: bool) -> Iterator[str]:
    # A run that was pulled may have come without its adapter.
    alone = this.exists and this.stamp("adapter") is None
    found = None if alone else model_source.of_output_folder(this)
    if found is None:
        why = "the adapter is not here" if alone else "source.json does not say what these were made from"
        yield f"{this.path.as_posix()}: {why}, so nothing is compared"
        for output in outputs:
            yield checks.verify(this.path / output, None, threads).text()
        return
    verifier = Verifier(found, threads, logits=logits)
    for output in outputs:
        if changed := exported.outdated(this, output, found):
            raise Unverified(f"{(this.path / output).as_posix()} {changed}", "export it again")
        checked = verifier.verify(this.path / output)
        if checked.closeness:
            # For the model card. A run that is in use, or may not be written to, is verified all the same.
            with suppress(RunError, OSError), this.lock():
                this.note_closeness(output, asdict(checked.closeness))
        yield checked.text()
