"""The Python interface, as a notebook uses it: each call in the order the README shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


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
