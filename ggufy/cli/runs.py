"""ggufy runs"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufy.system import disk

if TYPE_CHECKING:
    from ggufy.runs.history import Row, Swept


@click.group(name="runs", invoke_without_command=True)
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_context
def command(ctx: click.Context, as_csv: bool, as_json: bool) -> None:
    """List, show and compare runs. Without a subcommand: list them, the newest first."""
    if ctx.invoked_subcommand is not None:
        return
    from ggufy.runs import history, run

    rows = history.rows()
    if as_json:
        click.echo(json.dumps([row.values() for row in rows], indent=2))
    elif as_csv:
        _csv(rows)
    elif not rows:
        click.echo(f"no runs yet in {run.runs_folder().as_posix()}/; make one with `ggufy train --recipe tiny`")
    else:
        _table([["run", "state", "recipe", "base", "steps", "loss", "eval", "exports", "last change (UTC)"]], rows)


@command.command()
@click.argument("name", required=False, metavar="[RUN]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def show(name: str | None, as_json: bool) -> None:
    """Show one run: its figures, files and loss curve. Without a name: the newest."""
    from ggufy.runs import curves, history

    this = history.find(name)
    row = history.row(this)
    if as_json:
        train, evaluated = history.curves(this)
        click.echo(json.dumps({**row.values(), "curve": train, "eval_curve": evaluated}, indent=2))
        return
    for key, value in _facts(row).items():
        click.echo(f"{key:<20} {value}")
    for file, size in row.exports.items():
        click.echo(f"{'export':<20} {file}  {disk.size(size)}")
    train, evaluated = history.curves(this)
    for line in curves.blocks({"loss": train, "eval loss": evaluated}):
        click.echo(line)


@command.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="Also draw both curves as a picture.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def compare(first: str, second: str, png: Path | None, as_csv: bool, as_json: bool) -> None:
    """Compare two runs: what differs in their recipes, their figures and their loss curves."""
    from ggufy.runs import curves, history

    runs = history.pair(first, second)
    rows = [history.row(this) for this in runs]
    differing = history.differences(*runs)
    facts = [_facts(row) for row in rows]
    figures = {key: (facts[0].get(key, ""), facts[1].get(key, "")) for key in dict.fromkeys([*facts[0], *facts[1]])}
    # Two of one name are two folders, each called as it was asked for.
    names = [row.name for row in rows] if rows[0].name != rows[1].name else [first, second]
    drawn = {}
    for name, this in zip(names, runs, strict=True):
        train, evaluated = history.curves(this)
        drawn[name] = train
        if evaluated:
            drawn[f"{name} eval"] = evaluated
    if png is not None:
        curves.png(png, drawn)
    if as_json:
        click.echo(json.dumps({"recipe": differing, "runs": [row.values() for row in rows], "curves": drawn}, indent=2))
        return
    lines = [["", *names]] + [[key, *map(str, values)] for key, values in (differing | figures).items()]
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(lines)
        return
    _columns(
        [["recipe", "", ""], *lines[1 : len(differing) + 1]] if differing else [["the recipes are the same"]], names
    )
    _columns([["figures", "", ""], *lines[len(differing) + 1 :]], names)
    for line in curves.blocks(drawn):
        click.echo(line)


def _facts(row: Row) -> dict[str, str]:
    """What is known of a run, for people."""
    known: dict[str, Any] = {
        "run": row.name,
        "state": f"{row.state}: {row.problem}" if row.problem else row.state,
        "recipe": row.recipe,
        "base": row.base,
        "steps": _steps(row),
        "loss": _loss(row.loss),
        "eval loss": _loss(row.eval_loss),
        "last change (UTC)": row.date,
    }
    for key, value in row.figures.items():
        if isinstance(value, int | float | str) and key not in ("steps", "final_loss", "eval_loss"):
            shown = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            known[key.replace("_", " ")] = shown
    return {key: str(value) for key, value in known.items() if value not in (None, "")}


def _csv(rows: Sequence[Row]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    keys = (
        "name",
        "state",
        "problem",
        "recipe",
        "base",
        "steps",
        "steps_planned",
        "loss",
        "eval_loss",
        "date",
        "sweep",
    )
    writer.writerow([*keys, "export_files", "export_bytes"])
    for row in rows:
        files = " ".join(row.exports)
        writer.writerow([*(getattr(row, key) for key in keys), files, sum(row.exports.values())])


def _table(head: list[list[str]], rows: Sequence[Row]) -> None:
    from ggufy.runs import history

    lines, sweeps, begun = head, history.sweeps(), ""
    for row in rows:
        if row.sweep in sweeps and row.sweep != begun:
            lines = [*lines, _sweep_line(sweeps[row.sweep])]
        begun = row.sweep or ""
        sizes = sum(row.exports.values())
        exports = f"{len(row.exports)}, {disk.size(sizes)}" if row.exports else ""
        known = [
            f"  {row.name}" if row.sweep in sweeps else row.name,
            row.state,
            row.recipe or "",
            row.base or "",
            _steps(row),
            _loss(row.loss),
        ]
        lines = [*lines, [*known, _loss(row.eval_loss), exports, row.date or ""]]
    _echo(lines)
    for row in rows:
        if row.problem:
            click.echo(f"{row.name} is damaged: {row.problem}")


def _sweep_line(swept: Swept) -> list[str]:
    best = "" if swept.best_loss is None else f"lowest of {swept.best_run}"
    return [
        swept.name,
        "sweep",
        swept.recipe,
        best,
        f"{swept.done} of {swept.planned} done",
        "",
        _loss(swept.best_loss),
        "",
        "",
    ]


def _columns(lines: list[list[str]], names: list[str]) -> None:
    if len(lines[0]) == 3:
        lines[0][1:] = names
    _echo(lines)
    click.echo("")


def _echo(lines: list[list[str]]) -> None:
    widths = [max(len(line[n]) for line in lines if n < len(line)) for n in range(len(lines[0]))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip())


def _steps(row: Row) -> str:
    return f"{row.steps:,}/{row.steps_planned:,}" if row.steps_planned else f"{row.steps:,}" if row.recipe else ""


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
