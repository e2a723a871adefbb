"""What `ggufy chat`, `serve` and `ui` share: find the GGUF files, load them, and start the server or the page."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ggufy import pipeline
from ggufy.runs.run import Run
from ggufy.system import keys


def serve(
    what: str | os.PathLike[str] | Run | None = None,
    *,
    ready: Callable[[str, str], None],
    host: str = "127.0.0.1",
    port: int = 0,
    api_key_file: Path | None = None,
    quant: str | None = None,
    branch: str | None = None,
    context: int = 4096,
    threads: int | None = None,
    max_tokens: int = 1024,
    max_requests: int = 8,
    max_body: int = 1_000_000,
) -> None:
    """Serve a GGUF through an OpenAI-compatible API, until Ctrl-C. `ready` gets the model's name and the address."""
    from ggufy.chat.web import listener, server
    from ggufy.chat.web.limits import Limits

    key = keys.for_clients(api_key_file)
    server.check(host, key)
    path = pipeline.gguf_of(what, quant, branch)
    with listener.listen(host, port) as place:
        model = pipeline.chat(path, context=context, threads=threads)
        service = server.Service(model, Limits(max_body, max_requests, max_tokens))
        server.serve(service, place, host, key, lambda address: ready(service.name, address))


def ui(
    what: str | os.PathLike[str] | Run | None = None,
    *,
    ready: Callable[[str, str], None],
    compare: str | None = None,
    port: int = 0,
    quant: str | None = None,
    branch: str | None = None,
    context: int = 4096,
    threads: int | None = None,
) -> None:
    """Show a page to talk with a GGUF, or with two, until Ctrl-C. `ready` gets the models' names and the address."""
    from ggufy.chat.web import listener
    from ggufy.chat.web import ui as pages

    pages.check()
    paths = [pipeline.gguf_of(what, quant, branch)]
    if compare is not None:
        paths.append(compared(what, compare, quant=quant, branch=branch))
    host = "127.0.0.1"
    with listener.listen(host, port) as place:
        page = pages.Page([pipeline.chat(path, context=context, threads=threads) for path in paths])
        pages.serve(page, place, host, lambda address: ready(" and ".join(page.names), address))


def compared(
    what: str | os.PathLike[str] | Run | None, other: str, *, quant: str | None = None, branch: str | None = None
) -> Path:
    """The GGUF to talk to beside the one that `what` means: another run or file, or its "base", without adapter."""
    if other != "base":
        return pipeline.gguf_of(other, quant)
    from ggufy.evaluate.session import base_model

    return base_model.of(pipeline.gguf_of(what, quant, branch))
