"""ggufy eval"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ggufy.cli.finite import Finite

_FILE = click.Path(path_type=Path)


class _Sections(click.ParamType[tuple[str, ...]]):
    """Names with commas between."""

    name = "sections"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        del param, ctx
        return value if isinstance(value, tuple) else tuple(filter(None, (part.strip() for part in value.split(","))))


class _Price(click.ParamType[tuple[float, float]]):
    """Two amounts with a comma between."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            amounts = [float(amount) for amount in value.split(",")]
        except ValueError:
            amounts = []
        if len(amounts) != 2 or not all(0 <= amount < float("inf") for amount in amounts):
            self.fail(f"{value!r} is not two amounts such as 0.15,0.60", param, ctx)
        return amounts[0], amounts[1]


@click.command(name="eval")
@click.argument("what", nargs=-1, metavar="[RUN|FOLDER|FILE|user/name]...")
@click.option(
    "--only",
    type=_Sections(),
    metavar="SECTIONS",
    help="Only these parts, separated by commas: heldout, quants, prompts, references, tools, numbers, judge.",
)
@click.option(
    "--data", type=_FILE, metavar="FILE", help="Conversations or a .txt file to use instead of what the run held out."
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Use at most this many held-out conversations.",
)
@click.option("--against", type=_FILE, metavar="FILE", help="Compare with this GGUF, instead of with the F16 file.")
@click.option(
    "--max-kl", type=Finite(0), default=0.05, show_default=True, help="Largest mean KL at which a quant is recommended."
)
@click.option("--prompts", type=_FILE, metavar="FILE", help="Questions (.jsonl, .yaml, .txt) instead of ggufy's own.")
@click.option(
    "--rows", type=click.IntRange(0), default=50, show_default=True, help="How many held-out rows the models answer."
)
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=Finite(0), default=0, show_default=True, help="0 always takes the likeliest token.")
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=3407, show_default=True)
@click.option("--context", type=click.IntRange(16), help="Context size, in tokens; as large as needed if not given.")
@click.option("--threads", type=click.IntRange(1), help="Threads; all cores if not given.")
@click.option(
    "--no-adapter",
    "adapter",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Skip the adapter model, which needs torch.",
)
@click.option("--keep", is_flag=True, help="Keep the F16 files that are made for the comparison.")
@click.option("--out", type=_FILE, help="Folder for the report of a single file, or of several runs.")
@click.option(
    "--judge", metavar="MODEL", help="Let this model grade the answers to the prompts; OPENAI_API_KEY is used."
)
@click.option("--judge-url", metavar="URL", help="An OpenAI-compatible address, such as that of `ggufy serve`.")
@click.option("--judge-price", type=_Price(), metavar="IN,OUT", help="Price of a million tokens, to estimate the cost.")
@click.option(
    "--judge-rows",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Also grade the answers to this many held-out questions.",
)
@click.option(
    "--judge-parallel", type=click.IntRange(1, 64), default=4, show_default=True, help="Questions asked at a time."
)
@click.option("--judge-per-minute", type=Finite(0, min_open=True), help="Ask at most this many questions a minute.")
@click.option("--judge-timeout", type=Finite(1), default=120, show_default=True, help="Seconds to wait for a reply.")
@click.option(
    "--judge-tokens", type=click.IntRange(64), default=1024, show_default=True, help="Longest reply, in tokens."
)
@click.option("--judge-again", is_flag=True, help="Ask the judge again what it has graded before.")
@click.option("--yes", is_flag=True, help="Ask the judge without asking you for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json.")
def command(what: tuple[str, ...], only: tuple[str, ...] | None, as_json: bool, **options: Any) -> None:
    """Evaluate RUN (the newest if not given): is it better than its base, and what did quantization cost?

    Measures loss and perplexity on held-out conversations, and how far each GGUF is from the F16 file; asks base and
    tuned model the same questions; compares answers with those of the data; and lets a judge grade them. Writes
    eval/report.html and eval/report.json. What was measured before is not measured again.
    """
    from ggufy import pipeline

    if only:
        options["only"] = only
    if sys.stdin.isatty() and sys.stderr.isatty():
        options["confirm"] = lambda question: click.confirm(question, err=True)
    made = pipeline.evaluate(*what, **options)
    for line in [made.report.json().rstrip()] if as_json else made.lines():
        click.echo(line)
    if made.trouble:
        raise made.trouble
