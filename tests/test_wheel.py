"""The wheel alone, in a clean environment without torch, outside the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ATTENTION_32 = ("--set", "lora.r=32", "--set", "lora.target_modules=attention")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with nothing but the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    wheel = next(folder.glob("*.whl"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, capture_output=True)
    return python


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Path:
    """A folder with a trained run, made with the full installation."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, "-m", "ggufy", "train", "--recipe", "tiny", "--set", "train.max_steps=60"]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return folder


def test_export_and_chat_work_without_torch(
    installed: Path, trained: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    clean = {key: value for key, value in env.items() if key != "PYTHONPATH"}

    def ggufy(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [installed.parent / "ggufy", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)

    assert subprocess.run([installed, "-c", "import torch"], capture_output=True, cwd=tmp_path).returncode == 1
    assert "Commands:" in ggufy("--help").stdout
    assert "3b_qlora" in ggufy("recipes").stdout
    well = ggufy("doctor")
    assert well.returncode == 0, well.stdout + well.stderr
    assert "torch is not installed" in well.stdout
    assert "18,350,080" in ggufy("plan", "--recipe", "3b_qlora", "--gpu", "t4", *ATTENTION_32).stdout
    missing = ggufy("train", "--recipe", "tiny")
    assert missing.returncode == 1
    assert "ggufy-tune[train] @ file://" in missing.stderr
    assert "Traceback" not in missing.stderr

    shutil.copytree(trained / "runs", tmp_path / "runs")
    # The built-in base is made anew here, without torch, and has to be the same.
    clean["GGUFY_CACHE"] = str(tmp_path / "cache")
    exported = ggufy("export", "--quant", "q8_0")
    assert exported.returncode == 0, exported.stderr
    card = ggufy("push", "--repo", "ann/Llama-tiny", "--dry-run")
    assert card.stdout.startswith("---\nlibrary_name: peft\n"), card.stderr
    answer = ggufy("chat", "--prompt", "What is the capital of France?", "--temperature", "0")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "The capital of France is Paris.\n"


def test_the_sources_name_no_machine_and_no_registry() -> None:
    """Nothing that is committed may depend on where it was written."""
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        text = (REPOSITORY / name).read_bytes().decode("utf-8", "replace")
        assert f"{Path.home()}/" not in text, name
        assert "index-url" not in text or name == "tests/test_wheel.py", name
