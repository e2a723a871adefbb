"""ggufy sweep"""

from __future__ import annotations

from typing import Any

import click


@click.command(name="sweep")
@click.option("--recipe", required=True, help="A recipe's name (`ggufy recipes`) or a YAML file.")
@click.option("--grid", multiple=True, metavar="KEY=A,B,...", help="Try each of these values; may be repeated.")
@click.option(
    "--range",
    "ranges",
    multiple=True,
    metavar="KEY=LOW..HIGH[:log][:int]",
    help="With --sampler tpe: draw values from a range; may be repeated.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one value of all trials; may be repeated.",
)
@click.option(
    "--sampler",
    type=click.Choice(["grid", "tpe"]),
    default="grid",
    help="grid: every combination; tpe: Optuna chooses.",
)
@click.option("--trials", type=click.IntRange(1), help="With --sampler tpe: how many in all; 20 if not given.")
@click.option("--name", metavar="NAME", help="The sweep's name; RECIPE-sweep if not given.")
@click.option("--seed", type=click.IntRange(0), help="With --sampler tpe: random seed; the recipe's if not given.")
@click.option(
    "--prune", is_flag=True, help="Stop a trial whose held-out loss is above the others' median at the same step."
)
@click.option("--storage", metavar="URL", help="Optuna storage for several machines; a file in the sweep's folder.")
@click.option("--dry-run", is_flag=True, help="Only show which trials there would be, and their steps.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def command(recipe: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train a recipe with different values, compare the held-out losses, and keep the best as a recipe.

    Each trial is a run. Run the same command again to continue the sweep, or in several terminals to share it.
    """
    import json

    from ggufy.sweeps import sweep

    if not dry_run:
        click.echo(sweep.text(sweep.sweep(recipe, **options), as_json=as_json))
        return
    found = sweep.rehearse(recipe, **options)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(sweep.rehearsal_lines(found)))
