"""`ggufy export` of a repository whose adapters lie in folders, as trainers push checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gguf import GGUFReader

from tests.hub.conftest import Hub

REPO = "ann/tuned"
HOW = ("--base", "builtin:tiny", "--quant", "q8_0", "--no-logits")


def pushed(hub: Hub, quick: Path, *folders: str) -> None:
    """A repository with the adapter of quick in these folders; "" is the repository itself."""
    place = quick.parent / "pushed"
    for folder in folders:
        shutil.copytree(quick / "runs/quick/adapter", place / folder, dirs_exist_ok=True)
    hub.control("state", {"repos": [{"kind": "model", "name": REPO, "folder": str(place)}]})


def tensors(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


def downloaded(hub: Hub) -> list[str]:
    return [r["path"].partition("/resolve/")[2] for r in hub.requests() if "/resolve/" in r["path"]]


def test_the_only_one_is_found(hub: Hub, quick: Path) -> None:
    pushed(hub, quick, "run/checkpoint-100")
    said = hub.works("export", REPO, *HOW, cwd=quick)
    assert "ann/tuned holds its adapter in a folder of its own, run/checkpoint-100, which is exported" in said
    made = quick / "exports/tuned/tuned-q8_0.gguf"
    assert tensors(made) == tensors(quick / "runs/quick/export/quick-q8_0.gguf")
    assert json.loads((made.parent / "source.json").read_text())["source"] == f"hub:{REPO}/run/checkpoint-100"
    assert "up to date" in hub.works("export", REPO, *HOW, cwd=quick)
    # It is found again by its folder; and without the Hub, as it is here.
    assert "as merged" in hub.works("verify", "exports/tuned", "--no-logits", cwd=quick)
    assert "up to date" in hub.works("export", REPO, *HOW, cwd=quick, HF_HUB_OFFLINE="1")


def test_of_several_one_is_named(hub: Hub, quick: Path) -> None:
    pushed(hub, quick, "checkpoint-100", "checkpoint-200")
    said = hub.fails("export", REPO, *HOW, cwd=quick)
    assert "ann/tuned is no adapter, but 2 of its folders are" in said
    assert "`ggufy export ann/tuned/checkpoint-100`, `ggufy export ann/tuned/checkpoint-200`" in said
    hub.works("export", f"{REPO}/checkpoint-200", *HOW, cwd=quick)
    assert (quick / "exports/tuned-checkpoint-200/tuned-checkpoint-200-q8_0.gguf").is_file()
    # The weights of the other are not fetched for it.
    weights = [path for path in downloaded(hub) if path.endswith(".safetensors")]
    assert weights
    assert all(path.endswith("checkpoint-200/adapter_model.safetensors") for path in weights)
    said = hub.fails("export", f"{REPO}/checkpoint-300", *HOW, cwd=quick)
    assert "ann/tuned/checkpoint-300: there is no adapter_config.json and no config.json" in said
    assert "name one of its adapters: `ggufy export ann/tuned/checkpoint-100`" in said


def test_one_at_the_top_is_meant_before_others(hub: Hub, quick: Path) -> None:
    pushed(hub, quick, "", "checkpoint-100")
    assert "folder of its own" not in hub.works("export", REPO, *HOW, cwd=quick)
    assert not [path for path in downloaded(hub) if "checkpoint-100/adapter_model" in path]
    hub.works("export", f"{REPO}/checkpoint-100", *HOW, cwd=quick)
    assert (quick / "exports/tuned-checkpoint-100/tuned-checkpoint-100-q8_0.gguf").is_file()


def test_a_tokenizer_beside_its_folder_is_its_own(hub: Hub, quick: Path) -> None:
    """As `model.save_pretrained(OUT); tokenizer.save_pretrained(OUT)` leave an adapter that has a name."""
    place = quick.parent / "pushed"
    (place / "out" / "policy").mkdir(parents=True)
    for path in (quick / "runs/quick/adapter").iterdir():
        shutil.copyfile(path, place / "out" / ("policy" if path.name.startswith("adapter") else "") / path.name)
    (place / "out" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    hub.control("state", {"repos": [{"kind": "model", "name": REPO, "folder": str(place)}]})
    said = hub.works("export", REPO, *HOW, cwd=quick)
    assert "the adapter's own tokenizer is used, not the base's: another chat template" in said
    # That beside a model is not.
    (place / "out" / "config.json").write_text("{}")
    hub.control("state", {"repos": [{"kind": "model", "name": "ann/other", "folder": str(place)}]})
    said = hub.works("export", "ann/other/out/policy", *HOW, cwd=quick)
    assert "own tokenizer" not in said


def test_added_tokens_in_a_file_of_their_own_come_along(hub: Hub, quick: Path, base: Path) -> None:
    """transformers reads them, where tokenizer_config.json lists none."""
    place = Path(shutil.copytree(base, quick.parent / "pushed", ignore=shutil.ignore_patterns("stamp.json")))
    tokens = json.loads((place / "tokenizer.json").read_text())["added_tokens"]
    spec = json.loads((place / "tokenizer.json").read_text()) | {"added_tokens": []}
    (place / "tokenizer.json").write_text(json.dumps(spec))
    (place / "added_tokens.json").write_text(json.dumps({token["content"]: token["id"] for token in tokens}))
    hub.control("state", {"repos": [{"kind": "model", "name": "ann/model", "folder": str(place)}]})
    hub.works("export", "ann/model", *HOW[2:], cwd=quick)
    hub.works("export", str(place), *HOW[2:], "--out", "here", cwd=quick)
    there, here = (
        [bytes(field.parts[i]) for i in field.data]
        for path in ("exports/model/model-q8_0.gguf", "here/pushed-q8_0.gguf")
        for field in [GGUFReader(quick / path).fields["tokenizer.ggml.token_type"]]
    )
    assert there == here


def test_a_repository_with_neither(hub: Hub, quick: Path) -> None:
    hub.control("state", {"repos": [{"kind": "model", "name": REPO, "files": {"README.md": "soon"}}]})
    assert "ann/tuned: no config.json there" in hub.fails("export", REPO, *HOW[2:], cwd=quick)
    said = hub.fails("export", "ann/gone/checkpoint-1", *HOW, cwd=quick)
    assert "ann/gone: no such repository, or it is private" in said


def test_a_path_here_is_not_looked_for_there(hub: Hub, quick: Path) -> None:
    assert "runs/quick/gone" in hub.fails("export", "runs/quick/gone", *HOW[2:], cwd=quick)
    assert not hub.requests()
