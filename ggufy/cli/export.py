"""ggufy export"""

from __future__ import annotations

import click


@click.command(name="export")
@click.argument("run", required=False)
@click.option("--quant", "quants", multiple=True, metavar="NAME", help="f16, q8_0, q4_k_m, ...; may be repeated.")
@click.option("--threads", type=click.IntRange(1), help="Threads; all cores if not given.")
def command(run: str | None, quants: tuple[str, ...], threads: int | None) -> None:
    """Make GGUF files of RUN (the newest if not given), straight from base and adapter.

    Without --quant: those its recipe names. Several share one pass over the weights.
    """
    from ggufy import pipeline

    for artifact in pipeline.export(run, quants=quants, threads=threads).values():
        click.echo(f"{artifact.path}  {artifact.size / 1e6:,.1f} MB{'  (up to date)' if artifact.reused else ''}")
