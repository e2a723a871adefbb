"""ggufy chat"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import click

from ggufy.cli.finite import Finite
from ggufy.errors import ChatError


@click.command(name="chat")
@click.argument("what", required=False, metavar="[RUN|FOLDER|FILE|user/name]")
@click.option("--prompt", help="Ask this one question, print the answer and exit; - reads it from standard input.")
@click.option("--system", help="A system prompt.")
@click.option("--compare", metavar="base|RUN|FILE", help="Ask a second model too: the run's base, another run or file.")
@click.option("--json", "as_json", is_flag=True, help="With --prompt: print one JSON object.")
@click.option("--raw", is_flag=True, help="Show answers as plain text, not drawn as Markdown.")
@click.option("--quant", help="Quant of the file; a run's newest export, or q4_k_m of a repository, if not given.")
@click.option("--branch", help="Branch of a repository; main if not given.")
@click.option(
    "--temperature", type=Finite(0), default=0.6, show_default=True, help="0 always takes the likeliest token."
)
@click.option(
    "--top-p",
    type=Finite(0, 1),
    default=0.9,
    show_default=True,
    help="Sample from the likeliest tokens that make up this share.",
)
@click.option(
    "--top-k",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Sample from this many of the likeliest tokens; 0 is all.",
)
@click.option(
    "--min-p",
    type=Finite(0, 1),
    default=0.05,
    show_default=True,
    help="Drop tokens with less than this share of the likeliest one's probability.",
)
@click.option(
    "--repeat-penalty", type=Finite(0), default=1.0, show_default=True, help="Penalty for repeated tokens; 1 is none."
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Longest answer, in tokens."
)
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), help="Random seed, for answers that can be repeated.")
@click.option("--context", type=click.IntRange(16), default=4096, show_default=True, help="Context size, in tokens.")
@click.option("--threads", type=click.IntRange(1), help="Threads; if not given, measured once for each size of model.")
@click.option(
    "--date",
    "day",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The date that the model is told; the date of its training if not given.",
)
def command(
    what: str | None,
    prompt: str | None,
    system: str | None,
    compare: str | None,
    as_json: bool,
    raw: bool,
    quant: str | None,
    branch: str | None,
    context: int,
    threads: int | None,
    day: datetime | None,
    **sampling: Any,
) -> int:
    """Talk to a GGUF on the CPU: a file, the newest export of a run or of a folder of exports, or a file on the Hub.

    Text that is piped in is asked as one question. In a terminal, /help lists the commands.
    """
    from ggufy import pipeline
    from ggufy.chat.model import Sampling
    from ggufy.chat.session import Session
    from ggufy.chat.terminal import oneshot, repl
    from ggufy.cli import talk

    if prompt is None and as_json and sys.stdin.isatty():
        raise click.UsageError("--json needs --prompt, or a question on standard input.")
    how: dict[str, Any] = {"context": context, "threads": threads, "day": day.date() if day else None}
    paths = [pipeline.gguf_of(what, quant, branch)]
    if compare is not None:
        paths.append(talk.compared(what, compare, quant=quant, branch=branch))
    session = Session([pipeline.chat(path, **how) for path in paths], system, Sampling(**sampling))
    if prompt is None and sys.stdin.isatty():
        return 130 if repl.converse(session, raw=raw) else 0
    question = _piped() if prompt in (None, "-") else str(prompt)
    stopped = oneshot.ask_json(session, question) if as_json else oneshot.ask(session, question, raw=raw)
    return 130 if stopped else 0


def _piped() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ChatError(f"standard input is not UTF-8 at byte {error.start:,}", "pipe text in UTF-8") from None
