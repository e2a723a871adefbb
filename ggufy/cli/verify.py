"""ggufy verify"""

from __future__ import annotations

import click


@click.command(name="verify")
@click.argument("what", required=False, metavar="[RUN|FILE]")
@click.option("--threads", type=click.IntRange(1), help="Threads; all cores if not given.")
def command(what: str | None, threads: int | None) -> None:
    """Check the files of RUN (the newest if not given), or one GGUF FILE.

    Re-hashes what a run holds; checks every tensor's data; loads each GGUF in llama.cpp; and compares its tokenizer and
    chat template with those of the base.
    """
    from ggufy import pipeline

    for line in pipeline.verify(what, threads=threads):
        click.echo(line)
