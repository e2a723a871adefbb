"""ggufy push"""

from __future__ import annotations

from typing import Any

import click

_KINDS = ("adapter", "gguf", "merged")


def _kinds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """A list as in --what adapter,gguf."""
    if value is None:
        return None
    wanted = tuple(part.strip() for part in value.split(",") if part.strip())
    for part in wanted:
        if part not in _KINDS:
            raise click.BadParameter(f"{part!r} is not one of {', '.join(_KINDS)}", ctx, param)
    if not wanted:
        raise click.BadParameter(f"name some of {', '.join(_KINDS)}", ctx, param)
    return wanted


@click.command(name="push")
@click.argument("what_run", required=False, metavar="[RUN]")
@click.option("--repo", metavar="user/name", help="Repository; hub.repo of the recipe if not given.")
@click.option(
    "--what", callback=_kinds, metavar="LIST", help="What to send, of adapter,gguf,merged; hub.what if not given."
)
@click.option("--branch", metavar="NAME", help="Branch, created if it does not exist; hub.branch if not given.")
@click.option(
    "--private/--public", "private", default=None, help="If the repository is new, create it as private or public."
)
@click.option("--tag", metavar="NAME", help="Tag to set on the commit.")
@click.option("--message", metavar="TEXT", help="The commit's message.")
@click.option("--ollama", metavar="you/name", help="Push to ollama.com; with --repo also to the Hub.")
@click.option("--force", is_flag=True, help="Overwrite files on the Hub that this run did not put there.")
@click.option("--dry-run", is_flag=True, help="Only show the card and the files; the Hub is not asked.")
def command(what_run: str | None, dry_run: bool, ollama: str | None, **options: Any) -> None:
    """Push a run (the newest if none is named) to the Hugging Face Hub, with a model card.

    Only files that the Hub does not have are sent, in one commit; it is done when the hashes there match those here. In
    names {recipe}, {run}, {r} and {n} are filled in: --branch 3B_QLoRA_N{n}.
    """
    from ggufy.hub import ollama as models
    from ggufy.hub import push
    from ggufy.hub.push import PushOptions
    from ggufy.runs import run

    this = run.find(what_run)
    to_hub = ollama is None or options["repo"]
    if dry_run:
        text, files = push.dry_run(this, PushOptions(**options)) if to_hub else ("", [])
        for line in (*([text] if text else ()), *files, *(models.dry_run(this, ollama) if ollama else ())):
            click.echo(line)
        return
    with this.lock():
        if ollama:
            # What Ollama would refuse is known before anything goes to the Hub.
            models.check(this, ollama)
        if to_hub:
            for line in push.push(this, PushOptions(**options)).lines():
                click.echo(line)
        for tag in models.push(this, ollama) if ollama else ():
            click.echo(f"https://ollama.com/{tag}")
