"""ggufy serve"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(name="serve")
@click.argument("what", required=False, metavar="[RUN|FOLDER|FILE|user/name]")
@click.option("--quant", help="Quant of the file; a run's newest export, or q4_k_m of a repository, if not given.")
@click.option("--branch", help="Branch of a repository; main if not given.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Any address but this machine's own needs an API key."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file with the key that clients have to send; or set GGUFY_API_KEY.",
)
@click.option("--context", type=click.IntRange(16), default=4096, show_default=True, help="Context size, in tokens.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--max-requests", type=click.IntRange(1), default=8, show_default=True, help="Requests taken at once; more get 429."
)
@click.option(
    "--max-body",
    type=click.IntRange(1),
    default=1_000_000,
    show_default=True,
    help="Largest request, in bytes; a larger one gets 413.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads; if not given, measured once for each size of model.")
def command(what: str | None, host: str, port: int, api_key_file: Path | None, **options: Any) -> None:
    """Serve a GGUF through an OpenAI-compatible API: /v1/chat/completions, with streaming, and /v1/models.

    Only this machine can reach it, unless --host says otherwise. Ctrl-C ends it.
    """
    import sys

    from ggufy.cli import talk

    out = sys.stdout

    def ready(name: str, address: str) -> None:
        click.echo(f"{name} at {address}  (Ctrl-C ends it)", file=out)
        out.flush()

    talk.serve(what, host=host, port=port, api_key_file=api_key_file, ready=ready, **options)
