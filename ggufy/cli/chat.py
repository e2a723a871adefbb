"""ggufy chat"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import click


@click.command(name="chat")
@click.argument("what", required=False, metavar="[RUN|FOLDER|FILE|user/name]")
@click.option("--prompt", help="Ask this once, print the answer, and leave.")
@click.option("--system", help="A system prompt.")
@click.option("--quant", help="Which export of a run; the newest if not given. Of a repository: q4_k_m if not given.")
@click.option("--branch", help="Of a repository; main if not given.")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.6, show_default=True, help="0 is always the likeliest."
)
@click.option("--top-p", type=click.FloatRange(0, 1), default=0.9, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Longest answer.")
@click.option("--seed", type=click.IntRange(0), help="For answers that can be repeated.")
@click.option("--context", type=click.IntRange(16), default=4096, show_default=True, help="Tokens kept in view.")
@click.option("--threads", type=click.IntRange(1), help="Threads; llama.cpp's choice if not given.")
@click.option(
    "--date",
    "day",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The date the model is told; that of training if not given.",
)
def command(
    what: str | None,
    prompt: str | None,
    system: str | None,
    quant: str | None,
    branch: str | None,
    context: int,
    threads: int | None,
    day: datetime | None,
    **sampling: Any,
) -> None:
    """Talk to a GGUF file, the newest export of a run or in a folder of exports, or a file on the Hub, on the CPU."""
    from ggufy import pipeline
    from ggufy.chat import repl
    from ggufy.chat.model import Sampling

    model = pipeline.chat(
        what, quant=quant, branch=branch, context=context, threads=threads, day=day.date() if day else None
    )
    if prompt is None:
        repl.converse(model, system, Sampling(**sampling))
    else:
        repl.one_shot(model, prompt if prompt != "-" else sys.stdin.read(), system, Sampling(**sampling))
