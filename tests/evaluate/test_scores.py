"""`ggufy eval` where the data has answers: texts and numbers, of held-out rows and of prompts."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ggufy import installed

Run = Callable[..., CompletedProcess[str]]
FEW = ("--max-tokens", "6", "--threads", "1")


def sections(cwd: Path) -> dict[str, Any]:
    report = json.loads((cwd / "runs" / "quick" / "eval" / "report.json").read_text("utf-8"))
    return dict(report["sections"])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_rows_with_numbers_give_both_sections(run: Run, quick: Path) -> None:
    prices = [3, 12, 250, 1200, 8]
    rows = [{"prompt": f"What do {n} cats cost?", "completion": f"Price is ${p:,}.00"} for n, p in enumerate(prices)]
    write(quick / "prices.jsonl", rows)
    asked = ("eval", "quick", "--only", "references,numbers", "--data", "prices.jsonl", *FEW)
    done = run(*asked, cwd=quick)
    assert done.returncode == 0, done.stderr
    found = sections(quick)
    assert list(found) == ["references", "numbers"]
    assert list(found["references"]) == list(found["numbers"]) == ["base q8_0", "tuned q8_0"]
    for model in found["numbers"].values():
        # Four steps teach nobody prices: every answer is counted, with a number or without.
        assert model["rows"] == 5
        assert model["read"] + len(model["unread"]) == 5
        for row in model["unread"]:
            assert row["why"] in ("no number", "empty")
    for model in found["references"].values():
        assert model["rows"] == 5
        assert 0 <= model["chrf"] <= 100
    page = (quick / "runs" / "quick" / "eval" / "report.html").read_text("utf-8")
    assert "Against the data&#x27;s own answers" in page
    assert "numbers read" in page
    # Nothing is asked twice, and fewer rows are the first of them.
    again = run(*asked, cwd=quick)
    assert "nothing was measured again" in again.stdout
    assert "making" not in again.stderr
    done = run(*asked, "--rows", "2", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert sections(quick)["numbers"]["tuned q8_0"]["rows"] == 2


def test_prompts_with_answers_come_before_held_out_rows(run: Run, quick: Path) -> None:
    rows = [{"prompt": "One?", "expected": "1"}, {"prompt": "Two?"}, {"prompt": "Three?", "expected": "three"}]
    write(quick / "asked.jsonl", rows)
    done = run("eval", "quick", "--only", "references", "--prompts", "asked.jsonl", *FEW, cwd=quick)
    assert done.returncode == 0, done.stderr
    [score, _] = sections(quick)["references"].values()
    assert score["rows"] == 2
    done = run("eval", "quick", "--only", "prompts,references,numbers", "--prompts", "asked.jsonl", *FEW, cwd=quick)
    assert done.returncode == 0, done.stderr
    numeric = sections(quick)["numbers"]["tuned q8_0"]
    assert numeric["references_without_a_number"] == [{"row": 2, "why": "no number"}]
    assert re.search(r"row 2 \(no number\)", done.stdout)


def test_a_base_without_a_template_completes_prices(light_run: Run, run: Run, base: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(base, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((plain / "tokenizer_config.json").read_text("utf-8"))
    config.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    # Rows that are equal are rows all the same.
    rows = [
        {"prompt": f"What does a {what} cost?\n\nPrice is $", "completion": "9.00"} for what in ("hat", "cup", "hat")
    ]
    write(tmp_path / "prices.jsonl", rows)
    done = light_run("export", "./plain", "--quant", "q8_0", "--out", "exports", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("eval", "exports", "--data", "prices.jsonl", "--threads", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no prompts are asked: a model has no chat template" in done.stderr
    report = json.loads((tmp_path / "exports" / "eval" / "report.json").read_text("utf-8"))
    assert list(report["sections"]) == ["heldout", "quants", "references", "numbers"]
    assert report["sections"]["numbers"]["tuned q8_0"]["rows"] == 3
    assert report["sections"]["heldout"]["conversations"] == 3
    measured = (tmp_path / "exports" / "eval" / "divergence" / "q8_0.jsonl").read_text("utf-8").splitlines()
    losses = [json.loads(line)["nll"] for line in measured]
    assert len(losses) == 3
    assert losses[0] == losses[2] != losses[1]


def test_what_has_no_answers(fails: Callable[..., str], quick: Path) -> None:
    (quick / "book.txt").write_text("It was a dark and stormy night. " * 40, "utf-8")
    text = ("eval", "quick", "--data", "book.txt")
    fails(*text, "--only", "references", cwd=quick, naming=["no row has an answer"], hinting=["--prompts"], works=True)
    write(quick / "words.jsonl", [{"prompt": f"Say {word}", "completion": word} for word in ("yes", "no", "maybe")])
    words = ("eval", "quick", "--data", "words.jsonl", *FEW)
    fails(*words, "--only", "numbers", cwd=quick, naming=["holds a number"], hinting=["--only"], works=True)
    fails(*words, "--only", "nombers", cwd=quick, naming=["nombers"], hinting=["references", "numbers", "judge"])


@pytest.mark.parametrize("package", ["sacrebleu", "rouge_score"])
def test_without_the_extra(
    package: str,
    env: dict[str, str],
    fails: Callable[..., str],
    quick: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = tmp_path_factory.mktemp("without")
    (without / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n", "utf-8")
    monkeypatch.setitem(env, "PYTHONPATH", f"{without}:{env.get('PYTHONPATH', '')}")
    lacking = ["comparing answers with references needs the package", package.replace("_", "-")]
    fails("eval", "quick", "--only", "references", cwd=quick, naming=lacking, hinting=[installed.command("eval")])
