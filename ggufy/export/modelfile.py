"""Write a Modelfile for Ollama: the model's Jinja chat template as a Go template.

The Go template is not written by hand for each family: the model's own Jinja template is rendered with marks in place
of what people say, and cut at the marks. Whether that says the same is then proved on conversations of every kind that
Ollama sends: with and without a system prompt, one turn and many. A template that depends on more is refused. One thing
Go templates cannot do is trim: where the Jinja template trims what people say, spaces around it are kept in Ollama.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ggufy.errors import ExportError, ModelError
from ggufy.model import config_files, text_part
from ggufy.model.template import ChatTemplate, Message
from ggufy.model.tokenizer import folder

log = logging.getLogger("ggufy")

_SYSTEM, _USER, _ANSWER = ("ggufy-system-7f3a", "ggufy-user-7f3a", "ggufy-answer-7f3a")
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}


@dataclass(frozen=True)
class Pieces:
    """What a template writes around each thing that is said: (before, after)."""

    start: str
    """Without a system prompt."""
    system: tuple[str, str]
    """From the first character to the system prompt, and from there to the first turn."""
    user: tuple[str, str]
    answer: tuple[str, str]
    generate: str
    inside: str | None = None
    """Where the system prompt stands in the first turn of the user, as in Gemma 3: what is between it and the question.

    `system` then says nothing.
    """

    def render(self, messages: Sequence[Message], *, generate: bool = True) -> str:
        """Render a conversation as Ollama would from these pieces: `go` in Python."""
        system = [message["content"] for message in messages if message["role"] == "system"]
        first = f"{system[0]}{self.inside}" if system and self.inside is not None else ""
        text = f"{self.system[0]}{system[0]}{self.system[1]}" if system and not first else self.start
        around = {"user": self.user, "assistant": self.answer}
        for message in messages:
            if message["role"] in around:
                before, after = around[message["role"]]
                text += f"{before}{first if message['role'] == 'user' else ''}{message['content']}{after}"
                first = "" if message["role"] == "user" else first
        return text + (self.generate if generate else "")

    def go(self) -> str:
        """The same in Go's template language, with the names that Ollama gives."""
        quoted = _go_text
        if self.inside is None:
            opening = (
                f"{{{{ if .System }}}}{quoted(self.system[0])}{{{{ .System }}}}{quoted(self.system[1])}"
                f"{{{{ else }}}}{quoted(self.start)}{{{{ end }}}}"
            )
            first = ""
        else:
            opening = f"{{{{ $system := .System }}}}{quoted(self.start)}"
            first = f'{{{{ if $system }}}}{{{{ $system }}}}{quoted(self.inside)}{{{{ end }}}}{{{{ $system = "" }}}}'
        return (
            f"{opening}{{{{ range .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{quoted(self.user[0])}{first}{{{{ .Content }}}}{quoted(self.user[1])}'
            f'{{{{ else if eq .Role "assistant" }}}}{quoted(self.answer[0])}{{{{ .Content }}}}{quoted(self.answer[1])}'
            f"{{{{ end }}}}{{{{ end }}}}{quoted(self.generate)}"
        )


def write(base: Path, day: date) -> str:
    """The Modelfile of a model folder's GGUF, without its FROM line. Raises ExportError where it cannot be right."""
    template = ChatTemplate.from_folder(base)
    pieces = derive(template, day)
    lines = [f'TEMPLATE """{pieces.go()}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in _stops(base)]
    for key, value in _generation(base).items():
        if key in _SAMPLING and isinstance(value, int | float):
            lines.append(f"PARAMETER {_SAMPLING[key]} {value}")
    return "\n".join(lines) + "\n"


def derive(template: ChatTemplate, day: date) -> Pieces:
    """The pieces of a template, tested. Raises ExportError if the template is not a plain sequence of turns."""
    try:
        pieces = _cut(template, day)
        wrong = next((sample for sample in _samples() if not _same(pieces, template, sample, day)), None)
    except (ModelError, ValueError) as error:
        raise _not_in_go(str(error)) from None
    if wrong is not None:
        raise _not_in_go(f"{len(wrong)} turns from {wrong[0]['role']} are written differently")
    if '"""' in pieces.go() or pieces.go().endswith('"'):
        raise _not_in_go('it writes """, or ends with a quotation mark')
    return pieces


def _cut(template: ChatTemplate, day: date) -> Pieces:
    bos = template.special.get("bos_token", "")
    said = {"system": _SYSTEM, "user": _USER, "assistant": _ANSWER}

    def render(*roles: str, generate: bool = False) -> str:
        text = template.render([{"role": role, "content": said[role]} for role in roles], day, generate=generate)
        # The runtime puts the BOS before every text.
        return text.removeprefix(bos) if bos else text

    one = render("user")
    two = render("user", "assistant")
    three = render("user", "assistant", "user")
    # The second turn of the user begins where the first exchange ends.
    again = three[len(two) :]
    if not (two.startswith(one) and three.startswith(two)):
        raise ValueError("earlier turns change when more follow")
    user_before, user_after = again.split(_USER)
    answer_before, answer_after = two[len(one) :].split(_ANSWER)
    start, rest = one.split(user_before + _USER + user_after)
    if rest:
        raise ValueError("the first turn is written unlike the others")
    opening, between = render("system", "user").removesuffix(user_before + _USER + user_after).split(_SYSTEM)
    generate = render("user", generate=True).removeprefix(one)
    user, answer = (user_before, user_after), (answer_before, answer_after)
    if opening == start + user_before and between.endswith(_USER + user_after):
        return Pieces(start, ("", ""), user, answer, generate, between.removesuffix(_USER + user_after))
    return Pieces(start, (opening, between), user, answer, generate)


def _samples() -> list[list[Message]]:
    turns: list[Message] = []
    for number in range(3):
        turns += [
            {"role": "user", "content": f"Question {number}: what is {{{{ .System }}}}?\nAnd why?"},
            {"role": "assistant", "content": f'Answer {number}, 100% \\n "quoted".'},
        ]
    system: Message = {"role": "system", "content": "Be brief.\nBe kind."}
    return [[*first, *turns[:stop]] for first in ([], [system]) for stop in (1, 3, 5)]


def _same(pieces: Pieces, template: ChatTemplate, messages: list[Message], day: date) -> bool:
    bos = template.special.get("bos_token", "")
    expected = template.render(messages, day, generate=True)
    return pieces.render(messages) == (expected.removeprefix(bos) if bos else expected)


def _go_text(text: str) -> str:
    """Plain text in a Go template: only an opening brace can mean something, with the one after it."""
    return text.replace("{", '{{ "{" }}')


def _not_in_go(reason: str) -> ExportError:
    return ExportError(
        f"the chat template cannot be written as an Ollama template: {reason}",
        "use the GGUF with llama.cpp, which reads the template that is in it",
    )


def _stops(base: Path) -> list[str]:
    """The texts of the tokens that end an answer."""
    names = {number: token.content for number, token in folder.of(base).added.items()}
    config = text_part.settings(config_files.read(base / "config.json"))
    ids = _generation(base).get("eos_token_id", config.get("eos_token_id"))
    ids = ids if isinstance(ids, list) else [ids]
    eos = ChatTemplate.from_folder(base).special.get("eos_token")
    return list(dict.fromkeys([*([eos] if eos else []), *(names[number] for number in ids if number in names)]))


def _generation(base: Path) -> dict[str, Any]:
    path = base / "generation_config.json"
    return config_files.read(path) if path.is_file() else {}


def tags(name: str | None, quants: Sequence[str], *, split: bool) -> dict[str, str]:
    """The Ollama model of each quant: NAME, or NAME:quant where there are several. Known before the work begins."""
    if name is None:
        return {}
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*){0,2}(:\w[\w.-]*)?", name):
        raise ExportError(f"{name!r} cannot be the name of an Ollama model", "for example --ollama mymodel")
    if shutil.which("ollama") is None:
        raise ExportError("ollama is not installed, or not on the PATH", "install it, or leave out --ollama")
    if split:
        raise ExportError("Ollama does not load a GGUF in several files", "leave out --split-max-size or --ollama")
    if not quants:
        raise ExportError("no quant for Ollama", "for example --quant q4_k_m")
    if len(quants) > 1 and ":" in name:
        raise ExportError(
            f"{name} is one model, and {len(quants)} quants are exported", "leave out what follows the ':'"
        )
    return {quant: name if len(quants) == 1 else f"{name}:{quant}" for quant in quants}


def create(tag: str, path: Path) -> None:
    """Have Ollama make the model of a Modelfile, beside which its GGUF lies. Raises ExportError."""
    log.info("ollama create %s", tag)
    command = [str(shutil.which("ollama")), "create", tag, "-f", path.name]
    done = subprocess.run(command, cwd=path.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("Error")), said[-1] if said else "no reason given")
        raise ExportError(
            f"ollama create {tag} failed: {reason}", "check that the Ollama server is running; the files are kept"
        )
