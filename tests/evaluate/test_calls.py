"""Calls of functions against those of the data: the right function, the right arguments; asked with their tools."""

import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ggufy.chat.model import ChatModel
from ggufy.evaluate.metrics import calls
from ggufy.evaluate.session import heldout
from ggufy.model.template import ChatTemplate
from ggufy.model.tool_calls import Syntax
from ggufy.runs.run import Run
from ggufy.stages import model_source

DAY = date(2026, 1, 2)
# In the style of Llama 3.2's own, without its guidance.
TEMPLATE = """{{ tools | tojson if tools else '' }}{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}
{%- if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}
{{- {"name": m.tool_calls[0].function.name, "parameters": m.tool_calls[0].function.arguments} | tojson }}
{%- else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "parameters": arguments})


@pytest.mark.parametrize(
    ("said", "function", "arguments"),
    [
        (call("add", a=1, b=[1, {"c": None}]), True, True),
        (f" {call('add', b=[1, {'c': None}], a=1.0)}\n", True, True),
        (call("add", a=1, b=[{"c": None}, 1]), True, False),
        (call("add", a=True, b=[1, {"c": None}]), True, False),
        (call("add", a=1), True, False),
        (call("add", a=1, b=[1, {"c": None}], d=2), True, False),
        (call("sub", a=1, b=[1, {"c": None}]), False, False),
        (call("add", a=1)[:-1], False, False),
        ("One plus one is two.", False, False),
        (f"{call('add', a=1, b=[1, {'c': None}])} I hope", False, False),
    ],
)
def test_what_counts_as_right(said: str, function: bool, arguments: bool) -> None:
    syntax = Syntax.of(ChatTemplate(TEMPLATE, {}, ""), DAY)
    found = calls.score([said], [call("add", a=1, b=[1, {"c": None}])], syntax)
    assert (found.functions, found.arguments, found.texts, found.needless) == (function, arguments, 0, 0)


def test_a_call_where_the_data_has_a_text_is_needless() -> None:
    syntax = Syntax.of(ChatTemplate(TEMPLATE, {}, ""), DAY)
    found = calls.score([call("add"), "Hi.", call("add")], ["Hi.", "Hi.", call("add")], syntax)
    assert (len(found.rows), found.arguments, found.texts, found.needless) == (1, 1, 2, 1)


@pytest.fixture(scope="module")
def copy(tools_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tools_made, tmp_path_factory.mktemp("calls") / "tools"))


def test_a_run_that_has_learnt_to_call(run: Callable[..., CompletedProcess[str]], copy: Path) -> None:
    """Of four held-out calls two are as they were learnt, one has another sum, and one another function."""
    done = run("eval", "tools", "--only", "tools", cwd=copy, timeout=600)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.strip().startswith("tuned q8_0  ")]
    assert line.split()[2:11] == ["3", "of", "4", "2", "of", "4", "0", "of", "2"]
    report = json.loads((copy / "runs" / "tools" / "eval" / "report.json").read_text("utf-8"))
    found = report["sections"]["tools"]
    tuned, base = found["tuned q8_0"], found["base q8_0"]
    assert (tuned["right_function"], tuned["right_arguments"], tuned["rows"]) == (3, 2, 4)
    assert (base["right_function"], base["right_arguments"], base["rows"]) == (0, 0, 4)
    assert (tuned["rows_without_a_call"], tuned["needless_calls"]) == (2, 0)
    assert tuned["arguments_against_base"]["mean"] == 50
    [other] = [row for row in tuned["by_row"] if not row["right_function"]]
    assert other["called"] == [{"name": "weather", "arguments": {"city": "Lima"}}]
    assert other["wanted"] == [{"name": "add", "arguments": {"a": 1, "b": 1}}]


def test_held_out_questions_are_asked_with_their_tools(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the very tokens that the row begins with as it was tokenized for training."""
    monkeypatch.chdir(copy)
    this = Run(copy / "runs" / "tools")
    source = model_source.of_output_folder(this)
    assert source is not None
    asked = heldout.questions(source, None, 10)
    trained = heldout.of_run(this, 10).texts
    model = ChatModel(copy / "runs" / "tools" / "export" / "tools-q8_0.gguf", context=1024, threads=1)
    assert len(asked) == len(trained) == 6
    for question, text in zip(asked, trained, strict=True):
        prompt = model.tokens(question.conversation, question.tools)
        assert list(text.ids[: len(prompt)]) == prompt
        assert text.labels[len(prompt) - 1] == -100
        assert text.labels[len(prompt)] == text.ids[len(prompt)]
    assert json.loads(asked[0].expected or "") == {"name": "weather", "arguments": {"city": "Rome"}}


def test_where_nothing_can_be_called_there_is_no_such_section(
    fails: Callable[..., str], row: Callable[..., str], quick: Path
) -> None:
    (quick / "asked.jsonl").write_text(row("one") + row("two"), "utf-8")
    asked = ("eval", "quick", "--data", "asked.jsonl", "--max-tokens", "4", "--threads", "1")
    fails(*asked, "--only", "tools", cwd=quick, naming=["no place for tools"], hinting=["--only"], works=True)
