"""`ggufy chat` in a real terminal: what is typed, what is seen, and what stays for the next session."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest
from rich.console import Console
from rich.markdown import Markdown

from ggufy.chat.terminal.screen import MarkdownScreen, harmless
from tests.chat.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, TAB, UP, Terminal, prompted

HOT = ("--temperature", "50", "--top-p", "1", "--max-tokens", "8", "--threads", "1", "--seed", "5")


@pytest.fixture
def chat(quick_made: Path, env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """chat("--seed", "1") is `ggufy chat quick --seed 1` in a terminal."""
    begun: list[Terminal] = []

    def chat(*args: str, columns: int = 80, term: str = "xterm-256color") -> Terminal:
        command = ["env", f"TERM={term}", sys.executable, "-m", "ggufy", "chat", "quick", *args]
        own = {**env, "GGUFY_STATE": str(tmp_path / "state")}
        begun.append(Terminal(command, cwd=quick_made, env=own, columns=columns))
        return begun[-1]

    yield chat
    for talk in begun:
        talk.process.kill()
        talk.process.wait()


def answered(text: str) -> bool:
    return bool(re.search(r"tokens/s.*context [\d,]+ of [\d,]+", " ".join(text.split())))


def test_a_session(chat: Callable[..., Terminal], tmp_path: Path) -> None:
    """Several lines, completion, commands, a typo; and what was said is in the file."""
    talk = chat(*HOT, "--system", "Be brief.")
    talk.ask("Hello", answered)
    assert "did you mean /reset?" in talk.ask("/restt", "hint:")
    assert "Be brief." in talk.ask("/system", "system:")
    talk.ask(f"One{ALT_ENTER}two\\{ENTER}//three", answered)
    talk.ask("//four", answered)
    talk.wait(prompted)
    talk.type("/tok" + TAB)
    talk.wait("> /tokens")
    talk.type(ENTER)
    talk.wait("3 exchanges in it")
    assert "3 exchanges" in talk.ask(f"/save {tmp_path}/talk.json", "exchanges")
    talk.ask("/quit", "/quit")
    assert talk.end() == 0
    messages = json.loads((tmp_path / "talk.json").read_text("utf-8"))["messages"]
    assert [said["content"] for said in messages if said["role"] == "user"] == ["Hello", "One\ntwo\n//three", "/four"]
    assert "Traceback" not in talk.text


def test_what_was_typed_is_there_in_the_next_session(chat: Callable[..., Terminal], tmp_path: Path) -> None:
    first = chat(*HOT)
    first.ask("Something I typed", answered)
    first.ask(CTRL_D, ">")
    assert first.end() == 0
    assert (tmp_path / "state" / "chat_history").stat().st_mode & 0o777 == 0o600
    second = chat(*HOT)
    second.wait(prompted)
    second.type(UP)
    second.wait("> Something I typed")
    second.type(CTRL_C)
    second.wait("Ctrl-C again leaves")
    second.type(CTRL_C)
    assert second.end() == 130


def test_ctrl_c_stops_an_answer_and_not_the_program(chat: Callable[..., Terminal]) -> None:
    endless = ("--temperature", "50", "--top-p", "1", "--min-p", "0", "--max-tokens", "100000", "--threads", "1")
    talk = chat(*endless)
    for _ in range(20):
        # The random answer may have ended by itself.
        talk.ask("Go on and on", lambda text: text.count("\n") > 1)
        talk.type(CTRL_C)
        # With a Ctrl-C the system drops what the terminal has not shown yet, which may be the figures.
        talk.wait(prompted)
        if "stopped early" in talk.text:
            break
        talk.ask("/reset", "forgotten")
    assert "stopped early" in talk.text
    talk.ask("/params max-tokens 3", "max-tokens 3")
    shown = talk.ask("And now?", answered)
    assert "3 tokens" in shown
    talk.ask(CTRL_D, ">")
    assert talk.end() == 0
    assert "Traceback" not in talk.text


def test_two_models_stand_side_by_side_where_there_is_room(chat: Callable[..., Terminal]) -> None:
    other = ("--compare", "runs/quick/export/quick-q8_0.gguf")
    for columns, beside in ((120, True), (80, False)):
        talk = chat(*HOT, *other, columns=columns)
        shown = talk.ask("Hello", lambda text: text.count("tokens/s") == 2)
        headings = [line for line in shown.splitlines() if "quick-q8_0" in line]
        assert (len(headings) == 1) == beside
        talk.ask("/quit", "/quit")
        assert talk.end() == 0


def test_lines_are_read_where_the_terminal_can_do_nothing(chat: Callable[..., Terminal], tmp_path: Path) -> None:
    talk = chat(*HOT, term="dumb")
    talk.ask("Hello", answered)
    talk.ask("/undo", "taken back: Hello")
    talk.ask(CTRL_D, ">")
    assert talk.end() == 0
    assert not list(tmp_path.iterdir())


MARKDOWN = """# A title

Some *text* that goes over more than one line, with `code`, a [link](https://example.org) and **bold** words in it.

- one
- two

  still two
- three

1. first
2. second

```python
def f():

    return 1
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

The end.
"""


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_markdown_that_comes_in_pieces_looks_as_if_it_came_at_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn after every piece, on a screen that is too low for it."""

    def shown(draw: Callable[[Console], None]) -> list[str]:
        out = io.StringIO()
        draw(Console(file=out, force_terminal=True, width=60, height=12, color_system=None, legacy_windows=False))
        screen = pyte.HistoryScreen(60, 12, history=1000)
        pyte.Stream(screen).feed(out.getvalue().replace("\n", "\r\n"))
        gone = ["".join(line[at].data for at in range(60)) for line in screen.history.top]
        return [line.rstrip() for line in [*gone, *screen.display] if line.strip()]

    def in_pieces(console: Console) -> None:
        drawn = MarkdownScreen(console)
        monkeypatch.setattr(drawn.window, "due", lambda: True)
        for start in range(0, len(MARKDOWN), size):
            drawn.add(MARKDOWN[start : start + size])
        drawn.end()

    whole = shown(lambda console: console.print(Markdown(MARKDOWN, hyperlinks=False)))
    assert len(whole) > 12
    assert shown(in_pieces) == whole


def test_a_model_cannot_steer_the_terminal() -> None:
    assert harmless("a\x1b]0;owned\x07b\x1b[2Jc\rd\x9b1m\te\r\nf") == "a]0;ownedb[2Jcd1m\te\nf"
