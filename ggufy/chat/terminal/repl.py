"""An interactive conversation in a terminal."""

from __future__ import annotations

from ggufy.chat.session import Screen, Session
from ggufy.chat.terminal import commands, display, reader
from ggufy.errors import GgufyError


def converse(session: Session, *, raw: bool = False) -> bool:
    """Read, answer, repeat. Ctrl-C stops an answer; Ctrl-D, /quit or Ctrl-C twice at the prompt leaves.

    Returns whether it was left by Ctrl-C. With `raw` answers are not drawn as Markdown.
    """
    lines = reader.reader(commands.completions)
    screen = display.screen([side.name for side in session.sides], raw=raw)
    names = " and ".join(side.name for side in session.sides)
    display.note(f"{names}: Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands")
    pressed = False
    while True:
        try:
            typed = lines.read()
            if typed is None:
                return False
            if typed and not _obey(session, typed, screen):
                return False
            pressed = False
        except KeyboardInterrupt:
            if pressed:
                return True
            pressed = True
            display.note("\n(Ctrl-C again leaves)")


def _obey(session: Session, typed: str, screen: Screen) -> bool:
    """Do what was typed; returns whether to go on."""
    try:
        question: str | None = typed.removeprefix("/") if typed.startswith("//") else typed
        if typed.startswith("/") and not typed.startswith("//"):
            outcome = commands.run(session, typed)
            display.note(outcome.said)
            if outcome.leave:
                return False
            question = outcome.ask
        if question is not None:
            _exchange(session, question, screen)
    except GgufyError as error:
        display.note(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
    return True


def _exchange(session: Session, question: str, screen: Screen) -> None:
    for said in session.make_room(question):
        display.note(said)
    before = [len(side.conversation.exchanges) for side in session.sides]
    session.ask(question, screen)
    if [len(side.conversation.exchanges) for side in session.sides] == before:
        display.note("(stopped before every answer had begun, so this exchange is not remembered)")
