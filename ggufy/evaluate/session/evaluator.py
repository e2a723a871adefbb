"""Measure one run, folder of exports or set of files; every measurement is made once and kept.

Every measurement is an output of the run under eval/, stamped with what it was made from: a killed evaluation goes on
where it was, and a second one measures nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import date
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from ggufy.chat.model import ChatModel, Sampling
from ggufy.chat.threads import Threads
from ggufy.errors import EvalError
from ggufy.evaluate.metrics import answers, completions, flags, measure, rows
from ggufy.evaluate.metrics.answers import Answer, Question
from ggufy.evaluate.metrics.completions import Completer, Completion
from ggufy.evaluate.metrics.flags import Flag
from ggufy.evaluate.metrics.measure import Divergence, Loss
from ggufy.evaluate.metrics.texts import HeldOut
from ggufy.evaluate.report.quants_section import File
from ggufy.evaluate.session import asking, gguf_tokenizer, heldout, model_files, results
from ggufy.evaluate.session.model_files import ModelFile, ModelFiles
from ggufy.evaluate.session.options import EvalOptions
from ggufy.evaluate.session.results import Results, Write
from ggufy.llamacpp.evaluate_gguf import Forward
from ggufy.model.template import ChatTemplate, text_of
from ggufy.runs.run import Run
from ggufy.stages.model_source import ModelSource
from ggufy.system import machine
from ggufy.verify import reference

log = logging.getLogger("ggufy")

_CONTEXT, _LEAST = 4096, 64


class Evaluator:
    """The caller holds the lock of the output folder, and calls `close`."""

    def __init__(
        self, name: str, output_folder: Run, source: ModelSource | None, files: Sequence[Path], options: EvalOptions
    ) -> None:
        self.name, self.output_folder, self.source, self.options = name, output_folder, source, options
        others = [] if options.against is None else [options.against]
        self.results = Results(output_folder)
        self.models = ModelFiles(output_folder, source, files, options.cores)
        self.against = ModelFiles(output_folder, None, others, options.cores).files[0] if others else None

    @cached_property
    def heldout(self) -> HeldOut:
        """The conversations that losses are of. Raises EvalError where there are none."""
        options, source = self.options, self.source
        if options.data is None:
            if source is None or not source.subfolder:
                raise EvalError(
                    f"{self.name} is not a run, so it has no held-out conversations",
                    "give some with --data FILE, or leave the losses out: --only prompts",
                )
            found = heldout.of_run(self.output_folder, options.limit)
        elif source is not None:
            tokenizer = heldout.tokenizer_of(source)
            found = heldout.of_file(options.data, tokenizer, options.limit, like=heldout.data_of(source))
        else:
            with Forward(self._first, 64, 1) as model:
                found = heldout.of_file(
                    options.data, gguf_tokenizer.GgufTokenizer(model, None, "responses"), options.limit
                )
        if options.context is not None:
            found.check_context(options.context, "--context")
        return found

    @cached_property
    def heldout_questions(self) -> list[Question]:
        """What the held-out conversations ask last, with the right answers. Raises EvalError where there are none."""
        if self.source is None:
            raise EvalError(
                f"{self.name} is a single file, and its run is not known", "name the run that it was made from"
            )
        return heldout.questions(self.source, self.options.data, self.options.limit)

    @property
    def _first(self) -> Path:
        return model_files.first_file(self.models.files[0])

    def reference(self) -> ModelFile | None:
        """What the quants are compared with."""
        return self.against or self.models.tuned_f16()

    def loss(self, one: ModelFile) -> Loss:
        """The loss of a model on the held-out conversations, through llama.cpp."""
        if there := self._compared(one):
            return there

        def measured(paths: list[Path], write: Write) -> None:
            with self._open(paths[0]) as model:
                write(lambda index: measure.loss(model, self.heldout.texts[index]))

        keys = self._keys({"measure": "loss", "model": one.identity, **_runtime()})
        output, what = f"eval/loss/{one.label}.jsonl", f"loss of {one.name}"
        return Loss.of(self.results.measure(output, keys, what, partial(self.models.paths, [one]), measured))

    @cached_property
    def unread_by_base(self) -> str | None:
        """Why the base cannot read the held-out conversations, where it cannot."""
        return heldout.unread_by_base(self.source, self.heldout) if self.source else None

    def divergence(self, one: ModelFile, other: ModelFile) -> tuple[Divergence, Loss]:
        """KL divergence of a model from another on the held-out conversations, and its own loss there."""

        def measured(paths: list[Path], write: Write) -> None:
            with self._open(paths[0]) as model, self._open(paths[1]) as standard:
                write(lambda index: measure.divergence(standard, model, self.heldout.texts[index]))

        output, what = f"eval/divergence/{one.label}.jsonl", f"{one.name} against {other.name}"
        models = partial(self.models.paths, [one, other])
        found = self.results.measure(output, self._keys_between(one, other), what, models, measured)
        return Divergence.of(found), Loss.of(found)

    def _compared(self, one: ModelFile) -> Loss | None:
        """Its loss, where a comparison that is there already has it."""
        standard = self.reference()
        if standard is None:
            return None
        pairs = [(one, "nll")] if one != standard else [(each, "reference_nll") for each in self.models.quants]
        for each, key in pairs:
            if found := self.results.find(f"eval/divergence/{each.label}.jsonl", self._keys_between(each, standard)):
                return Loss.of(found, key)
        return None

    def adapter_loss(self) -> Loss | str:
        """The loss of the training model itself in torch; or why it is not measured."""
        source = self.source
        if source is None or source.adapter is None:
            return "there is no adapter"
        output, keys = "eval/loss/adapter.jsonl", self._keys({"measure": "adapter", **source.content})
        if (there := self.results.find(output, keys)) is not None:
            return Loss.of(there)
        base, adapter = source.base.path, source.adapter
        if lacking := reference.missing(base, adapter) or reference.lacking_memory(base):
            return lacking

        def measured(_: list[Path], write: Write) -> None:
            with reference.opened(base, adapter) as model:
                measure.to_gpu(model)
                write(lambda index: measure.loss_in_torch(model, self.heldout.texts[index]))

        try:
            return Loss.of(self.results.measure(output, keys, "loss of the adapter model", list, measured))
        except (ImportError, ValueError, RuntimeError) as error:
            # What the libraries raise for a model they cannot load or hold. The files are measured all the same.
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def file(self, one: ModelFile, question: Question) -> File:
        """Size, bits a weight, and tokens a second while it answers a question on this machine."""
        threads = self.options.threads
        same = {"measure": "file", "model": one.identity, "threads": threads, "cores": machine.cores(), **_runtime()}
        # Where a model has no template, what was held out is asked of all as it stands.
        chats = self.answers_chats
        asked = question.conversation if chats else list(self.heldout.texts[0].read)

        def measured(paths: list[Path], write: Write) -> None:
            [path] = paths
            facts = model_files.facts(path)
            if chats:
                with self._chat(path) as chat:
                    speed = asking.speed(chat, question)
            else:
                ids = self.heldout.texts[0].read
                with Completer(path, len(ids) + asking.SPEED_TOKENS, self.options.cores) as model:
                    Threads.of(model.llama, threads)
                    speed = model.speed(ids, asking.SPEED_TOKENS)
            write(lambda _: {"size": facts.size, "bits": facts.bits, "speed": speed})

        output, keys, what = f"eval/files/{one.label}.jsonl", results.keys(same, [asked]), f"speed of {one.name}"
        models = partial(self.models.paths, [one])
        [row] = self.results.measure(output, keys, what, models, measured, "file")
        return File(row["size"], row["bits"], row["speed"])

    def answers(self, one: ModelFile, questions: Sequence[Question], label: str = "prompts") -> list[Answer]:
        """A model's answers to these questions, each asked once. `label` tells sets of questions apart."""
        options = self.options
        sampling: dict[str, Any] = {
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
            "context": options.context or _CONTEXT,
            "date": self.day.isoformat(),
            **_runtime(),
        }
        keys = [answers.identity(one.identity, sampling, question) for question in questions]
        output = f"eval/answers/{label}-{one.label}.jsonl"

        def build(place: Path, known: dict[str, rows.Row]) -> None:
            with self._chat(path) as chat:
                asking.check_room(chat, questions)
                ask = lambda question: asking.answer(chat, question, self._sampling())  # noqa: E731
                answers.collect(questions, keys, lambda: ask, place, [known], f"asking {one.name}")

        if self.results.find(output, keys) is None:
            [path] = self.models.paths([one])
            self.results.add(output, keys, build)
        return answers.read(self.output_folder.path / output, questions, keys)

    def completions(self, one: ModelFile) -> list[Completion]:
        """A model's completion of the last answer of each held-out row: asked once, always the likeliest token."""
        gaps = [gap for text in self.heldout.texts if (gap := completions.gap(text))][: self.options.rows]
        most = completions.longest_answer(gaps, self.options.max_tokens)
        context = self.options.context or max((len(gap.prompt) + most for gap in gaps), default=0)
        same = {"measure": "completions", "model": one.identity, "most": most, "context": context, **_runtime()}

        def measured(paths: list[Path], write: Write) -> None:
            with Completer(paths[0], context, self.options.cores) as model:
                write(lambda index: asdict(model.complete(gaps[index], most)))

        keys = results.keys(same, ([gap.prompt, gap.answer] for gap in gaps))
        output, what = f"eval/completions/{one.label}.jsonl", f"{one.name} answering"
        models = partial(self.models.paths, [one])
        found = self.results.measure(output, keys, what, models, measured, "answers") if gaps else []
        return [Completion(row["expected"], row["text"], row["tokens"], row["ended"]) for row in found]

    @cached_property
    def day(self) -> date:
        """The date that models are told: the one of training, else the file's."""
        return self.source.day if self.source else gguf_tokenizer.day_of(self._first)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template, if there is one."""
        if self.source is None:
            return gguf_tokenizer.template_of(self._first)
        folder = self.source.tokenizer
        return ChatTemplate.from_folder(folder) if text_of(folder) else None

    @property
    def answers_chats(self) -> bool:
        """Whether all its models have a chat template."""
        standard = self.against
        return self.template is not None and (
            standard is None or gguf_tokenizer.template_of(model_files.first_file(standard)) is not None
        )

    def flags(self, answer: Answer, question: Question) -> list[Flag]:
        """What is plainly wrong with an answer."""
        fixed: Sequence[str] = ()
        if self.template:
            rendered = self.template.render(question.conversation, self.day, generate=True, tools=question.tools)
            fixed = flags.fixed_texts(rendered, [turn["content"] for turn in question.conversation])
        return flags.of(answer, fixed=fixed, asked=question.language)

    def close(self) -> None:
        """Remove what was only made for the comparison."""
        if not self.options.keep:
            self.models.discard()

    def _sampling(self) -> Sampling:
        options = self.options
        return Sampling(temperature=options.temperature, max_tokens=options.max_tokens, seed=options.seed)

    def _keys(self, same: Mapping[str, Any]) -> list[str]:
        return results.keys(same, self.heldout.keys)

    def _keys_between(self, one: ModelFile, other: ModelFile) -> list[str]:
        """Of how far one is from the other."""
        return self._keys({"measure": "divergence", "model": one.identity, "reference": other.identity, **_runtime()})

    def _open(self, path: Path) -> Forward:
        """Of a context that holds every held-out conversation. Raises EvalError where the model's own does not."""
        model = Forward(path, max(self.heldout.longest, _LEAST), self.options.cores)
        try:
            self.heldout.check_context(model.trained_context, path.as_posix())
        except EvalError:
            model.close()
            raise
        return model

    def _chat(self, path: Path) -> closing[ChatModel]:
        return closing(ChatModel(path, self.options.context or _CONTEXT, self.options.threads, self.day))


def _runtime() -> dict[str, str]:
    """What computes: another llama.cpp may round in another way."""
    return {"llama_cpp": metadata.version("llama-cpp-python")}
