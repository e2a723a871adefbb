"""ggufy plan"""

from __future__ import annotations

import json

import click


@click.command(name="plan")
@click.option(
    "--recipe", help="A recipe's name (`ggufy recipes`) or a YAML file; all that come with ggufy if not given."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."
)
@click.option(
    "--gpu",
    metavar="NAME",
    help="t4, l4, rtx3060, rtx4090, a100, h100, h200, ...; the GPU of this machine if not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts: bytes and seconds.")
def command(recipe: str | None, overrides: tuple[str, ...], gpu: str | None, as_json: bool) -> None:
    """Show what a recipe needs: parameters, memory by part, disk, steps, time; and whether it fits a GPU.

    Without --recipe: which of the recipes that come with ggufy fit the GPU, the best first. Nothing is downloaded or
    loaded, and torch is not needed.
    """
    from ggufy import pipeline
    from ggufy.plan.plan import table

    if recipe is None and overrides:
        raise click.UsageError("--set changes a recipe: name it with --recipe")
    plans = pipeline.plan_all(gpu) if recipe is None else [pipeline.plan(recipe, overrides=overrides, gpu=gpu)]
    if as_json:
        values = [plan.values() for plan in plans]
        click.echo(json.dumps(values if recipe is None else values[0], indent=2))
        return
    for line in table(plans) if recipe is None else plans[0].lines():
        click.echo(line)
    if recipe is not None and not plans[0].fits:
        click.echo(f"hint: {plans[0].hint()}", err=True)
