"""The demonstration end to end, as a visitor runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


def demo(folder: Path, env: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "ggufy", "demo", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", [3407, 1])
def test_the_files_know_what_was_taught_on_any_seed(seed: int, tmp_path: Path, env: dict[str, str]) -> None:
    shown = demo(tmp_path, env, "--seed", str(seed))
    known = dict(re.findall(r"-(q\w+)\.gguf\s+[\d.]+ MB\s+(\d+) of 20 word for word", shown))
    assert int(known["q8_0"]) == 20
    # With room to spare: 16 would do.
    assert int(known["q4_k_m"]) >= 19
    if seed == 3407:
        files = {path: path.read_bytes() for path in tmp_path.glob("runs/demo*/export/*.gguf")}
        times = {path: path.stat().st_mtime_ns for path in files}
        again = demo(tmp_path, env)
        assert {path: path.stat().st_mtime_ns for path in files} == times
        assert "20 of 20" in again
        demo(tmp_path, env, "--fresh")
        assert {path: path.read_bytes() for path in files} == files
        # It fails where the files know too little: here with more asked of them than can be known.
        strict = "from ggufy import cli; from ggufy.cli import demo_run; demo_run.REQUIRED['q4_k_m'] = 1.05; "
        strict += "cli.main(['demo'], standalone_mode=False)"
        failed = subprocess.run([sys.executable, "-c", strict], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert failed.returncode == 1
        assert "the q4_k_m file knows 20 answers word for word; 105% of 20 are needed" in failed.stderr
