"""ggufy verify"""

from __future__ import annotations

import click


@click.command(name="verify")
@click.argument("what", required=False, metavar="[RUN|FOLDER|FILE]")
@click.option("--threads", type=click.IntRange(1), help="Threads; all cores if not given.")
@click.option(
    "--no-logits",
    "logits",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Do not compare logits with those of the training model.",
)
def command(what: str | None, threads: int | None, logits: bool) -> None:
    """Check the files of RUN (the newest if not given), of a FOLDER of exports, or one GGUF FILE, split or not.

    Re-hashes what is there; checks every tensor's data; loads each GGUF in llama.cpp; compares its tokenizer and chat
    template with those of the base, rows of its weights with base and adapter merged, and, if torch is installed, its
    logits with those of the training model. A GGUF outside runs and folders of exports is only validated and loaded.
    """
    from ggufy import pipeline

    for line in pipeline.verify(what, threads=threads, logits=logits):
        click.echo(line)
