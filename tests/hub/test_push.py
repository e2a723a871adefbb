"""`ggufy push` against a Hub on this machine: what arrives, what is never sent, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.conftest import snapshot
from tests.hub.conftest import ANN, READER, Hub

HUB = ("--set", "hub.repo=ann/Llama-quick", "--set", "hub.checkpoints=every_save")
PUSH = ("push", "quick", "--repo", "ann/Llama-quick")


def untouched(before: dict[str, str], folder: Path) -> bool:
    after = snapshot(folder)
    return {k: v for k, v in after.items() if not k.endswith(("hub.json", "lock"))} == before


def test_what_arrives_is_the_run(hub: Hub, quick: Path) -> None:
    before = {k: v for k, v in snapshot(quick).items() if not k.endswith("lock")}
    said = hub.works(*PUSH, "--tag", "v1", "--message", "first", cwd=quick)
    assert "13 new" in said
    there = hub.files("ann/Llama-quick")
    run = quick / "runs" / "quick"
    for name in ("adapter_model.safetensors", "tokenizer.json", "adapter_config.json"):
        assert hub.read("ann/Llama-quick", name) == (run / "adapter" / name).read_bytes()
    gguf = (run / "export" / "quick-q8_0.gguf").read_bytes()
    assert there["quick-q8_0.gguf"] == [hashlib.sha256(gguf).hexdigest(), len(gguf)]
    assert {"quick-q8_0.Modelfile", "README.md", "ggufy/metrics.jsonl", "ggufy/run.json"} <= there.keys()
    state = hub.state("ann/Llama-quick")
    assert state["tags"] == {"v1": state["branches"]["main"]}
    assert state["commits"] == 2
    receipt = json.loads((run / "hub.json").read_text())["pushes"]["ann/Llama-quick@main"]
    assert receipt["commit"] == state["branches"]["main"]
    assert receipt["files"].keys() == there.keys()
    for path, facts in receipt["files"].items():
        assert facts["sha256"] == hashlib.sha256(hub.read("ann/Llama-quick", path)).hexdigest()
        assert facts["url"].startswith(hub.url)
    assert untouched(before, quick)


def test_a_second_push_sends_nothing(hub: Hub, quick: Path) -> None:
    hub.works(*PUSH, cwd=quick)
    sent, receipt = hub.stored(), (quick / "runs" / "quick" / "hub.json").read_bytes()
    said = hub.works(*PUSH, cwd=quick)
    assert "nothing was sent" in said
    assert hub.stored() == sent
    assert hub.state("ann/Llama-quick")["commits"] == 2
    assert (quick / "runs" / "quick" / "hub.json").read_bytes() == receipt


def test_a_branch_per_experiment(hub: Hub, quick: Path) -> None:
    hub.works(*PUSH, "--what", "gguf", cwd=quick)
    hub.works(*PUSH, "--what", "adapter", "--branch", "{recipe}_r{r}_N{n}", cwd=quick)
    branches = hub.state("ann/Llama-quick")["files"]
    assert branches.keys() == {"main", "tiny_r32_N20"}
    assert "adapter_model.safetensors" not in branches["main"]
    assert not any(name.endswith(".gguf") for name in branches["tiny_r32_N20"])
    assert "branch" in hub.read("ann/Llama-quick", "README.md", "tiny_r32_N20").decode()


def test_the_recipe_says_where(hub: Hub, quick: Path) -> None:
    record = quick / "runs" / "quick" / "run.json"
    frozen = json.loads(record.read_text())
    frozen["recipe"]["hub"] = {"repo": "lab/Llama-{run}-r{r}", "private": True, "what": ["adapter"]}
    record.write_text(json.dumps(frozen))
    hub.works("push", cwd=quick)
    state = hub.state("lab/Llama-quick-r32")
    assert state["private"]
    assert "quick-q8_0.gguf" not in state["files"]["main"]


def test_through_xet(xet_hub: Hub, quick: Path) -> None:
    hub = xet_hub
    hub.works(*PUSH, cwd=quick)
    assert not hub.stored()
    gguf = hashlib.sha256((quick / "runs/quick/export/quick-q8_0.gguf").read_bytes()).hexdigest()
    assert hub.files("ann/Llama-quick")["quick-q8_0.gguf"][0] == gguf
    assert "nothing was sent" in hub.works(*PUSH, cwd=quick)
    there = quick.parent / "there"
    there.mkdir()
    hub.works("pull", "ann/Llama-quick", cwd=there)
    for name in ("adapter/adapter_model.safetensors", "export/quick-q8_0.gguf"):
        assert (there / "runs/quick" / name).read_bytes() == (quick / "runs/quick" / name).read_bytes()


def test_killed_through_xet(xet_hub: Hub, quick: Path) -> None:
    """What had arrived is not stored again: its blocks are the same files as before."""
    hub = xet_hub
    env = {**hub.env, "HF_TOKEN": ANN}
    hub.control("faults", [{"method": "POST", "path": "/commit/", "hold": "before"}])
    command = [sys.executable, "-m", "ggufy", *PUSH]
    process = subprocess.Popen(
        command, cwd=quick, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("adapter_model.safetensors has arrived"):
            break

    def blocks() -> dict[str, tuple[int, int]]:
        found = [path for path in hub.folder.rglob("xorbs/default.*") if path.suffix != ".tagset"]
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}

    arrived = blocks()
    process.kill()
    process.wait()
    process.stderr.close()
    hub.control("faults")
    assert len(arrived) >= 2
    hub.works(*PUSH, cwd=quick)
    assert arrived.items() <= blocks().items()
    gguf = hashlib.sha256((quick / "runs/quick/export/quick-q8_0.gguf").read_bytes()).hexdigest()
    assert hub.files("ann/Llama-quick")["quick-q8_0.gguf"][0] == gguf
    assert hub.state("ann/Llama-quick")["commits"] == 2


def test_dry_run_asks_nothing_and_shows_a_valid_card(hub: Hub, quick: Path) -> None:
    done = hub.run(*PUSH, "--dry-run", cwd=quick, token="")
    assert done.returncode == 0, done.stderr
    assert not hub.requests()
    assert "quick-q8_0.gguf" in done.stdout
    card = ModelCard(done.stdout)
    assert card.data.pipeline_tag == "text-generation"
    assert "ggufy" in card.data.tags
    assert card.data.base_model is None
    summary = json.loads((quick / "runs/quick/summary.json").read_text())
    assert f"| loss at the end | {summary['final_loss']:.4f} |" in card.text
    # Nothing was held out, so nothing may be said of held-out data.
    assert "held-out" not in done.stdout.partition("The recipe in full")[0]


def test_card_of_a_llama_with_held_out_loss(hub: Hub, quick: Path) -> None:
    run = quick / "runs" / "quick"
    frozen, summary = (json.loads((run / name).read_text()) for name in ("run.json", "summary.json"))
    frozen["base"] = {**frozen["base"], "name": "meta/Llama-3.2-3B-Instruct", "commit": "c" * 40}
    frozen["data"] = {**frozen["data"], "name": "someone/chats", "commit": "d" * 40}
    frozen["recipe"]["data"]["eval_size"] = 7
    (run / "run.json").write_text(json.dumps(frozen))
    (run / "summary.json").write_text(json.dumps({**summary, "eval_loss": 1.25}))
    done = hub.run(*PUSH[:2], "--repo", "ann/other", "--dry-run", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert "begins with Llama" in done.stderr
    card = ModelCard(done.stdout)
    assert card.data.license == "llama3.2"
    assert card.data.base_model == "meta/Llama-3.2-3B-Instruct"
    assert card.data.datasets == ["someone/chats"]
    [result] = card.data.eval_results
    assert result.metric_value == 1.25
    assert "Built with Llama. Llama 3.2 is licensed under the Llama 3.2 Community License" in card.text
    assert "  NOTICE" in card.text


def test_card_of_a_mix_and_of_what_was_measured(hub: Hub, quick: Path) -> None:
    """Every source is named, held-out rows are those that were counted, and the Hub's own cards have their say."""
    run = quick / "runs" / "quick"
    frozen, summary = (json.loads((run / name).read_text()) for name in ("run.json", "summary.json"))
    frozen["base"] = {**frozen["base"], "name": "someone/model", "commit": "c" * 40}
    places = {"name": "someone/chats", "commit": "d" * 40, "more": [["tasks.jsonl", None], ["lab/more", "e" * 40]]}
    frozen["data"] = {**frozen["data"], **places, "held_out": ["lab/held", "f" * 40]}
    frozen["recipe"]["data"] |= {"eval_source": "lab/held", "eval_size": 0}
    (run / "run.json").write_text(json.dumps(frozen))
    (run / "summary.json").write_text(json.dumps({**summary, "eval_loss": 1.25}))
    (run / "data" / "report.json").write_text(json.dumps({"train": {"kept": 30}, "eval": {"rows": 9, "kept": 7}}))
    license_of_base = {"license": "other", "license_name": "mine", "license_link": "LICENSE"}
    cards = {"someone/chats": {"language": "en"}, "lab/more": {"language": ["de", "nonsense!"]}}
    repos = [{"kind": "dataset", "name": name, "card": card} for name, card in cards.items()]
    hub.control("state", {"repos": [*repos, {"kind": "model", "name": "someone/model", "card": license_of_base}]})
    hub.works(*PUSH, cwd=quick)
    card = ModelCard(hub.read("ann/Llama-quick", "README.md").decode())
    assert card.data.datasets == ["someone/chats", "lab/more"]
    assert card.data.language == ["en", "de"]
    assert (card.data.license, card.data.license_name) == ("other", "mine")
    assert card.data.license_link == f"{hub.url}/someone/model/blob/main/LICENSE"
    [result] = card.data.eval_results
    assert (result.dataset_type, result.dataset_revision) == ("lab/held", "f" * 40)
    assert result.dataset_name == "lab/held, 7 held-out conversations"
    assert "trained on 30 conversations of [someone/chats]" in card.text
    assert "and of `tasks.jsonl`, which is not on the Hub and of [lab/more]" in card.text
    cores = summary["hardware"]["cores"]
    assert f"| hardware | {cores} cores of a CPU" in card.text
    near = json.loads((run / "stamps" / "export--quick-q8_0.gguf.json").read_text())["closeness"]
    assert f"| {100 * near['agreement']:.1f}% | {near['divergence']:.2g} |" in card.text
    assert f"over {near['positions']} positions" in card.text


def test_card_of_files_that_were_measured_over_other_texts(hub: Hub, quick: Path) -> None:
    """One that was verified by a later ggufy, over more positions: each file says its own."""
    run = quick / "runs" / "quick"
    shutil.copyfile(run / "export" / "quick-q8_0.gguf", run / "export" / "quick-q6_k.gguf")
    stamp = json.loads((run / "stamps" / "export--quick-q8_0.gguf.json").read_text())
    positions = stamp["closeness"]["positions"]
    [facts] = stamp["files"].values()
    facts["mtime_ns"] = (run / "export" / "quick-q6_k.gguf").stat().st_mtime_ns
    stamp |= {"output": "export/quick-q6_k.gguf", "files": {"export/quick-q6_k.gguf": facts}}
    stamp["inputs"]["quant"] = "q6_k"
    stamp["closeness"]["positions"] = 4321
    (run / "stamps" / "export--quick-q6_k.gguf.json").write_text(json.dumps(stamp))
    done = hub.run(*PUSH, "--dry-run", cwd=quick)
    assert f"over 4,321 (`quick-q6_k.gguf`), {positions:,} (`quick-q8_0.gguf`) positions" in done.stdout


def test_card_of_an_adapter_with_a_tokenizer_of_its_own(hub: Hub, quick: Path) -> None:
    line = "The tokenizer and the chat template are those that the adapter was trained with, which are not the base's."
    assert line not in hub.run(*PUSH, "--dry-run", cwd=quick).stdout
    run = quick / "runs" / "quick"
    path = run / "adapter" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": config["chat_template"] + " "}))
    stamp = json.loads((run / "stamps" / "adapter.json").read_text())
    state, sha256 = path.stat(), hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256}
    stamp["files"]["adapter/tokenizer_config.json"] = facts
    (run / "stamps" / "adapter.json").write_text(json.dumps(stamp))
    said = hub.works("export", "quick", "--quant", "q8_0", "--no-logits", cwd=quick)
    assert "quick-q8_0.gguf was made with the base's tokenizer, and the adapter has its own; it is made again" in said
    assert line in hub.run(*PUSH, "--dry-run", cwd=quick).stdout


def test_card_of_what_was_not_measured(hub: Hub, quick: Path) -> None:
    stamp = quick / "runs" / "quick" / "stamps" / "export--quick-q8_0.gguf.json"
    values = json.loads(stamp.read_text())
    del values["closeness"]
    stamp.write_text(json.dumps(values))
    done = hub.run(*PUSH, "--dry-run", cwd=quick)
    assert "was not measured" in done.stdout
    assert "KL" not in done.stdout


def test_what_is_there_already_stays_a_part(hub: Hub, quick: Path) -> None:
    """Adapter first and GGUF later: the card and a pull know both."""
    hub.works(*PUSH, "--what", "adapter", cwd=quick)
    hub.works(*PUSH, "--what", "gguf", cwd=quick)
    card = ModelCard(hub.read("ann/Llama-quick", "README.md").decode())
    assert card.data.library_name == "peft"
    assert {"lora", "gguf"} <= set(card.data.tags)
    there = quick.parent / "there"
    there.mkdir()
    hub.works("pull", "ann/Llama-quick", cwd=there)
    for name in ("adapter/adapter_model.safetensors", "export/quick-q8_0.gguf"):
        assert (there / "runs/quick" / name).read_bytes() == (quick / "runs/quick" / name).read_bytes()


@pytest.mark.parametrize("what", ["training_args.bin", "optimizer.pt"])
def test_an_adapters_folder_may_hold_what_is_never_sent(hub: Hub, quick: Path, what: str) -> None:
    run = quick / "runs" / "quick"
    (run / "adapter" / what).write_bytes(b"hub_token " + ANN.encode())
    stamp = json.loads((run / "stamps" / "adapter.json").read_text())
    state = (run / "adapter" / what).stat()
    facts = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": "0" * 64}
    stamp["files"][f"adapter/{what}"] = facts
    (run / "stamps" / "adapter.json").write_text(json.dumps(stamp))
    hub.works(*PUSH, cwd=quick)
    assert what not in json.dumps(hub.files("ann/Llama-quick"))
    assert what not in hub.read("ann/Llama-quick", "ggufy/manifest.json").decode()


def test_no_path_of_this_machine_is_sent(hub: Hub, quick: Path) -> None:
    """A base and data named by absolute path: what is sent names the last part of them."""
    run = quick / "runs" / "quick"
    place = quick / "secret-place"
    frozen = json.loads((run / "run.json").read_text())
    frozen["recipe"]["model"]["base"] = frozen["base"]["name"] = str(place / "my-base")
    frozen["recipe"]["data"]["source"] = frozen["data"]["name"] = str(place / "my.jsonl")
    (run / "run.json").write_text(json.dumps(frozen))
    path, stamp_path = run / "adapter" / "adapter_config.json", run / "stamps" / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(place / "my-base")}))
    stamp, state = json.loads(stamp_path.read_text()), path.stat()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    stamp["files"]["adapter/adapter_config.json"] = {
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "sha256": sha256,
    }
    stamp["inputs"]["recipe"]["model"]["base"] = str(place / "my-base")
    stamp_path.write_text(json.dumps(stamp))
    hub.works(*PUSH, cwd=quick)
    for path in (hub.folder / "bodies").iterdir():
        assert b"secret-place" not in path.read_bytes()
    config = json.loads(hub.read("ann/Llama-quick", "adapter_config.json"))
    assert config["base_model_name_or_path"] == "my-base"


TOKENS = {
    "hub": "hf_" + "Zz9" * 12,
    "openai": "sk-proj-" + "Ab1_" * 12,
    "wandb": "WANDB_API_KEY=" + "0123456789" * 4,
    "own": ANN,
}


@pytest.mark.parametrize("kind", TOKENS)
def test_a_file_with_a_key_is_not_sent(hub: Hub, quick: Path, kind: str) -> None:
    metrics = quick / "runs" / "quick" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + json.dumps({"step": 9, "note": TOKENS[kind]}) + "\n")
    said = hub.fails(*PUSH, cwd=quick)
    assert "metrics.jsonl" in said
    assert "nothing was sent" in said
    assert TOKENS[kind] not in said
    assert not any(request["method"] == "PUT" for request in hub.requests())
    assert all(TOKENS[kind].encode() not in path.read_bytes() for path in (hub.folder / "bodies").iterdir())


def test_tokens_of_the_environment_are_nowhere(hub: Hub, tmp_path: Path, quick_again: tuple[str, ...]) -> None:
    """Train, export and push with canaries in the environment and in .env; then look everywhere."""
    work = tmp_path / "work"
    work.mkdir()
    wandb, openai = "c0ffee" * 7, "sk-" + "canary" * 8
    (work / ".env").write_text(f"WANDB_API_KEY={wandb}\nexport OPENAI_API_KEY='{openai}'\nHF_TOKEN={'x' * 30}\n")
    said = hub.works("train", *quick_again, *HUB, cwd=work)
    there = hub.files("ann/Llama-quick", "checkpoints")
    assert "checkpoints/checkpoint-4/optimizer.pt" in there
    assert not [path for path in there if "training_args.bin" in path or "checkpoint-2" in path]
    said += hub.works("export", "quick", "--quant", "q8_0", "--no-logits", cwd=work)
    said += hub.works("push", "quick", cwd=work)
    assert not [path for path in hub.files("ann/Llama-quick") if path.endswith((".bin", ".pt", ".pth"))]
    said += hub.run("--debug", "push", "quick", "--repo", "bob/x", cwd=work).stderr
    (work / ".env").unlink()
    held = [*work.rglob("*"), *(hub.folder / "bodies").rglob("*"), *(hub.folder / "objects").rglob("*")]
    texts = {path.as_posix(): path.read_bytes() for path in held if path.is_file()} | {"output": said.encode()}
    assert len(texts) > 40
    for canary in (ANN, wandb, openai, "x" * 30):
        assert not [name for name, text in texts.items() if canary.encode() in text]


def test_a_bad_line_in_env_is_named_not_shown(hub: Hub, quick: Path) -> None:
    (quick / ".env").write_text("# keys\nHF_TOKEN hf_secretsecret\n")
    said = hub.fails(*PUSH, cwd=quick)
    assert ".env:2" in said
    assert "hf_secretsecret" not in said


BAD = {
    "no token": (("--repo", "ann/x"), {"token": ""}, "no token", "settings/tokens"),
    "bad token": (("--repo", "ann/x"), {"token": "hf_" + "q" * 34}, "does not accept this token", "settings/tokens"),
    "read-only token": (("--repo", "ann/x"), {"token": READER}, "can only read", "write access"),
    "someone else's": (("--repo", "bob/x"), {}, "the token belongs to ann, who may not write to bob", "--repo ann/x"),
    "another type": (("--repo", "ann/set"), {}, "a data set already", "another --repo"),
    "dots": (("--repo", "ann/../x"), {}, "cannot be the name of a repository", "user/name"),
    "no user": (("--repo", "x"), {}, "has no user name", "user/x"),
    "branch with dots": (("--repo", "ann/x", "--branch", "a/../b"), {}, "name of a branch", "letters"),
    "no repository": ((), {}, "no repository to push to", "--repo"),
    "no merged": (("--repo", "ann/x", "--what", "merged"), {}, "no merged files yet", "--merged"),
    "an unknown placeholder": (("--repo", "ann/x", "--message", "{rows}"), {}, "{rows} is nothing", "double it"),
    "half a placeholder": (("--repo", "ann/x", "--branch", "N{n"), {}, "cannot be filled in", "double it"),
    "public already": (("--repo", "ann/open", "--private"), {}, "ann/open already exists and is public", "settings"),
    "a key in the message": (("--repo", "ann/x", "--message", ANN), {}, "the commit's message holds", "remove it, and"),
    "a token that is none": (
        ("--repo", "ann/x"),
        {"token": "größe"},
        "characters that a token cannot have",
        "HF_TOKEN",
    ),
    "offline": (("--repo", "ann/x"), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE", "export, verify and chat work"),
    "no network": (
        ("--repo", "ann/x"),
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "cannot be reached",
        "export, verify and chat work",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(hub: Hub, quick: Path, case: str) -> None:
    repos = [{"kind": "dataset", "name": "ann/set"}, {"kind": "model", "name": "ann/open"}]
    hub.control("state", {"repos": repos})
    options, how, error, hint = BAD[case]
    before = snapshot(quick)
    said = hub.fails("push", "quick", *options, cwd=quick, **how)
    assert error in said.splitlines()[0]
    assert hint in said.splitlines()[1]
    assert snapshot(quick) == before
    assert "model:ann/x" not in hub.control("look")["repos"]


def test_a_read_only_token_on_a_repository_that_is_there(hub: Hub, quick: Path) -> None:
    hub.works(*PUSH, cwd=quick)
    assert "can only read" in hub.fails(*PUSH, cwd=quick, token=READER)


def test_gated_base_without_access(hub: Hub, quick: Path) -> None:
    hub.control("state", {"repos": [{"kind": "model", "name": "meta/Llama-3.2-1B", "gated": True}]})
    record = quick / "runs" / "quick" / "run.json"
    record.write_text(record.read_text().replace('"name": "builtin:tiny"', '"name": "meta/Llama-3.2-1B"'))
    said = hub.fails(*PUSH, cwd=quick)
    assert "meta/Llama-3.2-1B is gated" in said
    assert f"{hub.url}/meta/Llama-3.2-1B" in said
    assert "model:ann/Llama-quick" not in hub.control("look")["repos"]


def test_training_for_a_repository_that_cannot_be_written_is_refused_first(hub: Hub, tmp_path: Path) -> None:
    said = hub.fails("train", "--recipe", "tiny", "--set", "hub.repo=bob/x", cwd=tmp_path)
    assert "the token belongs to ann, who may not write to bob" in said
    assert not (tmp_path / "runs").exists()


def test_no_network_does_not_keep_from_training(hub: Hub, tmp_path: Path) -> None:
    """What cannot be asked is said, and the next mistake is the one that counts."""
    train = ("train", "--recipe", "tiny", "--set", "hub.repo=ann/x", "--set", "data.source=nothing.jsonl")
    done = hub.run(*train, cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "could not check whether ann/x may be written to" in done.stderr
    assert "error: data" in done.stderr
    assert "nothing.jsonl" in done.stderr


def test_a_run_that_is_not_finished(hub: Hub, quick: Path) -> None:
    run = quick / "runs" / "quick"
    (run / "stamps" / "adapter.json").unlink()
    said = hub.fails(*PUSH, "--what", "adapter", cwd=quick)
    assert "not finished" in said
    assert "--what gguf" in said
    hub.works(*PUSH, "--what", "gguf", cwd=quick)
    assert "adapter_model.safetensors" not in hub.files("ann/Llama-quick")


def test_a_link_out_of_the_run(hub: Hub, quick: Path) -> None:
    run = quick / "runs" / "quick"
    secret = quick / "elsewhere.jsonl"
    secret.write_text("{}\n")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(secret)
    assert "outside the run" in hub.fails(*PUSH, cwd=quick)


def test_a_stamp_that_leads_out_of_the_run(hub: Hub, quick: Path) -> None:
    path = quick / "runs" / "quick" / "stamps" / "adapter.json"
    path.write_text(path.read_text().replace('"adapter/tokenizer.json"', '"adapter/../../../elsewhere"'))
    (quick / "elsewhere").write_text("mine")
    hub.fails(*PUSH, cwd=quick)
    assert "model:ann/Llama-quick" not in hub.control("look")["repos"]


def test_others_work_is_not_written_over(hub: Hub, quick: Path) -> None:
    hub.works(*PUSH, "--what", "gguf", cwd=quick)
    edit = {"kind": "model", "name": "ann/Llama-quick", "branch": "main", "path": "README.md", "text": "By hand."}
    hub.control("edit", edit)
    said = hub.fails(*PUSH, cwd=quick)
    assert "README.md" in said
    assert "--force" in said
    assert hub.read("ann/Llama-quick", "README.md") == b"By hand."
    hub.works(*PUSH, "--force", cwd=quick)
    assert hub.read("ann/Llama-quick", "README.md") != b"By hand."


def test_a_gitignore_that_leaves_a_file_out(hub: Hub, quick: Path) -> None:
    files = {".gitignore": "quick-q8_0.gguf"}
    hub.control("state", {"repos": [{"kind": "model", "name": "ann/Llama-quick", "files": files}]})
    said = hub.fails(*PUSH, cwd=quick)
    assert "quick-q8_0.gguf: the .gitignore" in said


def test_a_file_that_was_changed_is_not_sent(hub: Hub, quick: Path) -> None:
    gguf = quick / "runs" / "quick" / "export" / "quick-q8_0.gguf"
    gguf.write_bytes(gguf.read_bytes()[:-1] + b"!")
    said = hub.fails(*PUSH, cwd=quick)
    assert "quick-q8_0.gguf has been changed" in said


def test_a_placeholder_that_there_is_not(hub: Hub, tmp_path: Path) -> None:
    said = hub.fails("train", "--recipe", "tiny", "--set", "hub.branch=N{rows}", cwd=tmp_path)
    assert "{rows}" in said
    assert "{n}" in said
