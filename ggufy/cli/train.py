"""ggufy train"""

from __future__ import annotations

import click


@click.command(name="train")
@click.option("--recipe", help="A recipe's name (`ggufy recipes`) or a YAML file.")
@click.option(
    "--from-hub", metavar="user/name", help="Instead of a recipe: go on with a run from its checkpoints there."
)
@click.option("--branch", metavar="NAME", help="Of --from-hub, as hub.branch was; main if not given.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."
)
@click.option("--run", "run_name", metavar="NAME", help="The run's name; the recipe's if not given.")
@click.option("--fresh", is_flag=True, help="Start over: what the run holds is removed.")
@click.option("--backend", type=click.Choice(["auto", "hf"]), help="hf also insists on a slow machine.")
def command(
    recipe: str | None,
    from_hub: str | None,
    branch: str | None,
    overrides: tuple[str, ...],
    run_name: str | None,
    fresh: bool,
    backend: str | None,
) -> None:
    """Train a recipe's adapter, or continue where it stopped.

    The same command again continues or, when everything is done, does nothing.
    """
    from ggufy import pipeline

    if from_hub:
        if recipe or overrides or fresh or backend:
            raise click.UsageError("--from-hub goes on with the run's own recipe: it takes only --branch and --run")
        done = pipeline.train_from_hub(from_hub, branch=branch, run_name=run_name)
        click.echo(f"next: ggufy export {done.name}")
        return
    if recipe is None:
        raise click.UsageError("Missing option '--recipe' (or '--from-hub').")
    if backend:
        overrides = (*overrides, f"train.backend={backend}")
    done = pipeline.train(recipe, run_name=run_name, overrides=overrides, fresh=fresh)
    click.echo(f"next: ggufy export {done.name}")
