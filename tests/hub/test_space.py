"""`ggufy space`: what it writes talks as `ggufy chat` does, with nothing but what is in the folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import yaml

from tests.hub.conftest import Hub

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


def test_a_changed_app_stays(hub: Hub, quick: Path) -> None:
    hub.works("push", "quick", "--repo", "ann/Llama-quick", cwd=quick)
    space = ("space", "quick", "--repo", "ann/talk")
    hub.works(*space, cwd=quick)
    app = quick / "spaces" / "talk" / "app.py"
    app.write_text("mine")
    assert "app.py is there already" in hub.fails(*space, cwd=quick)
    assert app.read_text() == "mine"
    hub.works(*space, "--force", cwd=quick)
    assert app.read_text() != "mine"
