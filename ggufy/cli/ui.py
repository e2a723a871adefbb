"""ggufy ui"""

from __future__ import annotations

import sys
from typing import Any

import click


@click.command(name="ui")
@click.argument("what", required=False, metavar="[RUN|FOLDER|FILE|user/name]")
@click.option(
    "--compare", metavar="base|RUN|FILE", help="A second model beside it: the run's base, another run or file."
)
@click.option("--quant", help="Quant of the file; a run's newest export, or q4_k_m of a repository, if not given.")
@click.option("--branch", help="Branch of a repository; main if not given.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes a free one.")
@click.option("--context", type=click.IntRange(16), default=4096, show_default=True, help="Context size, in tokens.")
@click.option("--threads", type=click.IntRange(1), help="Threads; if not given, measured once for each size of model.")
def command(what: str | None, **options: Any) -> None:
    """Talk to a GGUF, or to two side by side, on a page in this machine's browser. Ctrl-C ends it."""
    from ggufy.cli import talk

    out = sys.stdout

    def ready(name: str, address: str) -> None:
        click.echo(f"{name} at {address}  (Ctrl-C ends it)", file=out)
        out.flush()

    talk.ui(what, ready=ready, **options)
