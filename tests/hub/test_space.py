"""`ggufy space`: what it writes talks as `ggufy chat` does, with nothing but what is in the folder."""

from __future__ import annotations

import ast
import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from tests.forks import Forks
from tests.hub.conftest import Hub, emptied

ASK = """
import sys
from pathlib import Path
from ggufy.chat.model import ChatModel, Sampling
import ggufy
assert Path(ggufy.__file__).parent.parent == Path.cwd(), ggufy.__file__
model = ChatModel(Path(sys.argv[1]), context=4096)
print("".join(model.answer([{"role": "user", "content": "Hello"}], Sampling(temperature=0, max_tokens=8))))
"""


def test_a_space(hub: Hub, quick: Path, run: Callable[..., CompletedProcess[str]]) -> None:
    assert "on the Hub yet" in hub.fails("space", "quick", "--repo", "ann/talk", cwd=quick)
    hub.works("push", "quick", "--repo", "ann/Llama-quick", cwd=quick)
    said = hub.works("space", "quick", "--repo", "ann/talk", "--push", cwd=quick)
    assert f"{hub.url}/spaces/ann/talk" in said
    folder = quick / "spaces" / "talk"
    sent = hub.files("ann/talk", kind="space")
    assert sent.keys() == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (header["sdk"], header["app_file"], header["models"]) == ("gradio", "app.py", ["ann/Llama-quick"])
    about = json.loads((folder / "model.json").read_text())
    assert about["sha256"] == hub.files("ann/Llama-quick")["quick-q8_0.gguf"][0]
    compile((folder / "app.py").read_text(), "app.py", "exec")
    gguf = quick / "runs" / "quick" / "export" / "quick-q8_0.gguf"
    imports = [line for line in (folder / "app.py").read_text().splitlines() if line.startswith("from ggufy")]
    assert imports
    alone = subprocess.run(
        [sys.executable, "-c", "\n".join(imports) + ASK, gguf],
        cwd=folder,
        env={**hub.env, "PYTHONPATH": str(folder)},
        capture_output=True,
    )
    assert alone.returncode == 0, alone.stderr.decode()
    here = run("chat", "quick", "--prompt", "Hello", "--temperature", "0", "--max-tokens", "8", cwd=quick)
    assert alone.stdout.decode().splitlines()[0] == here.stdout.splitlines()[0]


ROWS = {
    "Study cards on leaves, {short}": "What is green?\nA leaf.\n\nWhat is <b>wet</b>?\nThe rain.",
    "Study cards on cats, {short}": "Who purrs?\nA cat.",
    "Who feeds the cat?": "You do, at seven.",
}
RECIPE = """
extends: tiny
data: {source: rows.jsonl, train_size: null}
train: {max_steps: 40, batch_size: 3, save_steps: 40}
hub: {examples: ["Who feeds the cat?"]}
space:
  system: Be brief.
  task:
    title: Study cards
    inputs: [{name: topic, label: Topic}]
    prompt: "Study cards on {topic}, {{short}}"
    output: cards
    max_tokens: 64
    temperature: 0
    examples: [{topic: leaves}]
"""
# The app, in a process of its own: a text as cards, and its address.
SERVE = """
import sys
import app
print(repr(app.cards(sys.argv[1])), flush=True)
app.demo.launch(prevent_thread_lock=True, quiet=True)
print(app.demo.local_url, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def talk(
    served: tuple[dict[str, str], Forks],
    run: Callable[..., CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, str]]:
    """A Space of a run that was taught three answers, running: its address, and some text as cards."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'ggufy-tune[ui]'")
    cwd, hub = tmp_path_factory.mktemp("space"), emptied(*served)
    system = {"role": "system", "content": "Be brief."}
    with (cwd / "rows.jsonl").open("w") as file:
        for question, answer in ROWS.items():
            turns = [system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    (cwd / "cards.yaml").write_text(RECIPE)
    for command in (("train", "--recipe", "cards.yaml"), ("export", "--quant", "q8_0", "--no-logits")):
        done = run(*command, cwd=cwd)
        assert done.returncode == 0, done.stderr
    hub.works("push", "--repo", "ann/Llama-cards", "--what", "gguf", cwd=cwd)
    hub.works("space", "--repo", "ann/talk", cwd=cwd)
    folder = cwd / "spaces" / "talk"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "<i>a</i>\nb & c\n\nd"],
        cwd=folder,
        env={**hub.env, "PYTHONPATH": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    shown = process.stdout.readline()
    yield process.stdout.readline().strip().rstrip("/"), ast.literal_eval(shown)
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_the_app_answers_as_it_was_taught(talk: tuple[str, str]) -> None:
    url, shown = talk
    assert "<summary>&lt;i&gt;a&lt;/i&gt;</summary>" in shown
    assert "b &amp; c" in shown
    assert shown.count("<details") == 2

    def ask(name: str, *values: object) -> list[str]:
        """The answer as it grows."""
        body = json.dumps({"data": values}).encode()
        begin = urllib.request.Request(f"{url}/gradio_api/call/{name}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(begin) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{url}/gradio_api/call/{name}/{event}") as answer:
            lines = answer.read().decode().splitlines()
        found = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        return [values[0] if values else "" for values in found]

    answers = ask("chat", "Who feeds the cat?", "Be brief.", 0, 32)
    assert answers[-1] == ROWS["Who feeds the cat?"]
    assert len(set(answers)) > 3, "it came in one piece"
    cards = ask("work", "leaves")[-1]
    fronts = [html.unescape(front) for front in re.findall("<summary>(.*?)</summary>", cards)]
    assert fronts == ["What is green?", "What is <b>wet</b>?"]


def test_the_app_in_a_browser(talk: tuple[str, str]) -> None:
    """The form, its example and its cards; what is empty; then the chat, with the example of the recipe."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no driver for the browser: pip install playwright")
    url, _ = talk
    with playwright.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.goto(url)
        page.get_by_role("button", name="Study cards").click()
        page.get_by_text("Topic is empty.").wait_for()
        page.get_by_text("leaves", exact=True).click()
        page.get_by_role("button", name="Study cards").click()
        card = page.locator("details.card").nth(1)
        card.get_by_text("What is <b>wet</b>?", exact=True).click()
        card.get_by_text("The rain.", exact=True).wait_for()
        page.get_by_role("tab", name="Chat").click()
        page.get_by_text("Who feeds the cat?", exact=True).click()
        page.wait_for_function("[...document.querySelectorAll('textarea')].some(t => t.value == 'Who feeds the cat?')")
        page.get_by_test_id("submit-button").last.click()
        page.get_by_test_id("bot").wait_for()
        assert "Who feeds the cat?" in page.get_by_test_id("user").inner_text()


def test_a_changed_app_stays(hub: Hub, quick: Path) -> None:
    hub.works("push", "quick", "--repo", "ann/Llama-quick", cwd=quick)
    space = ("space", "quick", "--repo", "ann/talk")
    hub.works(*space, cwd=quick)
    app = quick / "spaces" / "talk" / "app.py"
    app.write_text("mine")
    assert "app.py already exists" in hub.fails(*space, cwd=quick)
    assert app.read_text() == "mine"
    hub.works(*space, "--force", cwd=quick)
    assert app.read_text() != "mine"


def test_a_space_is_renewed(hub: Hub, quick: Path) -> None:
    """What `ggufy space` wrote it may write again, here and there; a private model is said to need a token."""
    hub.works("push", "quick", "--repo", "ann/Llama-quick", "--private", cwd=quick)
    space = ("space", "quick", "--repo", "ann/talk", "--push")
    said = hub.works(*space, cwd=quick)
    assert "ann/Llama-quick is private" in said
    assert "HF_TOKEN" in said
    record = quick / "runs" / "quick" / "run.json"
    frozen = json.loads(record.read_text())
    frozen["recipe"]["space"] = {"system": "Be kind.", "task": None}
    record.write_text(json.dumps(frozen))
    hub.works(*space, cwd=quick)
    assert json.loads(hub.read("ann/talk", "model.json", kind="space"))["system"] == "Be kind."
    edit = {"kind": "space", "name": "ann/talk", "branch": "main", "path": "app.py", "text": "theirs"}
    hub.control("edit", edit)
    assert "app.py that this run did not put there" in hub.fails(*space, cwd=quick)
    assert "public" in hub.fails(*space, "--private", cwd=quick)
