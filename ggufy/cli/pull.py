"""ggufy pull"""

from __future__ import annotations

import click


@click.command(name="pull")
@click.argument("repo", metavar="user/name")
@click.option("--branch", metavar="NAME", help="main, or where there is no run the checkpoints, if not given.")
@click.option("--run", "run_name", metavar="NAME", help="The run's name here; the one it had if not given.")
def command(repo: str, branch: str | None, run_name: str | None) -> None:
    """Bring a run back that `ggufy push` sent, or the checkpoints of one that was not finished.

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
