"""The Python interface, as a notebook uses it: each call in the order the README shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ggufy
from ggufy.recipe import recipe

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
NOTEBOOK = REPOSITORY / "notebooks" / "finetune.ipynb"


def test_the_readmes_python_runs(tmp_path: Path, env: dict[str, str]) -> None:
    block = README.read_text(encoding="utf-8").partition("## Python\n")[2]
    code = "\n".join(line.removeprefix("    ") for line in block.splitlines() if line.startswith("    "))
    assert 'ggufy.train("tiny")' in code
    code = code.replace('"tiny"', '"tiny", overrides=["train.max_steps=2"]')
    code += "\nprint(len(ggufy.chat(run).answer.__doc__) > 0, type(run) is ggufy.Run)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["runs/tiny/export/tiny-q8_0.gguf", "True True"]


def test_importing_costs_nothing() -> None:
    code = "import ggufy, sys; print(sorted({'torch', 'numpy', 'pydantic', 'llama_cpp', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_notebook_runs(tmp_path: Path, env: dict[str, str]) -> None:
    """Every code cell in one session, but the installation: with the tiny recipe in the place of the large one."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    installing = [source for source in sources if source.startswith("%pip install")]
    code = "\n".join(source for source in sources if source not in installing)
    assert len(installing) == 1
    for large, small in (('"3b_qlora"', '"tiny"'), ('"max_steps": 60', '"max_steps": 2'), ('["q4_k_m"]', '["q8_0"]')):
        assert code.count(large) == 1
        code = code.replace(large, small)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "tiny: builtin:tiny, on CPU"
    assert "q8_0: runs/tiny/export/tiny-q8_0.gguf (3.4 MB)" in said
    assert said[-1] == "runs/tiny/export/tiny-q8_0.gguf"
    assert "runs/tiny/adapter is trained" in done.stderr
    assert json.loads((tmp_path / "runs/tiny/run.json").read_text("utf-8"))["recipe"]["train"]["max_steps"] == 2


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        ({"max_steps": 60}, "train.max_steps", 60),
        ({"lora": {"r": 8, "alpha": 4}}, "lora.alpha", 4),
        ({"train.learning_rate": 1e-4}, "train.learning_rate", 1e-4),
        ({"quants": ["q8_0", "f16"]}, "export.quants", ("q8_0", "f16")),
        ({"source": Path("mine.jsonl")}, "data.source", "mine.jsonl"),
        ({"max_steps": None}, "train.max_steps", None),
    ],
)
def test_values_of_a_recipe_in_python(values: dict[str, Any], key: str, expected: Any) -> None:
    section, _, name = key.partition(".")
    for plain in (recipe.load("tiny", values=values), recipe.changed(recipe.load("tiny"), values=values)):
        assert getattr(getattr(plain, section), name) == expected
        # Nothing else is changed.
        differing = recipe.load("tiny").differences(plain)
        assert set(differing) <= {key, *(f"lora.{one}" for one in values.get("lora", {}))}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_stepz": 3}, "did you mean max_steps?"),
        ({"batch_size": 2}, "is it train.batch_size or eval.batch_size?"),
        ({"lora": 8}, "a section takes a dict"),
        ({"lora": {"rank": 8}}, "lora.rank: unknown key"),
        ({"r": 0}, "argument r: lora.r"),
        ({"max_steps": 3, "train": {"max_steps": 4}}, "given twice"),
        ({"quants": ["q9"]}, "unknown quant 'q9'"),
    ],
)
def test_mistakes_are_the_same_errors(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    for what in ("tiny", recipe.load("tiny")):
        with pytest.raises(ggufy.GgufyError) as caught:
            ggufy.train(what, run_name=str(tmp_path / "never"), **values)
        assert said in caught.value.message
        # What a notebook shows is what the command line shows, and no traceback.
        shown = caught.value._render_traceback_()
        assert shown == [f"error: {caught.value.message}", f"hint: {caught.value.hint}"]
    assert not list(tmp_path.iterdir())


WRONG = {
    "no recipe": (lambda: ggufy.train(None), "ggufy.train: argument what: expected a recipe's name", "`ggufy recipes`"),
    "a run as a recipe": (lambda: ggufy.plan(ggufy.Run(Path("runs/a"))), "argument what: expected a recipe's", "tiny"),
    "nothing at all": (lambda: ggufy.train(), "missing a required argument: 'what'", "help(ggufy.train)"),
    "one text of settings": (lambda: ggufy.train("tiny", overrides="lora.r=8"), "not 'lora.r=8'", '"lora.r"'),
    "a dict of settings": (lambda: ggufy.plan("tiny", overrides={"lora.r": 8}), "a list of texts as --set", '{"r": 8}'),
    "numbers as settings": (lambda: ggufy.train("tiny", overrides=[8]), "argument overrides: expected a list of", "r"),
    "a setting of no name": (lambda: ggufy.train("tiny", overrides=["lora.rank=8"]), "unknown key", "ggufy recipes"),
    "a truth in words": (lambda: ggufy.train("tiny", packing="yes"), "expected true or false, without quotes", "tiny"),
    "a truth as a number": (
        lambda: ggufy.train("tiny", packing=1),
        "argument packing: train.packing: expected",
        "tiny",
    ),
    "fresh in words": (
        lambda: ggufy.train("tiny", fresh="no"),
        "argument fresh: expected True or False",
        "ggufy.train",
    ),
    "a number as a name": (lambda: ggufy.train("tiny", run_name=5), "argument run_name: expected a text, or None", "h"),
    "a number of quants": (lambda: ggufy.export(quants=8), "argument quants: expected names such as", "llama.cpp"),
    "numbers as quants": (lambda: ggufy.export(quants=[8]), "argument quants: expected names such as", "llama.cpp"),
    "a slip in a name": (
        lambda: ggufy.export(quantz=["q8_0"]),
        "unknown argument quantz; did you mean quants?",
        "help",
    ),
    "merged to anything": (lambda: ggufy.export(merged=True), "'f16' or 'bf16', or None, not True", "ggufy.export"),
    "threads in words": (lambda: ggufy.export(threads="two"), "a whole number from 1, or None, not 'two'", "export"),
    "a list to talk to": (lambda: ggufy.chat(["a.gguf"]), "ggufy.chat: argument what: expected a run's name", "runs"),
    "an unknown argument": (lambda: ggufy.chat("a.gguf", temperature=1), "unknown argument temperature", "ggufy.chat"),
    "too many": (lambda: ggufy.plan("tiny", "t4"), "ggufy.plan: too many positional arguments", "help(ggufy.plan)"),
}


@pytest.mark.parametrize(("call", "said", "hint"), WRONG.values(), ids=WRONG.keys())
def test_an_argument_of_a_wrong_type_is_one_line(
    call: Callable[[], Any], said: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ggufy.GgufyError) as caught:
        call()
    assert said in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert hint in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


def test_a_plan_and_a_run_can_be_shown(quick: Path) -> None:
    made = ggufy.plan("3b_qlora", gpu="t4", r=32, target_modules="attention")
    assert made.trainable == 18_350_080
    assert "18,350,080" in str(made)
    assert repr(ggufy.Run(quick / "runs/quick")) == f"<ggufy.Run {quick.as_posix()}/runs/quick>"
    answer = ggufy.chat(ggufy.Run(quick / "runs/quick")).ask("Hello?", temperature=0, max_tokens=5)
    assert isinstance(answer, str)
