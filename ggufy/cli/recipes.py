"""ggufy recipes"""

from __future__ import annotations

from pathlib import Path

import click


@click.group(name="recipes", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, show, copy and check recipes. Without a subcommand: list them."""
    if ctx.invoked_subcommand is None:
        from ggufy.recipe import recipe

        names = recipe.names()
        width = max(map(len, names))
        for name in names:
            click.echo(f"{name:<{width}} {recipe.load(name).description}")


@command.command()
@click.argument("name")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one value.")
def show(name: str, overrides: tuple[str, ...]) -> None:
    """Print a recipe in full, defaults included, with what each key means."""
    from ggufy.recipe import recipe

    click.echo(recipe.show(recipe.load(name, overrides)), nl=False)


@command.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
def copy(name: str, file: Path) -> None:
    """Copy a recipe to FILE, to change it."""
    from ggufy.recipe import recipe

    recipe.copy(name, file)
    click.echo(f"{file}: change it, then `ggufy train --recipe {file}`")


@command.command()
@click.argument("file")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one value.")
def check(file: str, overrides: tuple[str, ...]) -> None:
    """Check a recipe, and list everything that is wrong with it."""
    from ggufy import pipeline

    pipeline.check(file, overrides)
    click.echo(f"{file}: valid")
