"""What `ggufy doctor` finds on machines that differ in one thing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ggufy import installed
from ggufy.export.kernels import build, native

Doctor = Callable[..., tuple[int, dict[str, Any]]]
TOKEN = "hf_neverToBeSeenAnywhere"


@pytest.fixture
def doctor(env: dict[str, str], tmp_path: Path) -> Doctor:
    """doctor(NAME=value) is the exit code of the command with those variables set, and its checks by name."""

    def doctor(**variables: str) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "ggufy", "doctor", "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=env | variables, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        assert TOKEN not in done.stdout
        report = json.loads(done.stdout)
        assert report["ok"] == (done.returncode == 0)
        return done.returncode, {check["name"]: check for check in report["checks"]}

    return doctor


def test_nothing_is_broken_here(doctor: Doctor) -> None:
    code, found = doctor()
    assert code == 0
    assert found["Python"]["state"] == "ok"
    assert "torch" in found["training"]["text"]
    assert found["GPU"]["state"] == "missing"
    assert "offline" in found["Hub"]["text"]
    assert all(check["mend"] for name, check in found.items() if check["state"] != "ok" and name != "Hub")


def test_the_report_for_people_says_the_same_and_takes_no_torch(env: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ggufy", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert sum(line.startswith(("ok ", "missing ", "broken ")) for line in lines) >= 10
    assert any("->" in line for line in lines)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "huggingface_hub" in loaded
    assert not loaded & {"torch", "transformers", "bitsandbytes"}


def test_which_kernels_are_used(doctor: Doctor, tmp_path: Path) -> None:
    _, found = doctor()
    runs = native.variants()
    assert runs, "the tests run with compiled kernels"
    assert all(variant in found["kernels"]["text"] for variant in runs)
    code, found = doctor(GGUFY_KERNELS=str(tmp_path))
    assert code == 0
    assert found["kernels"]["state"] == "missing"
    assert "llama.cpp's" in found["kernels"]["text"]
    # The command names the script that compiles them, from where the user is.
    _, script, folder = found["kernels"]["mend"].split()
    assert (tmp_path / script).resolve().name == "build.py"
    assert (tmp_path / folder / "kernels.c").is_file()
    assert "they need GCC 12 or clang" in found["kernels"]["text"]
    (tmp_path / build.name()).write_bytes(b"of another machine")
    _, found = doctor(GGUFY_KERNELS=str(tmp_path))
    assert "are compiled from other source, or for another machine" in found["kernels"]["text"]


def test_without_a_compiler_it_says_so_first(doctor: Doctor, tmp_path: Path) -> None:
    _, found = doctor(GGUFY_KERNELS=str(tmp_path), PATH=str(tmp_path))
    assert "without a C compiler" in found["kernels"]["text"]
    assert found["kernels"]["mend"].startswith("install a C compiler")


def test_versions_that_do_not_fit(doctor: Doctor, env: dict[str, str], tmp_path: Path) -> None:
    record = tmp_path / "site" / "peft-0.1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1.0\n", "utf-8")
    code, found = doctor(PYTHONPATH=f"{record.parent}:{env.get('PYTHONPATH', '')}")
    assert code == 1
    assert found["training"]["state"] == "broken"
    assert "peft 0.1.0 is not" in found["training"]["text"]
    assert installed.command("train", options="--upgrade") in found["training"]["mend"]


def test_a_gpu_that_torch_cannot_use(doctor: Doctor, env: dict[str, str], tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 15360, 7.5, 550.54.15'\n", "utf-8")
    tool.chmod(0o755)
    code, found = doctor(PATH=f"{tmp_path}:{env['PATH']}", CUDA_VISIBLE_DEVICES="0")
    assert found["GPU"]["state"] == "ok"
    assert "Tesla T4, 15.0 GiB, no bf16" in found["GPU"]["text"]
    if "+cpu" in found["training"]["text"]:
        assert code == 1
        assert "is the CPU build, but there is a Tesla T4" in found["torch"]["text"]


def test_a_folder_that_cannot_be_written_to(doctor: Doctor) -> None:
    code, found = doctor(GGUFY_RUNS="/proc/nowhere")
    assert code == 1
    assert "GGUFY_RUNS" in found["runs"]["mend"]


@pytest.fixture
def hub() -> Iterator[Callable[[int, Any], str]]:
    """hub(status, body) is the address of a server that answers so."""
    servers = []

    def hub(status: int, body: Any) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                right = self.path == "/api/whoami-v2" and self.headers["Authorization"] == f"Bearer {TOKEN}"
                self.send_response(status if right else 404)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield hub
    for server in servers:
        server.shutdown()
        server.server_close()


def _who(**access: Any) -> dict[str, Any]:
    return {"name": "ada", "auth": {"accessToken": access}}


@pytest.mark.parametrize(
    ("status", "body", "state", "said"),
    [
        (200, _who(role="write"), "ok", "logged in as ada, may write"),
        (200, _who(role="read"), "missing", "logged in as ada, may only read"),
        (
            200,
            _who(role="fineGrained", fineGrained={"scoped": [{"permissions": ["repo.write"]}]}),
            "ok",
            "may write",
        ),
        (
            200,
            _who(role="fineGrained", fineGrained={"scoped": [{"permissions": ["repo.content.read"]}]}),
            "missing",
            "may only read",
        ),
        (401, {"error": "Invalid user token."}, "broken", "no longer accepts the token"),
        (503, {}, "missing", "cannot be reached"),
        (200, ["no", "hub"], "missing", "does not answer like the Hub"),
    ],
)
def test_the_login(
    doctor: Doctor, hub: Callable[[int, Any], str], status: int, body: Any, state: str, said: str
) -> None:
    _, found = doctor(HF_HUB_OFFLINE="0", HF_ENDPOINT=hub(status, body), HF_TOKEN=TOKEN)
    assert found["Hub"]["state"] == state
    assert said in found["Hub"]["text"]


def test_no_network_is_not_broken(doctor: Doctor) -> None:
    code, found = doctor(HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert code == 0
    assert "cannot be reached" in found["Hub"]["text"]
    _, found = doctor(HF_HUB_OFFLINE="0")
    assert found["Hub"]["mend"] == "hf auth login"
