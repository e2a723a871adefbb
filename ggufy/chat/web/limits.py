"""Checks before a request reaches the server: API key, host, size, number at once. Errors have OpenAI's shape."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_NAMES = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}


@dataclass(frozen=True)
class Limits:
    body: int = 1_000_000
    """Bytes of a request."""
    requests: int = 8
    """At once: one is answered, the others wait. More are told to come again."""
    max_tokens: int = 1024
    """The longest answer, and how long one may be that does not say."""


def error(status: int, message: str, code: str | None = None, param: str | None = None) -> Any:
    """A response that the clients of OpenAI's interface understand."""
    from starlette.responses import JSONResponse

    kind = _NAMES.get(status, "invalid_request_error")
    headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _host(text: str) -> str:
    """Without the port."""
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return ""


class LimitsMiddleware:
    """Lets through what may be asked. `host` is the address that is served, `key` what a client has to know."""

    def __init__(self, app: App, limits: Limits, host: str, key: str | None) -> None:
        self.app, self.limits, self.host, self.key = app, limits, host, key
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers)
        body = b""
        if refusal is None and scope["method"] == "POST":
            body, refusal = await self._read(receive)
        if refusal is None and scope["method"] == "POST" and self.inside >= self.limits.requests:
            message = f"{self.inside} requests are being answered or waiting, and this server takes no more at once"
            refusal = error(429, message, "too_many_requests")
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._pass(scope, body, receive, send)

    async def _pass(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        self.inside += scope["method"] == "POST"
        try:
            await self.app(scope, replay if scope["method"] == "POST" else receive, send)
        finally:
            self.inside -= scope["method"] == "POST"

    def _refusal(self, method: str, headers: dict[str, str]) -> Any:
        """What is wrong with a request before anything of it is read."""
        named = _host(headers.get("host", ""))
        if is_loopback(self.host) and not is_loopback(named):
            # A page in a browser may give any name of its own this machine's address.
            return error(403, f"this server answers to localhost only, not to {named!r}", "wrong_host")
        said = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self.key is not None and not hmac.compare_digest(said.encode(), self.key.encode()):
            return error(401, "no API key, or a wrong one", "invalid_api_key")
        if method == "POST" and headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            # A browser sends other types without asking whether it may.
            return error(415, "the body must be application/json", "unsupported_media_type")
        if headers.get("content-length", "0").isdecimal() and int(headers.get("content-length", 0)) > self.limits.body:
            return self._too_large()
        return None

    async def _read(self, receive: Receive) -> tuple[bytes, Any]:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"", error(400, "the request ended early")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limits.body:
                return b"", self._too_large()
        return body, None

    def _too_large(self) -> Any:
        return error(413, f"the body is larger than {self.limits.body:,} bytes", "request_too_large")
