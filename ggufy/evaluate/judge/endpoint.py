"""The address of a judge, its model, and the API key for it."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from ggufy.errors import JudgeError

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
# The value of KEY that says so; an empty one would be filled in from .env by other tools.
NO_KEY = "none"
_EXAMPLE = "for example http://127.0.0.1:8080/v1"


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is, and which model judges there."""

    url: str
    model: str
    key: str | None = field(repr=False)

    @property
    def local(self) -> bool:
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


def endpoint(model: str, url: str | None) -> Endpoint:
    """The endpoint meant by a model and an address, with the key of the environment. Raises JudgeError."""
    given = (url or OPENAI).strip().rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(given)
        httpx.URL(given)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        good = good and re.search(r"\s", given) is None
    except (ValueError, httpx.InvalidURL):
        # What is wrong may be a password with odd characters in it: such an address is not shown.
        raise JudgeError("--judge-url: not an http or https address", _EXAMPLE) from None
    if "@" in parts.netloc or parts.query:
        raise JudgeError("--judge-url: an address with a password or a query in it", f"put the key into {KEY} instead")
    if not good:
        raise JudgeError(f"--judge-url {given}: not an http or https address", _EXAMPLE)
    if not parts.path:
        given += "/v1"
    if not model.strip():
        raise JudgeError("--judge: the name of the model is missing", "for example --judge gpt-4o-mini")
    key = os.environ.get(KEY, "").strip() or None
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise JudgeError(
            f"{KEY} holds characters that a key cannot have", "copy the key again, without spaces or quotes"
        )
    found = Endpoint(given, model.strip(), None if key and key.lower() == NO_KEY else key)
    if key is None and not found.local:
        raise JudgeError(
            f"no key for the judge at {parts.hostname}",
            f"set {KEY}, in the environment or in a file .env; if it needs no key, set {KEY}={NO_KEY}",
        )
    if found.key and parts.scheme == "http" and not found.local:
        raise JudgeError(
            f"--judge-url {given}: the key would be sent unencrypted",
            f"use https or an ssh tunnel, or set {KEY}={NO_KEY} if no key is needed",
        )
    return found
