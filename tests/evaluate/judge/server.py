"""A judge on this machine, for tests. `python -m tests.evaluate.judge.server FOLDER` prints its address and serves.

It speaks the part of OpenAI's protocol that a judge needs, grades by a rule that a test can work out, and goes wrong
when told to. Every question is recorded in FOLDER/asked.jsonl with what came of it, never the key.

`POST /_/set` sets: `key` (needed from then on), `bias` (added to the first answer's grades), `refuses` (parameters that
are answered with 400), `faults` (a list; each fits requests whose body matches `match`, and is used `times` times),
`slow` (seconds that every reply takes).
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_ANSWER = re.compile(r"<answer_([AB]) ([0-9a-f]{16})>\n(.*?)\n</answer_\1 \2>", re.DOTALL)


def grade(answer: str, bias: int = 0) -> dict[str, Any]:
    """By its stars: "**" is 2. Completeness is one less, at least 1; a text without stars is 3."""
    stars = answer.count("*") or 3
    value = max(1, min(5, stars + bias))
    return {
        "reason": f"{stars} stars",
        "correctness": value,
        "completeness": max(1, value - 1),
        "faithfulness": value,
    }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.lock = threading.Lock()
        self.state: dict[str, Any] = {}
        self.closed_until = 0.0

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def fault(self, body: str) -> dict[str, Any]:
        with self.lock:
            for fault in self.state.get("faults", []):
                if fault.get("times", 1) > 0 and re.search(fault.get("match", ""), body, re.DOTALL):
                    fault["times"] = fault.get("times", 1) - 1
                    return dict(fault)
        return {}

    def record(self, **row: Any) -> None:
        with self.lock, (self.folder / "asked.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        if not self._allowed():
            return self._send(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
        return self._send(200, {"data": [{"id": "stars"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if self.path == "/_/set":
            self.server.state = json.loads(body)
            return self._send(200, {})
        if not self._allowed():
            self.server.record(body=body, came="401")
            return self._send(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
        if self.path != "/v1/chat/completions":
            return self._send(404, {"detail": "Not Found"})
        asked = json.loads(body)
        for name in self.server.state.get("refuses", []):
            if name in asked:
                self.server.record(body=body, came=f"400 {name}")
                return self._send(400, {"error": {"message": _unsupported(name)}})
        time.sleep(self.server.state.get("slow", 0))
        fault = self.server.fault(body)
        early = time.monotonic() < self.server.closed_until
        self.server.record(body=body, came=fault.get("kind", "graded"), early=early)
        return self._go_wrong(fault, asked) if fault else self._say(self._grades(asked))

    def _allowed(self) -> bool:
        key = self.server.state.get("key")
        return key is None or self.headers.get("Authorization") == f"Bearer {key}"

    def _grades(self, asked: dict[str, Any]) -> str:
        answers = _ANSWER.findall(asked["messages"][1]["content"])
        bias = self.server.state.get("bias", 0)
        return json.dumps({letter: grade(text, bias if letter == "A" else 0) for letter, _, text in answers})

    def _go_wrong(self, fault: dict[str, Any], asked: dict[str, Any]) -> None:
        kind = fault["kind"]
        key = str(self.headers.get("Authorization")).removeprefix("Bearer ")
        if kind == "hang":
            time.sleep(fault["seconds"])
            self.close_connection = True
        elif kind == "drip":
            self._drip(fault["seconds"])
        elif kind == "drop":
            self.connection.close()
            self.close_connection = True
        elif kind == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif kind == "status":
            self._status(fault, key)
        elif kind == "say":
            text = fault["text"]
            self._say(text and text.replace("KEY", key), **fault.get("more", {}))
        elif kind == "body":
            self._raw(200, fault["text"].encode())
        elif kind == "key":
            grades = json.loads(self._grades(asked))
            grades["A"]["reason"] = f"I was sent {key}"
            self._say(json.dumps(grades))

    def _status(self, fault: dict[str, Any], key: str) -> None:
        headers = fault.get("headers", {})
        if "Retry-After" in headers:
            # A tenth of a second off, as clocks are.
            self.server.closed_until = time.monotonic() + float(headers["Retry-After"]) - 0.1
        self._send(fault["status"], {"error": {"message": fault.get("text", "ordered").replace("KEY", key)}}, headers)

    def _drip(self, seconds: float) -> None:
        """Something every now and then, so that a timeout between two bytes never comes."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)
        self.close_connection = True

    def _say(self, text: str | None, **more: Any) -> None:
        message = {"role": "assistant", "content": text} | more.pop("message", {})
        choice = {"index": 0, "finish_reason": "stop", "message": message} | more
        usage = {"prompt_tokens": 100, "completion_tokens": 40}
        self._send(200, {"model": "stars-2026", "choices": [choice], "usage": usage})

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._raw(status, json.dumps(value).encode(), headers)

    def _raw(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _unsupported(name: str) -> str:
    instead = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
    return f"Unsupported parameter: '{name}' is not supported with this model.{instead}"


if __name__ == "__main__":
    served = Server(Path(sys.argv[1]))
    print(f"http://127.0.0.1:{served.server_address[1]}", flush=True)
    served.serve_forever()
