"""Run the demo: teach a tiny model twenty answers, export it, and check that the files know them."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from ggufy import pipeline
from ggufy.chat import model as chat_model
from ggufy.data import source
from ggufy.errors import GgufyError
from ggufy.runs.stamps import Artifact

# Share of the answers that must be right word for word.
REQUIRED = {"q8_0": 0.95, "q4_k_m": 0.80}
SEED = 3407


@dataclass
class Exam:
    """What one file answered."""

    artifact: Artifact
    answers: list[str] = field(default_factory=list)
    tokens_per_second: float = 0.0

    def right(self, expected: list[str]) -> int:
        return sum(given == wanted for given, wanted in zip(self.answers, expected, strict=True))


def run(*, fresh: bool, seed: int) -> None:
    """Run the demonstration. Raises GgufyError where the files do not know what was taught."""
    begun = time.monotonic()
    name = "demo" if seed == SEED else f"demo-{seed}"
    overrides = [f"train.seed={seed}", f"data.eval_source={source.REPHRASED}"]
    trained = pipeline.train("tiny", run_name=name, overrides=overrides, fresh=fresh)
    after_training = time.monotonic()
    made = pipeline.export(trained, quants=list(REQUIRED))
    files = {quant: made[quant] for quant in REQUIRED}
    after_export = time.monotonic()
    pairs = taught(int(trained.frozen["recipe"]["data"]["train_size"]))
    exams = {quant: _ask(artifact, [question for question, _ in pairs]) for quant, artifact in files.items()}
    seconds = {
        "training": after_training - begun,
        "export": after_export - after_training,
        "asking": time.monotonic() - after_export,
    }
    _show(name, pairs, exams, seconds)
    expected = [answer for _, answer in pairs]
    for quant, exam in exams.items():
        if exam.right(expected) < REQUIRED[quant] * len(pairs):
            needed = f"{REQUIRED[quant]:.0%} of {len(pairs)}"
            raise GgufyError(
                f"the {quant} file knows {exam.right(expected)} answers word for word; {needed} are needed",
                "run `ggufy demo --fresh` to do everything again",
            )


def taught(count: int) -> list[tuple[str, str]]:
    """The first questions and answers of the sample data."""
    rows = source.Source(source.BUILTIN, "", source.samples_file()).rows()
    turns = [row["conversations"] for _, (_, row) in zip(range(count), rows, strict=False)]
    return [(question["value"], answer["value"]) for question, answer in turns]


def _ask(artifact: Artifact, questions: list[str]) -> Exam:
    exam = Exam(artifact)
    model = pipeline.chat(artifact.path, context=512)
    speeds = []
    for question in questions:
        exam.answers.append(chat_model.greedy(model, question))
        speeds.append(model.figures.tokens_per_second)
    model.close()
    exam.tokens_per_second = sum(speeds) / len(speeds)
    return exam


def _show(name: str, pairs: list[tuple[str, str]], exams: dict[str, Exam], seconds: dict[str, float]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("taught question", ratio=5)
    table.add_column("answer of the q4_k_m file", ratio=5)
    for quant in exams:
        table.add_column(quant)
    for number, (question, answer) in enumerate(pairs):
        marks = [
            Text("right", "green") if exam.answers[number] == answer else Text("wrong", "red")
            for exam in exams.values()
        ]
        table.add_row(Text(question), Text(exams["q4_k_m"].answers[number]), *marks)
    console.print(table)
    expected = [answer for _, answer in pairs]
    for exam in exams.values():
        size = f"{exam.artifact.size / 1e6:.1f} MB"
        right = f"{exam.right(expected)} of {len(pairs)} word for word"
        file = exam.artifact.path.as_posix()
        console.print(f"{file}  {size}  {right}  {exam.tokens_per_second:,.0f} tokens/s", highlight=False)
    console.print("time: " + ", ".join(f"{what} {spent:.1f} s" for what, spent in seconds.items()), highlight=False)
    console.print(f'\nnext: ggufy chat {name} --prompt "{pairs[3][0]}"', highlight=False)
    console.print(f"      ggufy eval {name}", highlight=False)
    console.print("      ggufy recipes", highlight=False)
