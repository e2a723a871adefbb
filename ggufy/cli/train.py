"""ggufy train"""

from __future__ import annotations

import click


@click.command(name="train")
@click.option("--recipe", required=True, help="A recipe's name (`ggufy recipes`) or a YAML file.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."
)
@click.option("--run", "run_name", metavar="NAME", help="The run's name; the recipe's if not given.")
@click.option("--fresh", is_flag=True, help="Start over: what the run holds is removed.")
@click.option(
    "--backend", type=click.Choice(["auto", "unsloth", "hf"]), help="What trains; hf also insists on a slow CPU."
)
@click.option("--gpus", type=click.IntRange(1), help="Share every step among so many GPUs.")
@click.option("--change-gpus", is_flag=True, help="Continue on another number of GPUs than before.")
@click.option("--dry-run", is_flag=True, help="Only check: recipe, machine, memory, disk. Nothing is loaded.")
def command(
    recipe: str,
    overrides: tuple[str, ...],
    run_name: str | None,
    fresh: bool,
    backend: str | None,
    gpus: int | None,
    change_gpus: bool,
    dry_run: bool,
) -> None:
    """Train a recipe's adapter, or continue where it stopped.

    The same command again continues or, when everything is done, does nothing.
    """
    from ggufy import pipeline

    if backend:
        overrides = (*overrides, f"train.backend={backend}")
    if gpus:
        overrides = (*overrides, f"train.gpus={gpus}")
    if dry_run:
        for line in pipeline.rehearse(recipe, run_name=run_name, overrides=overrides):
            click.echo(line)
        return
    done = pipeline.train(recipe, run_name=run_name, overrides=overrides, fresh=fresh, change_gpus=change_gpus)
    click.echo(f"next: ggufy export {done.name}")
