"""ggufy data"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click


def _coloured(text: str) -> str:
    return click.style(text, fg="green", bold=True)


def _bracketed(text: str) -> str:
    return f"[[{text}]]"


@click.command(name="data")
@click.option("--recipe", required=True, help="A recipe's name (`ggufy recipes`) or a YAML file.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated."
)
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="Also the histogram as a picture.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def command(recipe: str, overrides: tuple[str, ...], png: Path | None, as_json: bool) -> None:
    """Show how long the rows of a recipe's data are, what is cut, and one row with what is trained on marked.

    The data is read and tokenized as for training. Of the base only the tokenizer is downloaded.
    """
    from ggufy import pipeline, plots

    if png is not None:
        plots.check_name(png)
    report = pipeline.inspect(recipe, overrides)
    if png is not None:
        report.save_png(png)
    if as_json:
        click.echo(json.dumps(report.values(), indent=2, ensure_ascii=False))
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in report.lines(_coloured if colour else _bracketed):
        click.echo(line)
