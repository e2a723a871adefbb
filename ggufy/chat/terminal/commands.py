"""The slash commands of the chat: /help, /save, /params and so on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggufy.chat.model import Sampling
from ggufy.chat.session import Session
from ggufy.chat.terminal import transcript
from ggufy.errors import ChatError


@dataclass(frozen=True)
class Outcome:
    """What a command leads to."""

    said: str = ""
    ask: str | None = None
    """A question to put again."""
    leave: bool = False


@dataclass(frozen=True)
class Command:
    does: Callable[[Session, str], Outcome]
    takes: str
    meaning: str


def run(session: Session, typed: str) -> Outcome:
    """Do what a line that begins with a slash says. Raises ChatError for what is no command, or cannot be done."""
    name, _, argument = typed.partition(" ")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        known = f"did you mean {close[0]}?" if close else "/help lists the commands."
        raise ChatError(f"{name}: no such command", f"{known} To say it to the model, write /{typed}")
    command = COMMANDS[name]
    if argument.strip() and not command.takes:
        raise ChatError(f"{name} takes no arguments", f"/help says what {name} does")
    return command.does(session, argument.strip())


def completions(typed: str) -> Iterable[str]:
    """The commands that a line may become."""
    return [name for name in COMMANDS if name.startswith(typed)]


def _system(session: Session, text: str) -> Outcome:
    if not text:
        now = session.sides[0].conversation.system
        return Outcome(f"system: {now}" if now else "there is no system prompt; /system TEXT gives one")
    for side in session.sides:
        side.conversation.system = None if text == "-" else text
    return Outcome(
        "the system prompt is removed" if text == "-" else "the system prompt applies from the next answer on"
    )


def _reset(session: Session, _: str) -> Outcome:
    for side in session.sides:
        side.conversation.reset()
    return Outcome("the conversation is forgotten" + (", the system prompt kept" if _has_system(session) else ""))


def _has_system(session: Session) -> bool:
    return bool(session.sides[0].conversation.system)


def _undo(session: Session, _: str) -> Outcome:
    return Outcome(f"taken back: {_shortened(_taken_back(session))}")


def _retry(session: Session, _: str) -> Outcome:
    question = _taken_back(session)
    same = session.sampling.temperature == 0 or session.sampling.seed is not None
    said = "(with temperature 0 or a seed the answer stays the same; /params changes them)" if same else ""
    return Outcome(said, ask=question)


def _taken_back(session: Session) -> str:
    last = [side.conversation.undo() for side in session.sides]
    if last[0] is None:
        raise ChatError("nothing has been said yet", "ask something first")
    return last[0][0]


def _save(session: Session, name: str) -> Outcome:
    if not name:
        raise ChatError("/save needs the name of a file", "as in /save talk.json")
    path = Path(name).expanduser()
    transcript.save(path, [(side.name, side.conversation) for side in session.sides], replace=path in session.saved)
    session.saved.add(path)
    return Outcome(f"{path.as_posix()}: {_count(len(session.sides[0].conversation.exchanges))}")


def _load(session: Session, name: str) -> Outcome:
    if not name:
        raise ChatError("/load needs the name of a file", "as in /load talk.json")
    path = Path(name).expanduser()
    found = transcript.load(path)
    for number, side in enumerate(session.sides):
        side.conversation = found[min(number, len(found) - 1)].copy()
    first = session.sides[0].conversation
    system = ", with a system prompt" if first.system else ""
    return Outcome(f"{path.as_posix()}: {_count(len(first.exchanges))}{system}")


_PARAMETERS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 1e3),
    "top-p": (float, 0, 1),
    "top-k": (int, 0, 1 << 31),
    "min-p": (float, 0, 1),
    "repeat-penalty": (float, 0, 1e3),
    "max-tokens": (int, 1, 1 << 31),
    "seed": (int, 0, (1 << 32) - 1),
}


def _params(session: Session, text: str) -> Outcome:
    words = text.replace("=", " ").split()
    if len(words) % 2:
        raise ChatError("each parameter needs a value", "as in /params temperature 0.8 top-p 0.95")
    changed: dict[str, Any] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        changed[name.replace("-", "_")] = _value(name, value)
    session.sampling = replace(session.sampling, **changed)
    return Outcome(describe(session.sampling))


def _value(name: str, text: str) -> Any:
    if name.replace("_", "-") not in _PARAMETERS:
        close = difflib.get_close_matches(name, _PARAMETERS, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else f"the parameters are {', '.join(_PARAMETERS)}"
        raise ChatError(f"{name}: no such parameter", hint)
    kind, lowest, highest = _PARAMETERS[name.replace("_", "-")]
    if name == "seed" and text == "none":
        return None
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not lowest <= value <= highest:
        what = "a whole number" if kind is int else "a number"
        limits = f"from {lowest} to {highest}" if highest <= 1 else f"from {lowest}"
        raise ChatError(f"{name}: {text!r} is not {what} {limits}", "/params shows what is set")
    return value


def describe(sampling: Sampling) -> str:
    """The parameters in a line."""
    shown = {name: getattr(sampling, name.replace("-", "_")) for name in _PARAMETERS}
    return ", ".join(f"{name} {'none' if value is None else value}" for name, value in shown.items())


def _tokens(session: Session, _: str) -> Outcome:
    lines = []
    for side in session.sides:
        talk, model = side.conversation, side.model
        used = side.size()
        seen = len(talk.exchanges) - talk.unseen
        lines.append(
            f"{side.name}: {used:,} of {model.context:,} tokens of context used, {_count(seen)} in it"
            + (f", {talk.unseen} dropped from it" if talk.unseen else "")
        )
        if model.figures.prompt_tokens:
            figures = model.figures
            fresh = figures.prompt_tokens - figures.reused_tokens
            lines.append(f"  the last prompt had {figures.prompt_tokens:,} tokens, {fresh:,} of them new")
        lines.append(f"  threads: {model.threads.answering} for answers, {model.threads.reading} for prompts")
    return Outcome("\n".join(lines))


def _help(session: Session, _: str) -> Outcome:
    del session
    width = max(len(f"{name} {command.takes}") for name, command in COMMANDS.items())
    lines = [f"{f'{name} {command.takes}':{width}}  {command.meaning}" for name, command in COMMANDS.items()]
    return Outcome("\n".join([*lines, "", *_KEYS]))


_KEYS = (
    "Enter sends; Alt-Enter, or Enter after a backslash, begins a new line.",
    "Ctrl-C stops an answer; Ctrl-D, or Ctrl-C twice at the prompt, leaves.",
    "To send a message that begins with /, type // in its place.",
)


def _quit(session: Session, _: str) -> Outcome:
    del session
    return Outcome(leave=True)


def _count(exchanges: int) -> str:
    return f"{exchanges} exchange{'' if exchanges == 1 else 's'}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


COMMANDS = {
    "/system": Command(_system, "[TEXT]", "show the system prompt, or set it; /system - removes it"),
    "/reset": Command(_reset, "", "forget the conversation, but not the system prompt"),
    "/undo": Command(_undo, "", "remove the last question and its answer"),
    "/retry": Command(_retry, "", "ask the last question again"),
    "/save": Command(_save, "FILE", "write the conversation to a file"),
    "/load": Command(_load, "FILE", "continue a conversation from a file"),
    "/params": Command(_params, "[NAME VALUE]...", "show or change how answers are sampled"),
    "/tokens": Command(_tokens, "", "how full the context is"),
    "/help": Command(_help, "", "this list"),
    "/quit": Command(_quit, "", "leave"),
}
