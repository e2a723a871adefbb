"""`ggufy eval`: the parts of an evaluation, and the report that they go into.

A part makes a section of the report of what the evaluators measure; a further one is a function and a row in SECTIONS.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ggufy.errors import EvalError, GgufyError
from ggufy.evaluate.metrics import prompts
from ggufy.evaluate.metrics.answers import Question
from ggufy.evaluate.report import heldout_section, prompts_section, quants_section, terminal
from ggufy.evaluate.report.report import Report, Section
from ggufy.evaluate.session import gguf_tokenizer, judging, model_files, scoring
from ggufy.evaluate.session.evaluator import Evaluator
from ggufy.evaluate.session.model_files import ModelFile
from ggufy.evaluate.session.options import EvalOptions
from ggufy.hub import pull
from ggufy.runs import run
from ggufy.runs.run import Run
from ggufy.runs.stamps import Artifact
from ggufy.stages import exported, model_source
from ggufy.system import digest
from ggufy.system.version import __version__

log = logging.getLogger("ggufy")

OUT = Path("evals")
"""Where the evaluation of a lone file goes, and that of several runs together."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    report: Report
    page: Artifact
    data: Artifact
    trouble: GgufyError | None = None
    """What ended a part early: what it had by then is in the report."""

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield from terminal.lines(self.report)
        yield f"{self.page.path.as_posix()}{'  (up to date: nothing was measured again)' if self.page.reused else ''}"


def _place(name: str) -> Path:
    """Where it lies, however it is named."""
    here = run.runs_folder() / name
    return (here if (here / "run.json").is_file() else Path(name)).resolve()


def make(what: Sequence[str | os.PathLike[str] | Run | None], options: EvalOptions) -> Evaluation:
    """Evaluate runs, folders of exports or GGUF files: measure what was not measured yet, and write the report."""
    _check(options)
    named = [os.fspath(one.path if isinstance(one, Run) else one) for one in what if one is not None]
    places = [_place(name) for name in named]
    if twice := [name for name, place in zip(named, places, strict=True) if places.count(place) > 1]:
        raise EvalError(f"{twice[-1]} is named twice", "name each once")
    with ExitStack() as stack:
        locks = _Locks(stack)
        opened = [_opened(one, options, locks) for one in what or (None,)]
        _check_together(opened)
        judging.check_models(opened, options)
        # The divergences first: the losses come along with them.
        order = sorted(options.only, key=lambda name: name != "quants")
        made = {name: SECTIONS[name](opened, options) for name in order if name != "judge"}
        asked = [(one, _asked(one)) for one in opened] if options.judge else []
        made["judge"], trouble = judging.section(asked, options)
        sections = [section for name in (*SECTIONS, "judge") if (section := made.get(name))]
        report = Report(_title(opened), _facts(opened, options), sections)
        output_folder = opened[0].output_folder
        if len(opened) > 1:
            output_folder = Run(options.out or OUT / "-".join(one.name for one in opened))
            locks.hold(output_folder)
        page, data = _write(output_folder, report)
        for one in opened:
            one.close()
    return Evaluation(report, page, data, trouble)


def _heldout(opened: Sequence[Evaluator], options: EvalOptions) -> Section:
    groups = []
    for one in opened:
        base, tuned = one.models.base(), one.models.tuned_f16()
        lines = []
        if base:
            found = one.unread_by_base or one.loss(base)
            lines.append(heldout_section.Line(base.name, "llama.cpp", found, is_base=True))
        if base and options.adapter:
            lines.append(heldout_section.Line("adapter model", "torch", one.adapter_loss()))
        files = [each for each in (tuned, *one.models.quants, one.against) if each]
        lines += [heldout_section.Line(each.name, "llama.cpp", one.loss(each)) for each in files]
        groups.append(heldout_section.Group(one.name, one.heldout, lines))
    return heldout_section.section(groups)


def _quants(opened: Sequence[Evaluator], options: EvalOptions) -> Section:
    question = prompts.own()[0]
    groups = []
    for one in opened:
        standard = one.reference()
        if standard is None:
            raise EvalError(
                f"{one.name} is one file, and KL needs two",
                "name the other with --against FILE, or leave KL out: --only heldout,prompts",
            )
        lines = []
        compared = [each for each in one.models.quants if not each.is_file_of(standard)]
        if standard.role == "file":
            # Of one run all files have the base's.
            gguf_tokenizer.same_tokenizer([model_files.first_file(each) for each in (standard, *compared)])
        measured = {each: one.divergence(each, standard) for each in compared}
        lines = [quants_section.Line(standard.name, one.file(standard, question), one.loss(standard), None)]
        for each, (apart, loss) in measured.items():
            lines.append(quants_section.Line(each.name, one.file(each, question), loss, apart))
        groups.append(quants_section.Group(one.name, standard.name, lines, options.max_kl))
    return quants_section.section(groups)


def _prompts(opened: Sequence[Evaluator], options: EvalOptions) -> Section | None:
    if "prompts" not in options.insisted and any(not one.answers_chats for one in opened):
        log.info("no prompts are asked: a model has no chat template")
        return None
    questions = prompts.read(options.prompts) if options.prompts else prompts.own()
    models = []
    for one in opened:
        named = f"{one.name}: " if len(opened) > 1 else ""
        models += [_model(one, each, questions, named) for each in _asked(one)]
    source = options.prompts.name if options.prompts else "ggufy's own"
    return prompts_section.section(questions, models, source)


def _asked(one: Evaluator) -> list[ModelFile]:
    """The base and the tuned model in the same precision, so that they differ only by the training."""
    tuned = one.models.spoken()
    assert tuned is not None
    base = one.models.base(tuned.quant)
    return [each for each in (base, tuned, one.against) if each]


def _model(one: Evaluator, each: ModelFile, questions: Sequence[Question], named: str) -> prompts_section.Model:
    said = one.answers(each, questions)
    found = [one.flags(answer, question) for answer, question in zip(said, questions, strict=True)]
    name = f"tuned {each.quant}" if each.role == "tuned" else each.name
    return prompts_section.Model(named + name, said, found)


def _references(opened: Sequence[Evaluator], options: EvalOptions) -> Section | None:
    return scoring.likeness([(one, _asked(one)) for one in opened], options)


def _tools(opened: Sequence[Evaluator], options: EvalOptions) -> Section | None:
    return scoring.calls([(one, _asked(one)) for one in opened], options)


def _numbers(opened: Sequence[Evaluator], options: EvalOptions) -> Section | None:
    return scoring.errors([(one, _asked(one)) for one in opened], options)


SECTIONS: dict[str, Callable[[Sequence[Evaluator], EvalOptions], Section | None]] = {
    "heldout": _heldout,
    "quants": _quants,
    "prompts": _prompts,
    "references": _references,
    "tools": _tools,
    "numbers": _numbers,
}
"""In the order of the report; last comes the judge, who is asked when all else is done."""


def _check(options: EvalOptions) -> None:
    """Check the options before anything is opened."""
    if unknown := [name for name in options.only if name not in (*SECTIONS, "judge")]:
        raise EvalError(f"--only {unknown[0]}: no such section", f"the sections are {', '.join((*SECTIONS, 'judge'))}")
    if options.prompts:
        prompts.read(options.prompts)
    scoring.check(options)
    judging.check(options)


class _Locks:
    """The locks of the output folders. Several files, and the report on them, may share one, which is locked once."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.held: set[Path] = set()

    def hold(self, output_folder: Run) -> None:
        """Lock a folder until the stack is left, unless it is locked here already. Raises RunError."""
        place = output_folder.path.resolve()
        if place not in self.held:
            self.stack.enter_context(output_folder.lock())
            self.held.add(place)


def _opened(what: str | os.PathLike[str] | Run | None, options: EvalOptions, locks: _Locks) -> Evaluator:
    """An evaluator of a run, a folder of exports, or a GGUF here or on the Hub."""
    file = _file(what)
    if file is not None:
        name = re.sub(r"-\d{5}-of-\d{5}$", "", file.stem)
        if options.against and file.samefile(exported.first_file(options.against)):
            raise EvalError(f"--against {options.against.as_posix()}: that is the file itself", "name another")
        output_folder, found, files = Run(options.out or OUT / name), None, [file]
        output_folder.refuse_foreign_names()
    else:
        output_folder = what if isinstance(what, Run) else run.output_folder(what)
        name, found, files = output_folder.name, model_source.of_output_folder(output_folder), []
        if found is None:
            raise EvalError(
                f"{output_folder.path.as_posix()} does not say what it was made from", "name one of its files"
            )
    locks.hold(output_folder)
    return Evaluator(name, output_folder, found, files, options)


def _file(what: str | os.PathLike[str] | Run | None) -> Path | None:
    if what is None or isinstance(what, Run):
        return None
    path = Path(what)
    if path.suffix == ".gguf" or path.is_file():
        if not path.exists():
            raise EvalError(f"no file {path.as_posix()}", "check the path")
        return exported.first_file(path)
    if isinstance(what, str) and pull.is_meant(what):
        return pull.gguf(what)
    return None


def _check_together(opened: Sequence[Evaluator]) -> None:
    """Raise EvalError where several cannot be measured on the same conversations, or one has none."""
    options = opened[0].options
    rows = {"references", "tools", "numbers"} if not options.prompts else set()
    if not ({"heldout", "quants"} | rows) & set(options.only):
        return
    for one in opened:
        if one.heldout.keys != opened[0].heldout.keys:
            raise EvalError(
                f"{opened[0].name} and {one.name} hold out different conversations, or tokenize them differently, so "
                "their losses cannot be compared",
                "give both the same with --data FILE, or compare their answers: --only prompts",
            )


def _title(opened: Sequence[Evaluator]) -> str:
    return f"Evaluation of {' and '.join(one.name for one in opened)}"


def _facts(opened: Sequence[Evaluator], options: EvalOptions) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in opened:
        at = "" if len(opened) == 1 else f" {one.name}"
        if one.source is not None:
            found[f"base{at}"] = one.source.base.name
        else:
            found[f"file{at}"] = one.models.files[0].name
    if options.against:
        found["compared with"] = options.against.name
    found["made with"] = f"ggufy {__version__}, llama.cpp of llama-cpp-python {metadata.version('llama-cpp-python')}"
    return found


def _write(output_folder: Run, report: Report) -> tuple[Artifact, Artifact]:
    inputs = {"report": digest.of_values([report.values(), report.html()])}
    page, data = "eval/report.html", "eval/report.json"

    def build(places: dict[str, Path]) -> None:
        for output, place in places.items():
            place.write_text(report.html() if output == page else report.json(), encoding="utf-8")

    wanted = {page: inputs, data: inputs}
    made = output_folder.make(wanted, build, force=True)
    return made[page], made[data]
