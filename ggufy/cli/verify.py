"""ggufy verify"""

from __future__ import annotations

import click


@click.command(name="verify")
@click.argument("what", required=False, metavar="[RUN|FOLDER|FILE]")
@click.option("--threads", type=click.IntRange(1), help="Threads; all cores if not given.")
@click.option("--no-logits", "logits", is_flag=True, flag_value=False, default=True, help="Leave that comparison out.")
def command(what: str | None, threads: int | None, logits: bool) -> None:
    """Check the files of RUN (the newest if not given), of a FOLDER of exports, or one GGUF: a FILE, split or not.

    Re-hashes what is there; checks every tensor's data; loads each GGUF in llama.cpp; compares its tokenizer and chat
    template with those of the base, rows of its weights with base and adapter merged, and where torch is, its logits
    with those of the training model. A GGUF that lies in no run and no folder of exports is compared with nothing.
    """
    from ggufy import pipeline

    for line in pipeline.verify(what, threads=threads, logits=logits):
        click.echo(line)
