"""`ggufy push --ollama`, with a stand-in for Ollama."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.hub.conftest import Hub


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with an `ollama` that notes what it is asked, and fails to push where it was told to."""
    script = tmp_path / "bin" / "ollama"
    script.parent.mkdir()
    script.write_text(
        f"""#!{shutil.which("python3")}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "asked").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "create":
    assert pathlib.Path(sys.argv[4]).read_text().startswith("FROM ./quick-q8_0.gguf")
    if (here / "sign in").exists():
        sys.exit("Error: you need to be signed in to use this model")
elif (here / "refuse").exists():
    sys.exit("pushing manifest\\nError: you are not authorized to push to this namespace")
"""
    )
    script.chmod(0o755)
    return f"{script.parent}{os.pathsep}{os.environ['PATH']}"


def test_create_then_push(hub: Hub, quick: Path, path: str) -> None:
    said = hub.works("push", "quick", "--ollama", "ann/quick", cwd=quick, PATH=path)
    assert "https://ollama.com/ann/quick" in said
    asked = [json.loads(line) for line in (Path(path.partition(os.pathsep)[0]) / "asked").read_text().splitlines()]
    assert asked == [["create", "ann/quick", "-f", "quick-q8_0.Modelfile"], ["push", "ann/quick"]]
    assert not hub.requests()


def test_what_ollama_refuses_is_said(hub: Hub, quick: Path, path: str) -> None:
    (Path(path.partition(os.pathsep)[0]) / "refuse").touch()
    said = hub.fails("push", "quick", "--ollama", "ann/quick", cwd=quick, PATH=path)
    assert "ollama push ann/quick failed: Error: you are not authorized" in said
    assert "ollama.com/settings/keys" in said


def test_who_is_not_signed_in_is_told_how(hub: Hub, quick: Path, path: str) -> None:
    (Path(path.partition(os.pathsep)[0]) / "sign in").touch()
    said = hub.fails("push", "quick", "--ollama", "ann/quick", cwd=quick, PATH=path)
    assert "`ollama signin`" in said
    assert "server" not in said


def test_a_dry_run_needs_no_repository(hub: Hub, quick: Path, path: str) -> None:
    said = hub.works("push", "quick", "--ollama", "ann/quick", "--dry-run", cwd=quick, PATH=path)
    assert "quick-q8_0.Modelfile, to https://ollama.com/ann/quick" in said
    assert not (Path(path.partition(os.pathsep)[0]) / "asked").exists()


def test_what_ollama_would_refuse_keeps_from_the_hub(hub: Hub, quick: Path, path: str) -> None:
    both = ("push", "quick", "--repo", "ann/Llama-quick", "--ollama", "quick")
    assert "not the name of a model in an Ollama account" in hub.fails(*both, cwd=quick, PATH=path)
    assert not hub.requests()


@pytest.mark.parametrize(
    ("name", "said"), [("quick", "not the name of a model in an Ollama account"), ("ann/x", "not installed")]
)
def test_bad_input(hub: Hub, quick: Path, tmp_path: Path, name: str, said: str) -> None:
    assert said in hub.fails("push", "quick", "--ollama", name, cwd=quick, PATH=str(tmp_path))
