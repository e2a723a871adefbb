"""ggufy export"""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="export")
@click.argument("what", required=False, metavar="[RUN|FOLDER|user/name]")
@click.option("--quant", "quants", multiple=True, metavar="NAME", help="f16, q8_0, q4_k_m, ...; may be repeated.")
@click.option(
    "--merged",
    type=click.Choice(["f16", "bf16"]),
    is_flag=False,
    flag_value="f16",
    help="Also the merged checkpoint, as safetensors for transformers; f16 if not said.",
)
@click.option("--adapter-gguf", is_flag=True, help="Also the adapter alone, for llama.cpp's --lora.")
@click.option("--base", help="The 16-bit base of an adapter, where its own name for it does not do.")
@click.option("--out", type=click.Path(path_type=Path), help="Where an adapter's or checkpoint's files go.")
@click.option("--threads", type=click.IntRange(1), help="Threads; all cores if not given.")
@click.option("--dry-run", is_flag=True, help="Only say what would be written: types, sizes, time.")
@click.option("--no-verify", is_flag=True, help="Skip the check of each file before it gets its final name.")
@click.option("--force", is_flag=True, help="Write over files that ggufy did not make.")
def command(
    what: str | None,
    quants: tuple[str, ...],
    merged: str | None,
    adapter_gguf: bool,
    base: str | None,
    out: Path | None,
    threads: int | None,
    dry_run: bool,
    no_verify: bool,
    force: bool,
) -> None:
    """Make GGUF files, straight from base and adapter, in one pass over the weights.

    Of a RUN (the newest if nothing is named), of a FOLDER with a PEFT adapter or a 16-bit checkpoint, or of either on
    the Hub. Without --quant: what the run's recipe names, else q4_k_m.
    """
    from ggufy import pipeline

    if dry_run:
        for line in pipeline.plan_export(what, quants=quants, merged=merged, base=base, threads=threads):
            click.echo(line)
        return
    made = pipeline.export(
        what,
        quants=quants,
        merged=merged,
        adapter_gguf=adapter_gguf,
        base=base,
        out=out,
        threads=threads,
        force=force,
        check_files=not no_verify,
    )
    for artifact in made.values():
        click.echo(f"{artifact.path}  {artifact.size / 1e6:,.1f} MB{'  (up to date)' if artifact.reused else ''}")
