"""ggufy pull"""

from __future__ import annotations

import click


@click.command(name="pull")
@click.argument("repo", metavar="user/name")
@click.option(
    "--branch", metavar="NAME", help="If not given: main, or the branch of the checkpoints if main has no run."
)
@click.option(
    "--run",
    "run_name",
    metavar="NAME",
    help="Name of the run on this machine; the name it was pushed under if not given.",
)
def command(repo: str, branch: str | None, run_name: str | None) -> None:
    """Pull a run that `ggufy push` sent, or the checkpoints of an unfinished one.

    Every file is compared with the hash that the Hub lists. A download that was cut short is continued.
    """
    from ggufy.hub import pull

    this = pull.pull(repo, branch, run_name)
    if this.stamped("export/"):
        click.echo(f"next: ggufy chat {this.name}")
    elif this.stamp("adapter"):
        click.echo(f"next: ggufy export {this.name}")
    else:
        click.echo(f"next: ggufy train --from-hub {repo}{f' --run {run_name}' if run_name else ''}")
