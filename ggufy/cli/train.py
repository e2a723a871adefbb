"""ggufy train"""

from __future__ import annotations

import click


@click.command(name="train")
@click.option("--recipe", help="A recipe's name (`ggufy recipes`) or a YAML file.")
@click.option(
    "--from-hub", metavar="user/name", help="Instead of a recipe: continue a run from its checkpoints on the Hub."
)
@click.option("--branch", metavar="NAME", help="With --from-hub: the hub.branch of the run; main if not given.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."
)
@click.option("--run", "run_name", metavar="NAME", help="The run's name; the recipe's if not given.")
@click.option("--fresh", is_flag=True, help="Start over: what the run holds is removed.")
@click.option(
    "--backend", type=click.Choice(["auto", "unsloth", "hf"]), help="What trains; naming hf also allows a slow CPU."
)
@click.option("--gpus", type=click.IntRange(1), help="Share every step among this many GPUs.")
@click.option("--change-gpus", is_flag=True, help="Continue on a different number of GPUs than before.")
@click.option("--dry-run", is_flag=True, help="Only check: recipe, machine, memory, disk. Nothing is loaded.")
def command(
    recipe: str | None,
    from_hub: str | None,
    branch: str | None,
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

    if from_hub:
        if recipe or overrides or fresh or backend or gpus or dry_run:
            raise click.UsageError("--from-hub continues with the run's own recipe: it takes only --branch and --run")
        done = pipeline.train_from_hub(from_hub, branch=branch, run_name=run_name)
        click.echo(f"next: ggufy export {done.name}")
        return
    if recipe is None:
        raise click.UsageError("Missing option '--recipe' (or '--from-hub').")
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
