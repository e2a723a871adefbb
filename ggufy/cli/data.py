"""ggufy data"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

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
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="Also draw the histogram as a picture.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.option("--push", "repo", metavar="user/name", help="Send the prepared rows to the Hub, as a data set.")
@click.option(
    "--branch", default="main", show_default=True, help="With --push: the branch, created if it does not exist."
)
@click.option("--private", is_flag=True, help="With --push: if the data set is new, create it as private.")
@click.option("--message", metavar="TEXT", help="With --push: the commit's message.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="With --push: the folder to write it to; datasets/NAME if not given."
)
@click.option("--force", is_flag=True, help="With --push: overwrite files that ggufy did not make.")
def command(
    recipe: str, overrides: tuple[str, ...], png: Path | None, as_json: bool, repo: str | None, **options: Any
) -> None:
    """Show how long the rows of a recipe's data are, what is cut, and one row with what is trained on marked.

    The data is read and tokenized as for training. Only the base's tokenizer is downloaded. With --push the rows
    that training would see, of all splits, become a data set on the Hub: Parquet files and a card.
    """
    from ggufy import pipeline
    from ggufy.hub.dataset import DatasetOptions
    from ggufy.system import plots

    if repo is not None:
        if png or as_json:
            raise click.UsageError("--push sends the rows; leave out --png and --json")
        for line in pipeline.push_data(recipe, DatasetOptions(repo, **options), overrides).lines():
            click.echo(line)
        return
    if any(options[name] for name in ("private", "message", "out", "force")) or options["branch"] != "main":
        raise click.UsageError("--branch, --private, --message, --out and --force are for --push")
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
