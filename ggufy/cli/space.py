"""ggufy space"""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="space")
@click.argument("what_run", required=False, metavar="[RUN]")
@click.option("--repo", required=True, metavar="user/space", help="The Space's name.")
@click.option("--quant", help="Which of the pushed GGUF files; q4_k_m if not given.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it; spaces/NAME if not given.")
@click.option("--push", "send", is_flag=True, help="Also upload it.")
@click.option("--private", is_flag=True, help="If the Space is new, create it as private.")
@click.option("--force", is_flag=True, help="Overwrite files that ggufy did not make.")
def command(
    what_run: str | None, repo: str, quant: str | None, out: Path | None, send: bool, private: bool, force: bool
) -> None:
    """Write a Gradio Space to chat with a pushed GGUF file of a run, on the free CPU tier.

    If the recipe has a space.task, the Space has its form, too.
    """
    from ggufy.hub import space
    from ggufy.hub.contents import names
    from ggufy.runs import run

    this = run.find(what_run)
    folder = out or Path("spaces") / names.check_repository(repo).partition("/")[2]
    with this.lock():
        written = space.write(this, repo, folder, quant=quant, force=force)
        click.echo(f"{folder.as_posix()}: {len(written)} files")
        if send:
            for line in space.send(this, folder, written, repo, private=private, force=force).lines():
                click.echo(line)
