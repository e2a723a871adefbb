"""ggufy export"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click


class _Size(click.ParamType[int]):
    """Bytes, as 500M or 2G: powers of 1000, as llama.cpp's gguf-split counts."""

    name = "size"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([1-9]\d*)([MG])", str(value))
        if not found:
            self.fail(f"{value!r} is no size; write it like 500M or 2G", param, ctx)
        return int(found[1]) * {"M": 1_000_000, "G": 1_000_000_000}[found[2]]


_SMALL = 50_000
_PATH = click.Path(path_type=Path)


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
@click.option("--imatrix", is_flag=True, help="Weigh by an importance matrix, from the run's training conversations.")
@click.option("--imatrix-data", type=_PATH, metavar="FILE", help="The same from a text, or conversations in .jsonl.")
@click.option("--imatrix-file", type=_PATH, metavar="FILE", help="Weigh by a finished importance matrix (GGUF).")
@click.option("--imatrix-tokens", type=click.IntRange(16), help="How much is read; 10,000 if not given.")
@click.option("--split-max-size", type=_Size(), metavar="SIZE", help="Files of at most that size, such as 2G.")
@click.option("--ollama", metavar="NAME", help="Also `ollama create NAME`, where Ollama is installed.")
@click.option("--base", help="The 16-bit base of an adapter, where its own name for it does not do.")
@click.option("--out", type=_PATH, help="Where an adapter's or checkpoint's files go.")
@click.option(
    "--kernels",
    type=click.Choice(["auto", "native", "llama.cpp"]),
    default="auto",
    show_default=True,
    help="What quantizes; the bytes are the same.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads; all cores if not given.")
@click.option("--dry-run", is_flag=True, help="Only say what would be written: types, sizes, time.")
@click.option(
    "--no-verify", "check_files", is_flag=True, flag_value=False, default=True, help="Skip the check of each file."
)
@click.option(
    "--no-logits",
    "check_logits",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Check each file, but without running the training model, which takes time and memory.",
)
@click.option("--force", is_flag=True, help="Write over files that ggufy did not make; others beside them stay.")
def command(what: str | None, base: str | None, out: Path | None, dry_run: bool, **options: Any) -> None:
    """Make GGUF files, straight from base and adapter, in one pass over the weights.

    Of a RUN (the newest if nothing is named), of a FOLDER with a PEFT adapter or a 16-bit checkpoint, or of either on
    the Hub. Without --quant: what the run's recipe names, else q4_k_m. Each file is verified before it gets its name.
    """
    from ggufy import pipeline

    if dry_run:
        for line in pipeline.plan_export(what, base=base, out=out, **options):
            click.echo(line)
        return
    for artifact in pipeline.export(what, base=base, out=out, **options).values():
        size = f"{artifact.size / 1e6:,.1f} MB" if artifact.size >= _SMALL else f"{artifact.size:,} bytes"
        click.echo(f"{artifact.path}  {size}{'  (up to date)' if artifact.reused else ''}")
