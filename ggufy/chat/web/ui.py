"""A page in the browser to talk with one model, or with two side by side."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

from ggufy.chat.model import ChatModel, Sampling
from ggufy.chat.session import Session
from ggufy.chat.web import listener
from ggufy.errors import ChatError, GgufyError, MissingExtra

_USUAL = Sampling()
_WAITING = 16
"""Questions that may wait for the answers to others."""
_PAUSE = 0.05
"""Seconds between two states of an answer that are shown."""
# A model's answer may name an image elsewhere; the browser is not to fetch it, or anything else.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)

# One for each question: it, and the answer of every model, empty where there is none.
Rows = list[tuple[str, list[str]]]


def check() -> None:
    """Raise MissingExtra where Gradio is not installed."""
    # Nothing is sent anywhere about who uses this, nor asked whether there is a newer version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import_module("gradio")
    except ModuleNotFoundError as missing:
        raise MissingExtra("`ggufy ui`", "ui", str(missing.name)) from None


class Page:
    """The page. Each visitor has a conversation of their own; the models are shared, and give one answer at a time."""

    def __init__(self, models: Sequence[ChatModel]) -> None:
        self.models = models
        self.names = [side.name for side in Session(models, None, _USUAL).sides]
        self.ending = threading.Event()
        # A stopped answer may still be at its last token when the next one begins.
        self._one_token = threading.Lock()

    def blocks(self) -> Any:
        import gradio

        with gradio.Blocks(title=f"ggufy: {' and '.join(self.names)}", analytics_enabled=False) as blocks:
            rows = gradio.State([])
            with gradio.Row():
                shown = [part for number, name in enumerate(self.names) for part in _column(gradio, number, name)]
            question = gradio.Textbox(
                placeholder="Ask something. Enter sends, Shift-Enter begins a new line.",
                show_label=False,
                max_lines=8,
                autofocus=True,
                elem_id="question",
            )
            with gradio.Row():
                ask, stop, retry, undo, clear = (
                    gradio.Button(name, variant="primary" if name == "Ask" else "secondary")
                    for name in ("Ask", "Stop", "Retry", "Undo", "Clear")
                )
            settings = _settings(gradio)
            outputs = [question, rows, *shown]
            # Shared, so that they wait for each other.
            one = {
                "concurrency_id": "models",
                "concurrency_limit": 1,
                "show_progress": "hidden",
                "api_visibility": "private",
            }
            asking = gradio.on([ask.click, question.submit], self.ask, [question, rows, *settings], outputs, **one)
            retrying = retry.click(self.retry, [rows, *settings], outputs, **one)
            quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
            stop.click(None, cancels=[asking, retrying], **quick)
            undo.click(self.undo, [rows], outputs, cancels=[asking, retrying], **quick)
            # The cross of one column, too: what was said is of both.
            emptied = [clear.click, *(chat.clear for chat in shown[::2])]
            gradio.on(emptied, lambda: self._state("", []), None, outputs, cancels=[asking, retrying], **quick)
        return blocks.queue(max_size=_WAITING)

    def ask(self, question: str | None, rows: Rows, system: str | None, *values: Any) -> Iterator[list[Any]]:
        """The page as it changes while a question is answered."""
        import gradio

        try:
            yield from self._answered((question or "").strip(), rows, system, _sampling(*values))
        except GgufyError as error:
            raise gradio.Error(f"{error.message}. {error.hint or ''}", print_exception=False) from None

    def retry(self, rows: Rows, *values: Any) -> Iterator[list[Any]]:
        """The last question again."""
        if rows:
            yield from self.ask(rows[-1][0], rows[:-1], *values)

    def undo(self, rows: Rows) -> list[Any]:
        """The last question back in its box."""
        return self._state(rows[-1][0] if rows else "", rows[:-1])

    def _answered(self, question: str, rows: Rows, system: str | None, sampling: Sampling) -> Iterator[list[Any]]:
        import gradio

        if not question:
            return
        session = Session(self.models, (system or "").strip() or None, sampling)
        for number, side in enumerate(session.sides):
            side.conversation.exchanges = [(asked, said[number]) for asked, said in rows if said[number]]
        notes = session.make_room(question)
        answers = ["" for _ in self.names]
        figures = ["" for _ in self.names]
        rows = [*rows, (question, answers)]
        # The field is emptied once: what is typed into it while the answer comes is the next question.
        yield self._state("", rows, figures)
        for number, side in enumerate(session.sides):
            due = 0.0
            for piece in self._pieces(side.model, side.conversation.messages(question), sampling):
                answers[number] += piece
                if time.monotonic() >= due:
                    due = time.monotonic() + _PAUSE
                    yield self._state(gradio.skip(), rows, figures)
            said = [note for note in notes if len(self.names) == 1 or note.startswith(f"({side.name}:")]
            figures[number] = " ".join([session.cost(side).strip("[]"), *said])
            yield self._state(gradio.skip(), rows, figures)

    def _pieces(self, model: ChatModel, messages: list[dict[str, str]], sampling: Sampling) -> Iterator[str]:
        pieces = model.answer(messages, sampling)
        while not self.ending.is_set():
            with self._one_token:
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _state(self, question: Any, rows: Rows, figures: Sequence[str] = ()) -> list[Any]:
        """The values of everything on the page."""
        found: list[Any] = [question, rows]
        for number in range(len(self.names)):
            messages = []
            for asked, said in rows:
                messages.append({"role": "user", "content": asked})
                if said[number]:
                    messages.append({"role": "assistant", "content": said[number]})
            found += [messages, figures[number] if figures else ""]
        return found


def _column(gradio: Any, number: int, name: str) -> list[Any]:
    with gradio.Column():
        return [
            gradio.Chatbot(label=name, height=480, layout="panel", buttons=["copy"], elem_classes="answers"),
            gradio.Markdown("", elem_id=f"figures-{number}"),
        ]


def _settings(gradio: Any) -> list[Any]:
    with gradio.Accordion("Parameters", open=False):
        system = gradio.Textbox(label="System prompt", lines=2)
        with gradio.Row():
            return [
                system,
                gradio.Slider(0, 2, _USUAL.temperature, step=0.05, label="Temperature"),
                gradio.Slider(0, 1, _USUAL.top_p, step=0.01, label="Top-p"),
                gradio.Slider(0, 200, _USUAL.top_k, step=1, label="Top-k (0 is all)"),
                gradio.Slider(0, 1, _USUAL.min_p, step=0.01, label="Min-p"),
                gradio.Slider(1, 2, _USUAL.repeat_penalty, step=0.01, label="Repeat penalty"),
                gradio.Slider(1, 4096, _USUAL.max_tokens, step=1, label="Longest answer, in tokens"),
                gradio.Textbox(label="Seed", placeholder="a new one each time"),
            ]


def _sampling(
    temperature: float, top_p: float, top_k: float, min_p: float, repeat_penalty: float, length: float, seed: str | None
) -> Sampling:
    text = (seed or "").strip()
    if text and not (text.isascii() and text.isdecimal() and int(text) < 1 << 32):
        raise ChatError(f"the seed {text!r} is not a whole number", "Leave it empty for a different answer each time.")
    return Sampling(temperature, top_p, int(top_k), min_p, repeat_penalty, int(length), int(text) if text else None)


def serve(page: Page, place: socket.socket, host: str, ready: Callable[[str], None]) -> None:
    """Show the page until Ctrl-C. `ready` gets its address."""
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(openapi_url=None)
    # A page in a browser may give any name of its own this machine's address.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1"])
    whole = gradio.mount_gradio_app(app, page.blocks(), "/", footer_links=[], ssr_mode=False)
    try:
        listener.run(_staying(whole), place, host, ready, page.ending.set)
    finally:
        for model in page.models:
            model.close()


def _staying(app: Any) -> Any:
    """The same, with the policy in every answer."""

    async def staying(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await app(scope, receive, sent)

    return staying
