"""One run, folder of exports, or set of files under evaluation: whatever is measured of it, once, and kept.

Every measurement is an output of the run under eval/, stamped with what it was made from: a killed evaluation goes on
where it was, and a second one measures nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import date
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from ggufy import digest, machine, progress
from ggufy.chat.model import ChatModel, Sampling
from ggufy.errors import EvalError
from ggufy.evaluate import answers, completions, flags, measure, rows, torch_loss
from ggufy.evaluate.answers import Answer, Question
from ggufy.evaluate.completions import Completer, Completion
from ggufy.evaluate.flags import Flag
from ggufy.evaluate.measure import Divergence, Loss
from ggufy.evaluate.quants_section import File
from ggufy.evaluate.texts import HeldOut, Text
from ggufy.evaluation import asking, contenders, gguf_text, heldout
from ggufy.evaluation.contenders import Contender, Contenders
from ggufy.evaluation.wish import Wish
from ggufy.export import reference
from ggufy.forward import Forward
from ggufy.run import Run
from ggufy.subject import Subject
from ggufy.template import ChatTemplate, text_of

log = logging.getLogger("ggufy")

_CONTEXT, _LEAST = 4096, 64


class Evaluator:
    """The caller holds the lock of the room, and calls `close`."""

    def __init__(self, name: str, room: Run, subject: Subject | None, files: Sequence[Path], wish: Wish) -> None:
        self.name, self.room, self.subject, self.wish = name, room, subject, wish
        others = [] if wish.against is None else [wish.against]
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
                found = heldout.of_file(wish.data, gguf_text.GgufTokenizer(model, None, "responses"), wish.limit)
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
        return contenders.first_file(self.contenders.files[0])

    @property
    def prefix(self) -> str:
        """Tells what is measured on a file of the user's from what is measured on the run's own conversations."""
        return f"{_part_of_a_name(self.wish.data)}-" if self.wish.data else ""

    def reference(self) -> Contender | None:
        """What the quants are compared with."""
        return self.against or self.contenders.tuned_f16()

    def loss(self, one: Contender) -> Loss:
        """The loss of a model on the held-out conversations, through llama.cpp."""
        if there := self._compared(one):
            return there
        output, inputs = f"eval/loss/{self.prefix}{one.label}.jsonl", self._measured("loss", one)

        def compute(place: Path, paths: list[Path]) -> None:
            with self._open(paths[0]) as model:
                self._each(output, place, inputs, f"loss of {one.name}", lambda text: measure.loss(model, text))

        return Loss.of(self._keep(output, inputs, [one], compute))

    def divergence(self, one: Contender, other: Contender) -> tuple[Divergence, Loss]:
        """How far a model is from another on the held-out conversations; and its own loss there."""
        output = f"eval/divergence/{self.prefix}{one.label}.jsonl"
        inputs = {**self._measured("divergence", one), "reference": other.identity}

        def compute(place: Path, paths: list[Path]) -> None:
            with self._open(paths[0]) as model, self._open(paths[1]) as standard:
                what = f"{one.name} against {other.name}"
                self._each(output, place, inputs, what, lambda text: measure.divergence(standard, model, text))

        found = self._keep(output, inputs, [one, other], compute)
        return Divergence.of(found), Loss.of(found)

    def _compared(self, one: Contender) -> Loss | None:
        """Its loss, where a comparison that is there already has it."""
        wanted = self._measured("divergence", one)
        for output in self.room.stamped("eval/divergence/"):
            inputs = dict((self.room.stamp(output) or {"inputs": {}})["inputs"])
            standard = inputs.pop("reference", None)
            key = "nll" if inputs == wanted else "reference_nll"
            own = key == "nll" or ({**inputs, "model": one.identity} == wanted and standard == one.identity)
            if own and self.room.valid(output):
                return Loss.of(list(rows.read(self.room.path / output).values()), key)
        return None

    def adapter_loss(self) -> Loss | str:
        """The loss of the training model itself in torch; or why it is not measured."""
        subject = self.subject
        if subject is None or subject.adapter is None:
            return "there is no adapter"
        inputs = {"measure": "adapter", "texts": digest.of_values(self.heldout.keys), **subject.content}
        output = f"eval/loss/{self.prefix}adapter.jsonl"
        there = self.room.valid(output, inputs)
        if there is None:
            if lacking := reference.missing(subject.base.path, subject.adapter):
                return lacking
            try:
                with reference.opened(subject.base.path, subject.adapter) as model:
                    torch_loss.to_gpu(model)
                    what = "loss of the adapter model"
                    self._make(
                        output,
                        inputs,
                        lambda place: self._each(
                            output, place, inputs, what, lambda text: torch_loss.loss(model, text)
                        ),
                    )
            except (ImportError, ValueError, RuntimeError) as error:
                # What the libraries raise for a model they cannot load or hold. The files are measured all the same.
                return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Loss.of(list(rows.read(self.room.path / output).values()))

    def file(self, one: Contender, question: Question) -> File:
        """Size, bits a weight, and tokens a second while it answers a question on this machine."""
        inputs: dict[str, Any] = {"measure": "file", "model": one.identity, "question": question.conversation}
        inputs |= {"threads": self.wish.threads, "cores": machine.cores(), **_runtime()}

        def compute(place: Path, paths: list[Path]) -> None:
            facts = contenders.facts(paths[0])
            if self.template is None or gguf_text.template_of(paths[0]) is None:
                # Of a model without a template: what was held out is asked as it stands.
                ids = self.heldout.texts[0].read
                with Completer(paths[0], len(ids) + asking.SPEED_TOKENS, self.wish.cores) as model:
                    speed = model.speed(ids, asking.SPEED_TOKENS)
            else:
                with self._chat(paths[0]) as chat:
                    speed = asking.speed(chat, question)
            rows.write(place, ["file"], lambda _: {"size": facts.size, "bits": facts.bits, "speed": speed})

        [row] = self._keep(f"eval/files/{one.label}.jsonl", inputs, [one], compute)
        return File(row["size"], row["bits"], row["speed"])

    def answers(self, one: Contender, questions: Sequence[Question], label: str | None = None) -> list[Answer]:
        """What a model says to these questions: asked once. `label` tells sets of questions apart."""
        wish = self.wish
        label = label or (_part_of_a_name(wish.prompts) if wish.prompts else "prompts")
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
        inputs = {"measure": "answers", "keys": digest.of_values(keys)}
        if self.room.valid(output, inputs) is None:
            [path] = self.contenders.paths([one])
            known = [rows.read(self.room.path / output)]

            def build(place: Path) -> None:
                with self._chat(path) as chat:
                    asking.check_room(chat, questions)
                    ask = lambda question: asking.answer(chat, question, self._sampling())  # noqa: E731
                    answers.collect(questions, keys, lambda: ask, place, known, f"asking {one.name}")

            self._make(output, inputs, build)
        return answers.read(self.room.path / output, questions, keys)

    def completions(self, one: Contender) -> list[Completion]:
        """What a model says in the place of the last answer of each held-out row: asked once, always the likeliest."""
        gaps = [gap for text in self.heldout.texts if (gap := completions.gap(text))][: self.wish.rows]
        most = completions.longest_answer(gaps, self.wish.max_tokens)
        context = self.wish.context or max((len(gap.prompt) + most for gap in gaps), default=0)
        same = {"measure": "completions", "model": one.identity, "most": most, "context": context, **_runtime()}
        keys = rows.distinct(digest.of_values([same, gap.prompt, gap.answer]) for gap in gaps)
        output, inputs = f"eval/completions/{self.prefix}{one.label}.jsonl", {**same, "rows": digest.of_values(keys)}

        def compute(place: Path, paths: list[Path]) -> None:
            known = [rows.read(self.room.path / output)]
            what = f"{one.name} answering"
            with Completer(paths[0], context, self.wish.cores) as model, progress.bar(what, len(gaps)) as bar:
                rows.write(
                    place,
                    keys,
                    lambda index: asdict(model.complete(gaps[index], most)),
                    known,
                    lambda count: bar.update(count, f"{count} answers"),
                )

        found = self._keep(output, inputs, [one], compute) if gaps else []
        return [Completion(row["expected"], row["text"], row["tokens"], row["ended"]) for row in found]

    @cached_property
    def day(self) -> date:
        """The date that models are told: the one of training, else the file's."""
        return self.subject.day if self.subject else gguf_text.day_of(self._first)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template, if there is one."""
        if self.subject is None:
            return gguf_text.template_of(self._first)
        folder = self.subject.base.path
        return ChatTemplate.from_folder(folder) if text_of(folder) else None

    @property
    def answers_chats(self) -> bool:
        """Whether all its models have a chat template."""
        standard = self.against
        return self.template is not None and (
            standard is None or gguf_text.template_of(contenders.first_file(standard)) is not None
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

    def _measured(self, what: str, one: Contender) -> dict[str, Any]:
        return {"measure": what, "model": one.identity, "texts": digest.of_values(self.heldout.keys), **_runtime()}

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

    def _each(
        self,
        output: str,
        place: Path,
        inputs: Mapping[str, Any],
        what: str,
        measure_one: Callable[[Text], Mapping[str, Any]],
    ) -> None:
        """Measure each held-out conversation that was not measured before with these inputs, such as with fewer."""
        texts = self.heldout.texts
        same = {key: value for key, value in inputs.items() if key != "texts"}
        keys = rows.distinct(digest.of_values([same, key]) for key in self.heldout.keys)
        known = [rows.read(self.room.path / output)]
        with progress.bar(what, len(texts)) as bar:
            rows.write(
                place,
                keys,
                lambda index: measure_one(texts[index]),
                known,
                lambda count: bar.update(count, f"{count} conversations"),
            )

    def _keep(
        self,
        output: str,
        inputs: Mapping[str, Any],
        models: Sequence[Contender],
        compute: Callable[[Path, list[Path]], None],
    ) -> list[dict[str, Any]]:
        """The rows of an output, made where it is not there. Models are made before, as making them is a stage too."""
        if self.room.valid(output, inputs) is None:
            paths = self.contenders.paths(models)
            self._make(output, inputs, lambda place: compute(place, paths))
        return list(rows.read(self.room.path / output).values())

    def _make(self, output: str, inputs: Mapping[str, Any], build: Callable[[Path], None]) -> None:
        # Forced: eval/ in a run is ggufy's own, and what has lost its stamp is made again.
        self.room.make({output: inputs}, lambda places: build(places[output]), force=True)


def _part_of_a_name(file: Path) -> str:
    return re.sub(r"[^\w.-]+", "-", file.stem)[:60]


def _runtime() -> dict[str, str]:
    """What computes: another llama.cpp may round in another way."""
    return {"llama_cpp": metadata.version("llama-cpp-python")}
