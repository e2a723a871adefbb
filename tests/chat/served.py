"""`ggufy serve` in a process of its own, and the clients that ask it."""

from __future__ import annotations

import functools
import http.client
import json
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any


class Server:
    """`ggufy serve` with these arguments, and the address it printed."""

    def __init__(self, *args: str, cwd: Path, env: dict[str, str]) -> None:
        command = ["env", "--default-signal=INT", sys.executable, "-m", "ggufy", "serve", *args]
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.search(r"http://\S+/v1", self.line)
        assert found, (self.line, self.process.communicate())
        self.url = found[0]
        self.clients: list[Any] = []
        self.port = int(self.url.rsplit(":", 1)[1].removesuffix("/v1"))

    @functools.cache  # noqa: B019 - until end() closes them
    def client(self, key: str = "none") -> Any:
        from openai import OpenAI

        self.clients.append(OpenAI(base_url=self.url, api_key=key, max_retries=0))
        return self.clients[-1]

    def post(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any]:
        """What a client that is not OpenAI's may send."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Its exit code and what it said."""
        for client in self.clients:
            client.close()
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said
