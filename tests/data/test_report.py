"""`ggufy data`, against the lengths that transformers' tokenizer gives and what a user reads."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from ggufy import installed
from ggufy.data import report, source
from ggufy.model import tiny
from ggufy.recipe.schema import Data

Run = Callable[..., CompletedProcess[str]]
DAY = date(2026, 3, 7)


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = ["word " * n for n in [*range(1, 100), 400, 500, 600]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def test_the_lengths_are_the_tokens_of_whole_rows(base: Path, rows: Path, tmp_path: Path) -> None:
    data = Data(source=rows.as_posix())
    told = report.make(source.locate(data, offline=True), data, base, 128, DAY, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [json.loads(line)["text"] for line in rows.read_text("utf-8").splitlines()]
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for text in texts]
    values = told.values()
    assert values["mean"] == pytest.approx(np.mean(lengths), abs=0.01)
    for key, share in (("median", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        assert values[key] == np.quantile(lengths, share, method="inverted_cdf"), key
    assert values["rows_over_max_length"] == sum(length > 128 for length in lengths)
    assert values["tokens_per_epoch"] == sum(min(length, 128) for length in lengths)
    assert values["suggested_max_length"] % 64 == 0
    held = np.mean([length <= values["suggested_max_length"] for length in lengths])
    assert held >= 0.99
    assert values["suggested_max_length"] - 64 < values["p99"]
    assert sum(bar["rows"] for bar in values["histogram"]) == len(lengths)
    for bar in values["histogram"]:
        assert bar["rows"] == sum(bar["from"] <= length <= bar["to"] for length in lengths)


def test_what_a_user_reads(run: Run, tmp_path: Path) -> None:
    done = run("data", "--recipe", "tiny", "--set", "data.eval_size=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train: 20 of 20 conversations" in done.stdout
    assert "eval: 3 of 4 conversations" in done.stdout
    assert "4 truncated, 4 of 4 answers cut before their end, 1 without an answer once truncated" in done.stdout
    assert "<- model.max_length" not in done.stdout
    assert "\x1b[" not in done.stdout
    # Only what the assistant says, and its end, stands between the marks.
    assert done.stdout.endswith("\n\n[[It turns a fine-tuned Llama into GGUF files for CPUs.<|eot_id|>]]\n")
    bars = re.findall(r"^ *[\d,]+-[\d,]+ +(\d+)", done.stdout, re.MULTILINE)
    assert sum(map(int, bars)) == 20
    assert not list(tmp_path.iterdir())


def test_json_and_picture(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run("data", "--recipe", "tiny", "--json", "--png", "lengths.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    assert values["splits"]["train"]["kept"] == 20
    assert values["format"] == "sharegpt"
    assert [stretch["trained"] for stretch in values["example"]] == [False, True]
    picture = (tmp_path / "lengths.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 5000


def test_no_picture_without_matplotlib(env: dict[str, str], tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ggufy", "data", "--recipe", "tiny", "--png", "a.png"],
        cwd=tmp_path,
        env=env | {"PYTHONPATH": f"{blocked}:{env.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"hint: {installed.command('train')}" in done.stderr
    assert done.stdout == ""
