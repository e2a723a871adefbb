"""`ggufy pull`, `chat user/name` and checkpoints: what comes back is what was sent, or nothing."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from ggufy.hub.pull import choose
from ggufy.model import random_llama
from ggufy.model.llama3 import Shape
from tests.conftest import snapshot
from tests.hub.conftest import ANN, READER, Hub
from tests.oracle import small_tokenizers

PUSH = ("push", "quick", "--repo", "ann/Llama-quick")
PULL = ("pull", "ann/Llama-quick")
CDN = {"method": "GET", "path": "^/cdn/"}


def delivered(folder: Path) -> dict[str, str]:
    held = snapshot(folder / "runs" / "quick")
    return {name: digest for name, digest in held.items() if name.startswith(("adapter/", "export/"))}


def test_a_run_comes_back(hub: Hub, quick: Path, there: Path, run: Callable[..., Any]) -> None:
    hub.works(*PULL, cwd=there, token="")
    assert delivered(there) == delivered(quick)
    for name in ("run.json", "metrics.jsonl", "summary.json"):
        assert (there / "runs/quick" / name).read_bytes() == (quick / "runs/quick" / name).read_bytes()
    assert not (there / "runs" / "quick" / "partial").exists()
    # What came is what ggufy made, so nothing has to be made again, neither here nor on the Hub.
    exported = run("export", "quick", "--quant", "q8_0", "--no-logits", cwd=there)
    assert exported.stdout.count("up to date") == 2, exported.stdout + exported.stderr
    assert "nothing was sent" in hub.works(*PUSH, cwd=there)
    assert "up to date" in hub.works(*PULL, cwd=there)


def test_a_corrupt_download_is_seen(hub: Hub, quick: Path, there: Path) -> None:
    hub.control("faults", [{**CDN, "corrupt": True}])
    assert "different content" in hub.works(*PULL, cwd=there)
    assert delivered(there) == delivered(quick)


def test_a_download_that_stays_corrupt_is_not_taken(hub: Hub, there: Path) -> None:
    hub.control("faults", [{**CDN, "corrupt": True, "times": 9}])
    assert "different content than the Hub lists" in hub.fails(*PULL, cwd=there)
    assert not list(there.rglob("*.safetensors"))
    assert not list(there.rglob("run.json"))
    assert "no runs yet" in hub.fails("export", cwd=there)


def test_a_broken_download_goes_on(hub: Hub, quick: Path, there: Path) -> None:
    hub.control("faults", [{**CDN, "cut": 700_000}, {"method": "HEAD", "path": "/resolve/", "status": 503}])
    hub.works(*PULL, cwd=there)
    assert delivered(there) == delivered(quick)


def test_a_killed_pull_goes_on(hub: Hub, quick: Path, there: Path) -> None:
    assert hub.kill_when_held(*PULL, cwd=there, fault={**CDN, "hold": "sending", "after": 1})
    assert not (there / "runs" / "quick" / "run.json").exists()
    begun = len(hub.requests())
    hub.works(*PULL, cwd=there)
    assert delivered(there) == delivered(quick)
    # Of the three that are not text one was there already.
    assert len([request for request in hub.requests()[begun:] if request["path"].startswith("/cdn/")]) == 2


@pytest.mark.parametrize("path", ["ggufy/manifest.json", "^/cdn/"])
def test_two_commands_at_once_want_the_same_files(hub: Hub, there: Path, tmp_path: Path, path: str) -> None:
    """One is held in the middle of a file; the other pulls all of it meanwhile."""
    other = tmp_path / "other"
    other.mkdir()
    hub.control("faults", [{"method": "GET", "path": path, "hold": "before"}])
    held = hub.begin(*PULL, cwd=there)
    while not (hub.folder / "held").exists():
        time.sleep(0.005)
    assert "is as it was pushed" in hub.works(*PULL, cwd=other)
    hub.control("faults")
    _, said = held.communicate(60)
    assert held.returncode == 0, said
    assert delivered(there) == delivered(other)


def test_two_chats_at_once_want_the_same_file(hub: Hub, tmp_path: Path) -> None:
    """The second waits for the first, and what it then asks for is nothing."""
    text = "".join(f"{number:09d}\n" for number in range(2_500_000))
    hub.control("state", {"repos": [{"kind": "model", "name": "ann/two", "files": {"two-q4_k_m.gguf": text}}]})
    ask = ("chat", "ann/two", "--prompt", "Hello")
    hub.control("faults", [{**CDN, "hold": "before"}])
    first = hub.begin(*ask, cwd=tmp_path)
    while not (hub.folder / "held").exists():
        time.sleep(0.005)
    second = hub.begin(*ask, cwd=tmp_path)
    while b"waiting for another ggufy that downloads from ann/two" not in second.said()[1]:
        assert second.poll() is None, second.said()
        time.sleep(0.005)
    hub.control("faults")
    # Neither is a model; the file has come whole, and only once.
    for chat in (first, second):
        assert "two-q4_k_m.gguf" in chat.communicate(60)[1]
        assert chat.returncode == 1
    cache = Path(hub.env["GGUFY_CACHE"]) / "hub" / "ann--two"
    [arrived] = cache.rglob("two-q4_k_m.gguf")
    assert arrived.read_text() == text
    # In pieces of 10 MB, which is how the client asks.
    came = [r["range"] for r in hub.requests() if r["path"].startswith("/cdn/") and not r["cut"]]
    assert len(came) == len(set(came)), came


def test_a_killed_download_goes_on_in_the_middle(hub: Hub, tmp_path: Path) -> None:
    """Of a file larger than the 10 MB that the client takes at a time."""
    text = "".join(f"{number:09d}\n" for number in range(2_500_000))
    hub.control("state", {"repos": [{"kind": "model", "name": "ann/big", "files": {"big-q4_k_m.gguf": text}}]})
    ask = ("chat", "ann/big", "--prompt", "Hello")
    cache = Path(hub.env["GGUFY_CACHE"]) / "hub" / "ann--big"

    def partly() -> bool:
        return any(path.stat().st_size >= 10_000_000 for path in cache.rglob("*.partial"))

    assert hub.kill_when_held(*ask, cwd=tmp_path, fault={**CDN, "hold": "sending"}, ready=partly)
    begun = len(hub.requests())
    said = hub.fails(*ask, cwd=tmp_path)
    assert "big-q4_k_m.gguf" in said
    [span] = [request["range"] for request in hub.requests()[begun:] if request["range"]]
    assert int(span.removeprefix("bytes=").removesuffix("-")) >= 10_000_000
    [arrived] = cache.rglob("big-q4_k_m.gguf")
    assert arrived.read_text() == text


BAD_MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "outside the run": (lambda m: m["files"]["tokenizer.json"].update(path="adapter/../../../evil"), "evil"),
    "absolute": (lambda m: m["files"]["tokenizer.json"].update(path="/tmp/evil"), "/tmp/evil"),
    "not a file of a run": (
        lambda m: m["files"]["tokenizer.json"].update(path="stamps/adapter.json"),
        "not a file of a run",
    ),
    "a pickle": (lambda m: m["files"]["tokenizer.json"].update(path="checkpoints/training_args.bin"), "training_args"),
    "a name": (lambda m: m.update(run="../evil"), "cannot be the name of a run"),
    "a stamp": (lambda m: m["stamps"][0].update(output="../adapter"), "stamp"),
    "a later format": (lambda m: m.update(format=99), "format 99"),
    "nothing": (lambda m: m.clear(), "not complete"),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_repository_that_is_not_as_ggufy_leaves_one(hub: Hub, there: Path, case: str) -> None:
    spoil, said = BAD_MANIFESTS[case]
    manifest = json.loads(hub.read("ann/Llama-quick", "ggufy/manifest.json"))
    spoil(manifest)
    edit = {"kind": "model", "name": "ann/Llama-quick", "branch": "main", "path": "ggufy/manifest.json"}
    hub.control("edit", {**edit, "text": json.dumps(manifest)})
    assert said in hub.fails(*PULL, cwd=there)
    assert not list(there.rglob("*"))


def test_what_to_do_next_can_be_done(hub: Hub, quick: Path, tmp_path: Path) -> None:
    for what, said in (("adapter", "next: ggufy export quick"), ("gguf", "next: ggufy chat quick")):
        folder = tmp_path / what
        folder.mkdir()
        repo = f"ann/Llama-{what}"
        hub.works("push", "quick", "--repo", repo, "--what", what, cwd=quick)
        assert said in hub.works("pull", repo, cwd=folder)


def test_of_a_model_in_several_files_the_first_is_named() -> None:
    parts = {f"m-q8_0/m-q8_0-{n:05}-of-00002.gguf": 700 for n in (2, 1)}
    assert choose(parts, "q8_0") == "m-q8_0/m-q8_0-00001-of-00002.gguf"
    assert choose({**parts, "m-q6_k.gguf": 1000}, None) == "m-q6_k.gguf"


def test_another_run_here_stays(hub: Hub, there: Path) -> None:
    other = there / "runs" / "quick"
    other.mkdir(parents=True)
    (other / "run.json").write_text('{"recipe": {}}')
    assert "--run NAME" in hub.fails(*PULL, cwd=there)
    assert (other / "run.json").read_text() == '{"recipe": {}}'
    hub.works(*PULL, "--run", "beside", cwd=there)
    assert (there / "runs" / "beside" / "adapter" / "adapter_model.safetensors").is_file()


def test_what_is_not_there(hub: Hub, there: Path) -> None:
    assert "no such repository" in hub.fails("pull", "ann/nothing", cwd=there)
    assert "no such branch" in hub.fails(*PULL, "--branch", "other", cwd=there)
    assert "other-checkpoints" not in hub.fails(*PULL, "--branch", "other", cwd=there)
    assert "no such branch" in hub.fails("train", "--from-hub", "ann/Llama-quick", "--branch", "b", cwd=there)


def test_chat_with_a_repository(hub: Hub, there: Path) -> None:
    ask = ("chat", "ann/Llama-quick", "--prompt", "Hello", "--max-tokens", "4", "--temperature", "0", "--quant", "q8_0")
    hub.control("faults", [{**CDN, "corrupt": True}])
    first = hub.run(*ask, cwd=there)
    assert first.returncode == 0, first.stderr
    assert "different content" in first.stderr
    begun = len(hub.requests())
    again = hub.run(*ask, cwd=there)
    assert not [request for request in hub.requests()[begun:] if request["path"].startswith("/cdn/")]
    offline = hub.run(*ask, cwd=there, HF_ENDPOINT="http://127.0.0.1:9")
    assert "using what was downloaded before" in offline.stderr
    answers = {done.stdout.splitlines()[0] for done in (first, again, offline)}
    assert len(answers) == 1
    assert "q8_0" in hub.fails(*ask[:-1], "q4_k_m", cwd=there)


def test_an_adapter_on_the_hub_is_exported(hub: Hub, quick: Path, there: Path) -> None:
    """Through the client's own download, whose corrupt answer is seen, too."""
    hub.control("faults", [{**CDN, "corrupt": True}])
    export = ("export", "ann/Llama-quick", "--base", "builtin:tiny", "--quant", "q8_0", "--no-logits")
    said = hub.works(*export, cwd=there)
    assert "different content than the Hub lists" in said
    made, known = (read_tensors(path) for path in (there / "exports", quick / "runs/quick/export"))
    assert made == known
    assert "different content" not in hub.works(*export, cwd=there)


def test_a_base_without_tokenizer_json_comes_with_all_that_it_is_made_of(hub: Hub, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    ids = small_tokenizers.llama(base)
    rows = small_tokenizers.ROWS
    random_llama.write_model(base, Shape(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=32, vocab=rows))
    (base / "tokenizer.json").unlink()
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps({**config, **ids, "pad_token_id": 0}), "utf-8")
    told = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    del told["added_tokens_decoder"]
    (base / "tokenizer_config.json").write_text(json.dumps(told), "utf-8")
    (base / "added_tokens.json").write_text('{"<extra>": 640}', "utf-8")
    code = (
        "from huggingface_hub import HfApi; import sys; api = HfApi(); api.create_repo('ann/old'); "
        "api.upload_folder(repo_id='ann/old', folder_path=sys.argv[1])"
    )
    env = {**hub.env, "HF_TOKEN": ANN}
    subprocess.run([sys.executable, "-c", code, str(base)], env=env, check=True, capture_output=True)
    said = hub.works("export", "ann/old", "--quant", "f16", "--no-logits", cwd=tmp_path)
    assert "ann/old: no tokenizer.json there; transformers makes it of tokenizer.model" in said
    [made] = (tmp_path / "exports").rglob("*.gguf")
    assert GGUFReader(made).fields["tokenizer.ggml.tokens"].contents(640) == "<extra>"


def read_tensors(folder: Path) -> dict[str, bytes]:
    [path] = folder.rglob("*.gguf")
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


def test_the_machine_is_taken_away(hub: Hub, quick: Path, quick_again: tuple[str, ...], tmp_path: Path) -> None:
    """kill -9 while it trains: what was saved last arrives, and another machine ends with the same bytes."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    options = ("--set", "hub.repo=ann/Llama-quick", "--set", "hub.checkpoints=every_save", "--set", "hub.private=true")
    # One commit in between is refused, and one answer is lost: it is tried again.
    hub.control("faults", [{"method": "POST", "path": "/commit/", "status": 500}])
    command = [sys.executable, "-m", "ggufy", "train", *quick_again, *options]
    training = subprocess.Popen(
        command, cwd=here, env={**hub.env, "HF_TOKEN": ANN}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    saved = here / "runs" / "quick" / "checkpoints" / "checkpoint-2" / "manifest.json"
    while not saved.exists() and training.poll() is None:
        time.sleep(0.002)
    training.send_signal(signal.SIGKILL)
    training.wait()
    assert not (here / "runs" / "quick" / "stamps" / "adapter.json").exists(), "killed too late to test anything"
    while "checkpoints/checkpoint-2/manifest.json" not in hub.control("look")["repos"].get(
        "model:ann/Llama-quick", {"files": {}}
    )["files"].get("checkpoints", {}):
        time.sleep(0.05)
    assert hub.state("ann/Llama-quick")["private"]
    said = hub.works("train", "--from-hub", "ann/Llama-quick", cwd=there)
    assert "resuming from step 2" in said
    assert snapshot(there / "runs/quick/adapter") == snapshot(quick / "runs/quick/adapter")
    steps = [json.loads(line)["step"] for line in (there / "runs/quick/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    # The Hub holds the last checkpoint of this machine now; here nothing is to be done any more.
    assert "checkpoints/checkpoint-4/manifest.json" in hub.files("ann/Llama-quick", "checkpoints")
    assert "here already" in hub.works("train", "--from-hub", "ann/Llama-quick", cwd=there)
    # The first machine comes back, goes on by itself, and finds the checkpoints there.
    said = hub.works("train", *quick_again, *options, cwd=here)
    assert "checkpoint-4 is not sent: ann/Llama-quick@checkpoints already has step 4 of this run" in said
    assert "not on the Hub yet" not in said


def test_uploads_that_fail_never_stop_a_training(
    hub: Hub, quick: Path, quick_again: tuple[str, ...], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    options = ("--set", "hub.repo=ann/Llama-quick", "--set", "hub.checkpoints=end")
    hub.control("faults", [{"method": "POST", "path": "/commit/", "status": 403, "times": 99}])
    said = hub.works("train", *quick_again, *options, cwd=work)
    assert "checkpoint-4 is not on the Hub yet" in said
    assert "giving up" in said
    assert snapshot(work / "runs/quick/adapter") == snapshot(quick / "runs/quick/adapter")
    assert not (work / "runs" / "quick" / "checkpoints" / ".sending").exists()


@pytest.fixture
def unsent(quick: Path) -> Path:
    """A run with train.keep_best whose best checkpoint is not the newest, and neither is on the Hub."""
    run = quick / "runs" / "quick"
    frozen = json.loads((run / "run.json").read_text())
    frozen["recipe"]["train"]["keep_best"] = True
    (run / "run.json").write_text(json.dumps(frozen))
    folder = run / "checkpoints" / "checkpoint-4"
    state, manifest = (json.loads((folder / name).read_text()) for name in ("trainer_state.json", "manifest.json"))
    state["log_history"] += [{"step": 2, "eval_loss": 1.0}, {"step": 4, "eval_loss": 2.0}]
    data = json.dumps(state).encode()
    (folder / "trainer_state.json").write_bytes(data)
    manifest["files"]["trainer_state.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return quick


def send(hub: Hub, cwd: Path) -> subprocess.Popen[str]:
    """What sends checkpoints beside a training, after that has ended."""
    command = [sys.executable, "-m", "ggufy.hub.checkpoints", "runs/quick", "ann/Llama-quick", "checkpoints", "end"]
    # The base's folder, which peft writes into each checkpoint, lies in the home as it does elsewhere.
    env = {**hub.env, "HF_TOKEN": ANN, "HOME": str(Path(hub.env["GGUFY_CACHE"]).parent)}
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_best_checkpoint_is_sent_with_the_newest(hub: Hub, unsent: Path, tmp_path: Path) -> None:
    """Two of them at once, as after a kill: the second waits, and finds everything done."""
    hub.control("faults", [{"method": "POST", "path": "/commit/", "hold": "before"}])
    first = send(hub, unsent)
    while not (hub.folder / "held").exists() and first.poll() is None:
        time.sleep(0.01)
    second = send(hub, unsent)
    time.sleep(0.5)
    hub.control("faults")
    for sender in (first, second):
        said = sender.communicate()[0]
        assert sender.returncode == 0, said
        assert "checkpoint-4 is on the Hub" in said
        assert "not on the Hub yet" not in said
    state = hub.state("ann/Llama-quick")
    assert state["commits"] == 2
    assert len(hub.stored()) == len(set(hub.stored()))
    place = hub.env["GGUFY_CACHE"].encode()
    assert place in (unsent / "runs/quick/checkpoints/checkpoint-4/adapter_config.json").read_bytes()
    for path in [*(hub.folder / "bodies").iterdir(), *(hub.folder / "objects").iterdir()]:
        assert place not in path.read_bytes()
    there = tmp_path / "there"
    there.mkdir()
    hub.works("pull", "ann/Llama-quick", cwd=there)
    for name in ("checkpoint-2/adapter_model.safetensors", "checkpoint-4/optimizer.pt"):
        ours = unsent / "runs/quick/checkpoints" / name
        assert (there / "runs/quick/checkpoints" / name).read_bytes() == ours.read_bytes()


def test_checkpoints_that_would_be_of_no_use_are_refused(hub: Hub, tmp_path: Path) -> None:
    wanted = ("train", "--recipe", "tiny", "--set", "hub.checkpoints=end")
    assert "hub.repo" in hub.fails(*wanted, cwd=tmp_path)
    data = tmp_path / "mine.jsonl"
    said = hub.fails(*wanted, "--set", "hub.repo=ann/x", "--set", f"data.source={data}", cwd=tmp_path)
    assert "data.source" in said
    assert "this machine only" in said
    for key, value in (("data.eval_source", str(data)), ("data.more", f"[{{source: {data}}}]")):
        said = hub.fails(*wanted, "--set", "hub.repo=ann/x", "--set", f"{key}={value}", cwd=tmp_path)
        assert f"{key} is" in said
    assert "can only read" in hub.fails(*wanted, "--set", "hub.repo=ann/x", cwd=tmp_path, token=READER)
