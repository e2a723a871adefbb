"""One run, folder of exports, or set of files under evaluation: whatever is measured of it, once, and kept.

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
from ggufy.evaluate.session.model_files import Contender, Contenders
from ggufy.evaluate.session.options import Wish
from ggufy.evaluate.session.results import Kept, Write
from ggufy.llamacpp.evaluate_gguf import Forward
from ggufy.model.template import ChatTemplate, text_of
from ggufy.runs.run import Run
from ggufy.stages.model_source import Subject
from ggufy.system import machine
from ggufy.verify import reference

log = logging.getLogger("ggufy")

_CONTEXT, _LEAST = 4096, 64


class Evaluator:
    """The caller holds the lock of the room, and calls `close`."""

    def __init__(self, name: str, room: Run, subject: Subject | None, files: Sequence[Path], wish: Wish) -> None:
        self.name, self.room, self.subject, self.wish = name, room, subject, wish
        others = [] if wish.against is None else [wish.against]
        self.kept = Kept(room)
        self.contenders = Contenders(room, subject, files, wish.cores)
        self.against = Contenders(room, None, others, wish.cores).files[0] if others else None

    @cached_property
    def heldout(self) -> HeldOut:
        """The conversations that losses are of. Raises EvalError where there are none."""
        wish, subject = self.wish, self.subject
        if wish.data is None:
            if subject is None or not subject.folder:
                raise EvalError(
                    f"{self.name} is no run, so it has held out no conversations",
                    "give some with --data FILE, or leave the losses out: --only prompts",
                )
            found = heldout.of_run(self.room, wish.limit)
        elif subject is not None:
            tokenizer = heldout.tokenizer_of(subject)
            found = heldout.of_file(wish.data, tokenizer, wish.limit, like=heldout.data_of(subject))
        else:
            with Forward(self._first, 64, 1) as model:
                found = heldout.of_file(wish.data, gguf_tokenizer.GgufTokenizer(model, None, "responses"), wish.limit)
        if wish.context is not None:
            found.check_context(wish.context, "--context")
        return found

    @cached_property
    def heldout_questions(self) -> list[Question]:
        """What the held-out conversations ask last, with the right answers. Raises EvalError where there are none."""
        if self.subject is None:
            raise EvalError(f"{self.name} is a file, of which no run is known", "name the run that it was made from")
        return heldout.questions(self.subject, self.wish.data, self.wish.limit)

    @property
    def _first(self) -> Path:
        return model_files.first_file(self.contenders.files[0])

    def reference(self) -> Contender | None:
        """What the quants are compared with."""
        return self.against or self.contenders.tuned_f16()

    def loss(self, one: Contender) -> Loss:
        """The loss of a model on the held-out conversations, through llama.cpp."""
        if there := self._compared(one):
            return there

        def measured(paths: list[Path], write: Write) -> None:
            with self._open(paths[0]) as model:
                write(lambda index: measure.loss(model, self.heldout.texts[index]))

        keys = self._keys({"measure": "loss", "model": one.identity, **_runtime()})
        output, what = f"eval/loss/{one.label}.jsonl", f"loss of {one.name}"
        return Loss.of(self.kept.measure(output, keys, what, partial(self.contenders.paths, [one]), measured))

    def divergence(self, one: Contender, other: Contender) -> tuple[Divergence, Loss]:
        """How far a model is from another on the held-out conversations; and its own loss there."""

        def measured(paths: list[Path], write: Write) -> None:
            with self._open(paths[0]) as model, self._open(paths[1]) as standard:
                write(lambda index: measure.divergence(standard, model, self.heldout.texts[index]))

        output, what = f"eval/divergence/{one.label}.jsonl", f"{one.name} against {other.name}"
        models = partial(self.contenders.paths, [one, other])
        found = self.kept.measure(output, self._keys_between(one, other), what, models, measured)
        return Divergence.of(found), Loss.of(found)

    def _compared(self, one: Contender) -> Loss | None:
        """Its loss, where a comparison that is there already has it."""
        standard = self.reference()
        if standard is None:
            return None
        pairs = [(one, "nll")] if one != standard else [(each, "reference_nll") for each in self.contenders.quants]
        for each, key in pairs:
            if found := self.kept.find(f"eval/divergence/{each.label}.jsonl", self._keys_between(each, standard)):
                return Loss.of(found, key)
        return None

    def adapter_loss(self) -> Loss | str:
        """The loss of the training model itself in torch; or why it is not measured."""
        subject = self.subject
        if subject is None or subject.adapter is None:
            return "there is no adapter"
        output, keys = "eval/loss/adapter.jsonl", self._keys({"measure": "adapter", **subject.content})
        if (there := self.kept.find(output, keys)) is not None:
            return Loss.of(there)
        base, adapter = subject.base.path, subject.adapter
        if lacking := reference.missing(base, adapter):
            return lacking

        def measured(_: list[Path], write: Write) -> None:
            with reference.opened(base, adapter) as model:
                measure.to_gpu(model)
                write(lambda index: measure.loss_in_torch(model, self.heldout.texts[index]))

        try:
            return Loss.of(self.kept.measure(output, keys, "loss of the adapter model", list, measured))
        except (ImportError, ValueError, RuntimeError) as error:
            # What the libraries raise for a model they cannot load or hold. The files are measured all the same.
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def file(self, one: Contender, question: Question) -> File:
        """Size, bits a weight, and tokens a second while it answers a question on this machine."""
        threads = self.wish.threads
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
                with Completer(path, len(ids) + asking.SPEED_TOKENS, self.wish.cores) as model:
                    Threads.of(model.llama, threads)
                    speed = model.speed(ids, asking.SPEED_TOKENS)
            write(lambda _: {"size": facts.size, "bits": facts.bits, "speed": speed})

        output, keys, what = f"eval/files/{one.label}.jsonl", results.keys(same, [asked]), f"speed of {one.name}"
        models = partial(self.contenders.paths, [one])
        [row] = self.kept.measure(output, keys, what, models, measured, "file")
        return File(row["size"], row["bits"], row["speed"])

    def answers(self, one: Contender, questions: Sequence[Question], label: str = "prompts") -> list[Answer]:
        """What a model says to these questions: asked once. `label` tells sets of questions apart."""
        wish = self.wish
        sampling: dict[str, Any] = {
            "temperature": wish.temperature,
            "max_tokens": wish.max_tokens,
            "seed": wish.seed,
            "context": wish.context or _CONTEXT,
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

        if self.kept.find(output, keys) is None:
            [path] = self.contenders.paths([one])
            self.kept.add(output, keys, build)
        return answers.read(self.room.path / output, questions, keys)

    def completions(self, one: Contender) -> list[Completion]:
        """What a model says in the place of the last answer of each held-out row: asked once, always the likeliest."""
        gaps = [gap for text in self.heldout.texts if (gap := completions.gap(text))][: self.wish.rows]
        most = completions.longest_answer(gaps, self.wish.max_tokens)
        context = self.wish.context or max((len(gap.prompt) + most for gap in gaps), default=0)
        same = {"measure": "completions", "model": one.identity, "most": most, "context": context, **_runtime()}

        def measured(paths: list[Path], write: Write) -> None:
            with Completer(paths[0], context, self.wish.cores) as model:
                write(lambda index: asdict(model.complete(gaps[index], most)))

        keys = results.keys(same, ([gap.prompt, gap.answer] for gap in gaps))
        output, what = f"eval/completions/{one.label}.jsonl", f"{one.name} answering"
        models = partial(self.contenders.paths, [one])
        found = self.kept.measure(output, keys, what, models, measured, "answers") if gaps else []
        return [Completion(row["expected"], row["text"], row["tokens"], row["ended"]) for row in found]

    @cached_property
    def day(self) -> date:
        """The date that models are told: the one of training, else the file's."""
        return self.subject.day if self.subject else gguf_tokenizer.day_of(self._first)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template, if there is one."""
        if self.subject is None:
            return gguf_tokenizer.template_of(self._first)
        folder = self.subject.base.path
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
            rendered = self.template.render(question.conversation, self.day, generate=True)
            fixed = flags.fixed_texts(rendered, [turn["content"] for turn in question.conversation])
        return flags.of(answer, fixed=fixed, asked=question.language)

    def close(self) -> None:
        """Remove what was only made for the comparison."""
        if not self.wish.keep:
            self.contenders.discard()

    def _sampling(self) -> Sampling:
        wish = self.wish
        return Sampling(temperature=wish.temperature, max_tokens=wish.max_tokens, seed=wish.seed)

    def _keys(self, same: Mapping[str, Any]) -> list[str]:
        return results.keys(same, self.heldout.keys)

    def _keys_between(self, one: Contender, other: Contender) -> list[str]:
        """Of how far one is from the other."""
        return self._keys({"measure": "divergence", "model": one.identity, "reference": other.identity, **_runtime()})

    def _open(self, path: Path) -> Forward:
        """Of a context that holds every held-out conversation. Raises EvalError where the model's own does not."""
        model = Forward(path, max(self.heldout.longest, _LEAST), self.wish.cores)
        try:
            self.heldout.check_context(model.trained_context, path.as_posix())
        except EvalError:
            model.close()
            raise
        return model

    def _chat(self, path: Path) -> closing[ChatModel]:
        return closing(ChatModel(path, self.wish.context or _CONTEXT, self.wish.threads, self.day))


def _runtime() -> dict[str, str]:
    """What computes: another llama.cpp may round in another way."""
    return {"llama_cpp": metadata.version("llama-cpp-python")}
