"""Client of an OpenAI-compatible endpoint: temporary failures are tried again, all others are reported.

The key goes into one header and nowhere else. Whatever the endpoint sends back is searched for it before anything is
kept or shown.
"""

from __future__ import annotations

import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from ggufy.errors import JudgeError
from ggufy.evaluate.judge import prompt
from ggufy.evaluate.judge.endpoint import KEY, Endpoint
from ggufy.model.template import Message
from ggufy.system import keys

ATTEMPTS = 6
# A longer wait than this is left to the user.
_LONGEST_WAIT = 300.0
_LARGEST = 1 << 20
_PASSING = (408, 409, 425, 429)
_CHAT = "/chat/completions"
# How a JSON reply can be asked for, the strictest first; the second is llama.cpp's.
_FORMS = ("json_schema", "json_object with a schema", "json_object", "")


class Failure(Exception):
    """One question that got no grades: what kind of failure, and its details in a line."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


class Unreached(Failure):
    """Nothing usable came back, however often it was tried."""


class Halted(Exception):
    """The work was called off while this waited."""


@dataclass(frozen=True)
class Reply:
    text: str
    model: str
    """As the endpoint calls it."""
    tokens_in: int | None
    tokens_out: int | None


class RateLimit:
    """When the next request may start, for all threads: so many a minute, and not before an endpoint says so."""

    def __init__(self, stop: threading.Event, per_minute: float | None = None) -> None:
        self._stop = stop
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def hold(self, seconds: float) -> None:
        """Let nobody start for that long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def pass_through(self) -> None:
        """Wait for a turn. Raises Halted."""
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + self._gap
                    break
                left = self._next - now
            if self._stop.wait(left):
                break
        if self._stop.is_set():
            raise Halted

    def pause(self, seconds: float) -> None:
        """Wait, this thread alone. Raises Halted."""
        if self._stop.wait(seconds):
            raise Halted


class Client:
    """Asks one endpoint; safe to use from several threads."""

    def __init__(
        self, where: Endpoint, rate_limit: RateLimit, *, timeout: float, most_tokens: int, pause: float
    ) -> None:
        self.where, self.rate_limit, self.timeout, self.first_pause = where, rate_limit, timeout, pause
        self.notes: list[str] = []
        """What the endpoint did not take, and is no longer sent."""
        headers = {"Authorization": f"Bearer {where.key}"} if where.key else {}
        # A proxy of the environment is for what is not on this machine. Redirects could carry the key elsewhere.
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            trust_env=not where.local,
            follow_redirects=False,
        )
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": most_tokens}
        self._forms = list(_FORMS)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._http.close()

    def check(self) -> None:
        """Raise JudgeError where nobody answers, or the key is not accepted, before any work is done for it."""
        try:
            status = self._send("GET", "/models", None)[0]
        except httpx.TimeoutException:
            # Slow is not gone: the questions themselves are tried several times.
            return
        except httpx.TransportError as error:
            raise JudgeError(
                f"no server answers at {self.where.url}: {self._clean(str(error))}",
                "start the judge, for example `ggufy serve`, or check --judge-url",
            ) from None
        if status in (401, 403):
            self._refuse(status, "")

    def ask(self, messages: Sequence[Message], count: int) -> Reply:
        """The reply about `count` answers. Raises Failure, JudgeError where asking on is of no use, or Halted."""
        trouble = ("", "")
        for attempt in range(ATTEMPTS):
            self.rate_limit.pass_through()
            wait = self.first_pause * 2**attempt * random.uniform(0.5, 1)
            try:
                status, headers, body = self._adapted(messages, count)
            except httpx.TimeoutException:
                trouble = ("timeout", f"no reply within {self.timeout:g} s")
            except httpx.TransportError as error:
                trouble = ("connection", self._clean(str(error)) or type(error).__name__)
            else:
                if status == 200:
                    reply = self._read(body)
                    if isinstance(reply, Reply):
                        return reply
                    trouble = ("server error", reply)
                else:
                    trouble = self._trouble(status, body)
                    wait = max(wait, self._told_to_wait(headers, status))
            if attempt < ATTEMPTS - 1:
                self.rate_limit.pause(wait)
        raise Unreached(trouble[0], f"{trouble[1]}, {ATTEMPTS} times")

    def _adapted(self, messages: Sequence[Message], count: int) -> tuple[int, httpx.Headers, bytes]:
        """Send it; what the endpoint names as unknown to it is left out or called otherwise, and it is sent again."""
        while True:
            with self._lock:
                options, form = dict(self._options), self._forms[0]
            payload = {
                "model": self.where.model,
                "messages": list(messages),
                **options,
                **_form(form, count, bounded=self.where.local),
            }
            status, headers, body = self._send("POST", _CHAT, payload)
            if status not in (400, 422) or not self._adapt(body, options, form):
                return status, headers, body

    def _adapt(self, body: bytes, options: dict[str, Any], form: str) -> bool:
        """Whether the endpoint names something that can be done without."""
        text = body.decode("utf-8", "replace")
        with self._lock:
            if "max_tokens" in options and "max_completion_tokens" in text:
                if "max_tokens" in self._options:
                    self._options["max_completion_tokens"] = self._options.pop("max_tokens")
                return True
            if "temperature" in options and "temperature" in text:
                if self._options.pop("temperature", None) is not None:
                    self.notes.append("the judge takes no temperature: it chooses its own")
                return True
            if form and re.search(r"response_format|json_schema|json_object|grammar", text):
                if self._forms[0] == form:
                    self._forms.pop(0)
                    self.notes.append(f"the judge does not take response_format {form}")
                return True
        return False

    def _send(self, method: str, path: str, payload: Any) -> tuple[int, httpx.Headers, bytes]:
        """One request, within the timeout as a whole: httpx's own starts again with every byte."""
        deadline = time.monotonic() + self.timeout
        content = None if payload is None else json.dumps(payload).encode("utf-8")
        headers = {"Content-Type": "application/json"} if content else {}
        with self._http.stream(method, self.where.url + path, content=content, headers=headers) as answer:
            body = b""
            for piece in answer.iter_bytes():
                body += piece
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the reply took too long")
                if len(body) > _LARGEST:
                    raise httpx.ReadError(f"a reply of more than {_LARGEST:,} bytes")
            return answer.status_code, answer.headers, body

    def _read(self, body: bytes) -> Reply | str:
        """The reply in a body, or what is wrong with it. Raises Failure for what the model itself has refused."""
        try:
            whole = json.loads(body)
            choice = whole["choices"][0]
            message = choice["message"]
            text, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            return f"not the reply of a chat model: {self._clean(body.decode('utf-8', 'replace')) or 'nothing'}"
        if refusal or finish == "content_filter":
            raise Failure("refusal", self._clean(str(refusal or "stopped by the endpoint's filter")))
        if finish == "length":
            raise Failure("cut short", "the reply was longer than --judge-tokens allows")
        if not isinstance(text, str) or not text.strip():
            return "an empty reply"
        usage = whole.get("usage") if isinstance(whole.get("usage"), dict) else {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        tokens = [count if type(count) is int and count >= 0 else None for count in counts]
        return Reply(self.redacted(text), self._clean(str(whole.get("model") or self.where.model)), *tokens)

    def _trouble(self, status: int, body: bytes) -> tuple[str, str]:
        """What a status means that may pass. Raises JudgeError or Failure for the others."""
        said = self._clean(_message(body))
        if status in (401, 402, 403, 404) or 300 <= status < 400:
            self._refuse(status, said)
        if status == 429 and "insufficient_quota" in body.decode("utf-8", "replace"):
            raise JudgeError("the judge's account has no credit left", "add credit; what was judged so far is kept")
        if status in _PASSING or status >= 500:
            return ("rate limit" if status == 429 else "server error"), f"status {status}{said and f', {said}'}"
        raise Failure("rejected", f"status {status}{said and f', {said}'}")

    def _refuse(self, status: int, said: str) -> None:
        where, model = self.where.url, self.where.model
        if status in (401, 403):
            # What the endpoint says may quote the key.
            has = f"the key in {KEY}" if self.where.key else f"a request without a key ({KEY})"
            raise JudgeError(f"the judge at {where} does not accept {has}: status {status}", "check the key's rights")
        if status == 404:
            raise JudgeError(
                f"{where} has no model {model!r}, or is not an OpenAI-compatible address: "
                f"status 404{said and f', {said}'}",
                f"see what it has at {where}/models; check --judge and --judge-url",
            )
        if status == 402:
            raise JudgeError("the judge's account has no credit left", "add credit; what was judged so far is kept")
        raise JudgeError(
            f"{where} redirects to another address: status {status}", "give the new address with --judge-url"
        )

    def _told_to_wait(self, headers: httpx.Headers, status: int) -> float:
        """The seconds that an endpoint asks for, which then hold for all threads. Raises JudgeError where too many."""
        seconds = _seconds(headers)
        if seconds > _LONGEST_WAIT:
            raise JudgeError(
                f"the judge asks to wait {seconds / 60:,.0f} minutes: status {status}",
                "run the same command again then; what was judged so far is kept",
            )
        if seconds:
            self.rate_limit.hold(seconds)
        return seconds

    def redacted(self, text: str) -> str:
        """A text of the endpoint's without the key, should it have sent it back."""
        for value in {*keys.values(), self.where.key or ""}:
            if len(value) >= 8:
                text = text.replace(value, "[key]")
        return text

    def _clean(self, text: str) -> str:
        """A text of the endpoint's for one line of a message."""
        return one_line(self.redacted(text))


def one_line(text: str, most: int = 200) -> str:
    """The beginning of somebody else's text, with nothing in it that would steer a terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text[: 10 * most]).split())[:most]


def _form(form: str, count: int, *, bounded: bool) -> dict[str, Any]:
    schema = prompt.schema(count, bounded=bounded)
    if form == "json_schema":
        named = {"name": "grades", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if form == "json_object with a schema":
        return {"response_format": {"type": "json_object", "schema": schema}}
    return {"response_format": {"type": form}} if form else {}


def _message(body: bytes) -> str:
    """What an error's body says: OpenAI's form, FastAPI's, or plain text."""
    text = body.decode("utf-8", "replace")
    try:
        whole = json.loads(text)
    except ValueError:
        return "" if "<html" in text.lower() else text
    error = whole.get("error", whole.get("detail", whole)) if isinstance(whole, dict) else whole
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _seconds(headers: httpx.Headers) -> float:
    """How long Retry-After asks to wait: seconds, or until a date; OpenAI also gives milliseconds."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        given = headers.get("retry-after", "0")
        if re.fullmatch(r"[\d.]+", given):
            return float(given)
        return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
