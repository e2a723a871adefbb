"""ggufy export"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class _Size(click.ParamType[int]):
    """Bytes, as 500M or 2G: powers of 1000, as llama.cpp's gguf-split counts."""

    name = "size"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([1-9]\d*)([MG])", str(value))
        if not found:
            self.fail(f"{value!r} is not a size; write it like 500M or 2G", param, ctx)
        return int(found[1]) * {"M": 1_000_000, "G": 1_000_000_000}[found[2]]


_SMALL = 50_000
_PATH = click.Path(path_type=Path)
_TYPES = (
    click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="PATTERN=TYPE",
        help="Type of the tensors whose names match, such as attn_v=q6_k; may be repeated, and the first that matches "
        "counts. PATTERN is a regular expression.",
    ),
    click.option(
        "--tensor-type-file",
        type=_PATH,
        metavar="FILE",
        help="A text file of PATTERN=TYPE, with spaces or lines between.",
    ),
    click.option("--output-tensor-type", metavar="TYPE", help="Type of the output matrix (output.weight)."),
    click.option("--token-embedding-type", metavar="TYPE", help="Type of the embedding (token_embd.weight)."),
    click.option("--leave-output-tensor", is_flag=True, help="Leave the output matrix in F16."),
    click.option("--pure", is_flag=True, help="Give all matrices the quant's own type, without a mixture."),
    click.option(
        "--types-from",
        type=_PATH,
        metavar="FILE",
        help="Give every tensor the type that it has in this GGUF of the model.",
    ),
)


def _of_types(command: Callable[..., Any]) -> Callable[..., Any]:
    """llama-quantize's options on the types of tensors."""
    for option in reversed(_TYPES):
        command = option(command)
    return command


@click.command(name="export")
@click.argument("what", required=False, metavar="[RUN|FOLDER|user/name]")
@click.option(
    "--quant", "quants", multiple=True, metavar="NAME", help="Type of GGUF: f16, q8_0, q4_k_m, ...; may be repeated."
)
@click.option(
    "--merged",
    type=click.Choice(["f16", "bf16"]),
    is_flag=False,
    flag_value="f16",
    help="Also write the merged checkpoint, as safetensors for transformers; f16 if not given.",
)
@click.option("--adapter-gguf", is_flag=True, help="Also write the adapter alone, for llama.cpp's --lora.")
@click.option(
    "--imatrix", is_flag=True, help="Use an importance matrix, computed from the run's training conversations."
)
@click.option(
    "--imatrix-data",
    type=_PATH,
    metavar="FILE",
    help="Use an importance matrix, computed from a text or from conversations in .jsonl.",
)
@click.option("--imatrix-file", type=_PATH, metavar="FILE", help="Use a finished importance matrix (GGUF).")
@click.option(
    "--imatrix-tokens", type=click.IntRange(16), help="How many tokens to compute it from; 10,000 if not given."
)
@click.option(
    "--split-max-size",
    type=_Size(),
    metavar="SIZE",
    help="Split each GGUF into files of at most this size, such as 2G.",
)
@_of_types
@click.option("--ollama", metavar="NAME", help="Also run `ollama create NAME`, if Ollama is installed.")
@click.option("--base", help="The 16-bit base of an adapter, if the one that the adapter names cannot be used.")
@click.option("--out", type=_PATH, help="Output folder for an adapter or a checkpoint.")
@click.option(
    "--kernels",
    type=click.Choice(["auto", "native", "llama.cpp"]),
    default="auto",
    show_default=True,
    help="Which kernels quantize; the bytes are the same.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads; all cores if not given.")
@click.option("--dry-run", is_flag=True, help="Only show what would be written: types, sizes, time.")
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
@click.option("--force", is_flag=True, help="Overwrite files that ggufy did not make; other files beside them stay.")
def command(what: str | None, base: str | None, out: Path | None, dry_run: bool, **options: Any) -> None:
    """Export GGUF files straight from base and adapter, in one pass over the weights.

    Exports a RUN (the newest if nothing is named), a FOLDER with a PEFT adapter or a 16-bit checkpoint, or either on
    the Hub. Without --quant: the quants of the recipe, else q4_k_m. Each file is verified before it gets its name.
    """
    from ggufy import pipeline

    if dry_run:
        for line in pipeline.plan_export(what, base=base, out=out, **options):
            click.echo(line)
        return
    for artifact in pipeline.export(what, base=base, out=out, **options).values():
        size = f"{artifact.size / 1e6:,.1f} MB" if artifact.size >= _SMALL else f"{artifact.size:,} bytes"
        click.echo(f"{artifact.path}  {size}{'  (up to date)' if artifact.reused else ''}")
