"""`ggufy ui`: what the page does, and the page itself in a headless Chromium where there is one."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ggufy import installed
from ggufy.chat.model import ChatModel, Sampling

gradio = pytest.importorskip("gradio", reason="needs the extra ui: pip install 'ggufy-tune[ui]'")

from ggufy.chat.web.ui import Page  # noqa: E402 - without Gradio there is nothing to test

WILD = (50, 1, 0, 0.05, 1)
"""Temperature, top-p, top-k, min-p, repeat penalty."""


@pytest.fixture(scope="module")
def file(quick_made: Path) -> Path:
    return quick_made / "runs" / "quick" / "export" / "quick-q8_0.gguf"


@pytest.fixture(scope="module")
def page(file: Path) -> Page:
    return Page([ChatModel(file, context=256, threads=1) for _ in range(2)])


def last(states: Iterator[list[Any]]) -> list[Any]:
    return list(states)[-1]


def test_an_answer_grows_and_is_what_chat_says(page: Page, file: Path) -> None:
    """The box is emptied once and then left alone, both models answer in turn, and what it cost stands below."""
    import gradio

    states = list(page.ask("Hello", [], "Be brief.", *WILD, 12, "5"))
    _, rows, left, left_figures, right, right_figures = states[-1]
    assert states[0][0] == ""
    assert len(states) > 2
    assert all(state[0] == gradio.skip() for state in states[1:])
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    own = ChatModel(file, context=256, threads=1)
    text = "".join(own.answer(conversation, Sampling(50, 1, 0, 0.05, 1, 12, 5)))
    assert left == right == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": text}]
    assert f"{own.figures.tokens} tokens" in left_figures
    assert f"{own.figures.tokens} tokens" in right_figures
    assert rows == [("Hello", [text, text])]
    assert [len(states[0][at]) for at in (2, 4)] == [1, 1]
    first = states[1]
    assert len(first[2]) == 2
    assert text.startswith(first[2][1]["content"])
    assert len(first[4]) == 1


def test_what_was_said_is_remembered_taken_back_and_asked_again(page: Page) -> None:
    rows = last(page.ask("One", [], "", *WILD, 8, "5"))[1]
    asked = page.models[0].figures.prompt_tokens
    rows = last(page.ask("Two", rows, "", *WILD, 8, "5"))[1]
    assert [question for question, _ in rows] == ["One", "Two"]
    assert page.models[0].figures.prompt_tokens > asked + 8
    again = last(page.retry(rows, "", *WILD, 8, "5"))[1]
    assert again == rows
    question, rows, left, *_ = page.undo(rows)
    assert question == "Two"
    assert [message["content"] for message in left if message["role"] == "user"] == ["One"]
    assert len(rows) == 1
    assert list(page.retry([], "", *WILD, 8, "")) == []
    assert list(page.ask("  ", rows, "", *WILD, 8, "")) == []


def test_old_exchanges_and_mistakes_are_said(page: Page) -> None:
    rows = [(f"Question {number} about nothing?", ["word " * 8] * 2) for number in range(12)]
    _, after, left, figures, *_ = last(page.ask("Last?", rows, "", *WILD, 8, "5"))
    assert "no longer seen" in figures
    assert len(after) == 13
    assert len(left) == 26
    with pytest.raises(gradio.Error, match="the seed 'x' is not a whole number"):
        list(page.ask("Hello", [], "", *WILD, 8, "x"))
    with pytest.raises(gradio.Error, match="the context holds 256"):
        list(page.ask("word " * 300, [], "", *WILD, 8, ""))


@pytest.fixture(scope="module")
def url(quick_made: Path, env: dict[str, str]) -> Iterator[str]:
    command = [sys.executable, "-m", "ggufy", "ui", "quick", "--port", "0", "--threads", "1", "--context", "1024"]
    command += ["--compare", "runs/quick/export/quick-q8_0.gguf"]
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        cwd=quick_made,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, (line, process.communicate())
    yield found[0]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said


def test_the_page_is_for_this_machine_and_loads_nothing_from_elsewhere(url: str) -> None:
    def get(host: str) -> tuple[int, str, str]:
        with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
            connection.request("GET", "/", headers={"Host": host})
            response = connection.getresponse()
            return response.status, response.getheader("Content-Security-Policy", ""), response.read().decode()

    status, policy, text = get("localhost")
    assert status == 200
    assert "default-src 'self'" in policy
    assert "quick-q8_0" in text
    assert get("evil.example")[0] == 400


def test_in_a_browser(url: str) -> None:
    """Ask, stop, ask again, change a parameter, clear; two answers stand side by side; nothing is fetched elsewhere."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs a Chromium: Debian's package is chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
    elsewhere: list[str] = []
    with driver.sync_playwright() as driven:
        browser = driven.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 800})
        tab.set_default_timeout(60_000)
        driver.expect.set_options(timeout=60_000)
        tab.on("request", lambda sent: None if sent.url.startswith((url, "data:")) else elsewhere.append(sent.url))
        tab.goto(url)
        tab.get_by_text("Parameters").click()
        tab.get_by_label("number input for Temperature").fill("2")
        tab.get_by_label("Seed").fill("7")
        box, answers = tab.locator("#question textarea"), tab.locator(".answers .bot.message")

        def ask(question: str) -> list[str]:
            box.fill(question)
            box.press("Enter")
            driver.expect(tab.get_by_text(question)).to_have_count(2)
            for number in range(2):
                driver.expect(tab.locator(f"#figures-{number}")).to_contain_text("tokens/s")
            return [text.strip() for text in answers.all_inner_texts()]

        tab.get_by_label("number input for Longest answer, in tokens").fill("6")
        said = ask("Where is the bike?")
        assert len(said) == 2
        assert said[0] == said[1]
        places = [answers.nth(number).bounding_box() for number in range(2)]
        assert places[0]["x"] + places[0]["width"] <= places[1]["x"]
        tab.get_by_label("number input for Longest answer, in tokens").fill("900")
        tab.get_by_label("Seed").fill("")
        box.fill("Go on and on")
        box.press("Enter")
        driver.expect(answers).not_to_have_count(2)
        tab.get_by_role("button", name="Stop").click()
        tab.get_by_label("number input for Longest answer, in tokens").fill("6")
        ask("And after that?")
        tab.get_by_label("Seed").fill("no number")
        box.fill("Again?")
        box.press("Enter")
        tab.get_by_text("the seed 'no number' is not a whole number").first.wait_for()
        tab.get_by_role("button").get_by_text("Clear", exact=True).click()
        driver.expect(answers).to_have_count(0)
        browser.close()
    assert elsewhere == []


def test_without_the_extra_it_says_what_to_install(
    fails: Callable[..., str], quick_made: Path, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['gradio'] = None\n", "utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), env.get("PYTHONPATH")]))
    monkeypatch.setitem(env, "PYTHONPATH", path)
    fails("ui", "quick", cwd=quick_made, naming=["gradio"], hinting=[installed.command("ui")])
