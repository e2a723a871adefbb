"""Run an HTTP server in this process: open its port, and stop it on Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from ggufy.errors import ChatError

_PATIENCE = 3
"""Seconds that connections get when the server ends."""


def listen(host: str, port: int) -> socket.socket:
    """The open socket; with port 0 the system chooses a free one. Raises ChatError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as problem:
        unknown = isinstance(problem, socket.gaierror) or problem.errno is None
        reason = str(problem) if unknown else os.strerror(problem.errno or 0)
        hint = "check --host" if unknown else "choose another --port; 0 takes a free one"
        raise ChatError(f"cannot serve at {host} port {port}: {reason}", hint) from None


def run(app: Any, place: socket.socket, host: str, ready: Callable[[str], None], ending: Callable[[], None]) -> None:
    """Answer until Ctrl-C or SIGTERM. `ready` gets the address when it answers, and `ending` is called at its end."""
    import uvicorn

    port = place.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(f"http://{shown}:{port}")

        def handle_exit(self, sig: int, frame: Any) -> None:
            ending()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=_PATIENCE
    )
    # uvicorn sends itself the signal again when it is done.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        # Libraries print to standard output when a client goes away.
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(KeyboardInterrupt):
            Server(config).run([place])
    finally:
        signal.signal(signal.SIGTERM, before)
