"""`ggufy data --push`: the rows of a recipe on the Hub, as a training sees them, and nothing that must not leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from pyarrow import parquet

from tests.hub.conftest import READER, Hub

RECIPE = """
extends: tiny
data:
  source: tasks.jsonl
  train_size: null
  shuffle_seed: 5
  on_bad_row: skip
  prompt: "[{TASK}] {prompt}"
  eval_source: held out.jsonl
hub:
  language: [en, de]
"""
PUSH = ("data", "--recipe", "mine.yaml", "--push", "ann/chats")


def _row(task: str, asked: str, said: str) -> str:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return json.dumps({"TASK": task, "messages": turns}, ensure_ascii=False) + "\n"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a recipe and its rows, one of them unusable."""
    rows = [_row("ask", f"Wie heißt {n}?", f"Nummer {n} 🌻") for n in range(6)]
    (tmp_path / "tasks.jsonl").write_text("".join([*rows, _row("ask", "nothing", "")]), "utf-8")
    (tmp_path / "held out.jsonl").write_text(_row("ask", "And now?", "Now."), "utf-8")
    (tmp_path / "mine.yaml").write_text(RECIPE, "utf-8")
    return tmp_path


def test_what_arrives_trains_as_the_recipe_does(hub: Hub, work: Path) -> None:
    said = hub.works(*PUSH, cwd=work)
    assert f"{hub.url}/datasets/ann/chats" in said
    there = hub.files("ann/chats", kind="dataset")
    names = {split: f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation")}
    assert there.keys() == {"README.md", *names.values()}
    folder = work / "datasets" / "chats"
    for name in there:
        assert hub.read("ann/chats", name, kind="dataset") == (folder / name).read_bytes()
    rows = parquet.read_table(folder / names["train"]).to_pylist()
    assert len(rows) == 6
    assert all(row["messages"][0]["content"].startswith("[ask] Wie heißt") for row in rows)
    card = DatasetCard((folder / "README.md").read_text("utf-8"))
    assert card.data.language == ["en", "de"]
    assert card.data.license is None
    assert [one["split"] for one in card.data.configs[0]["data_files"]] == ["train", "validation"]
    assert "`tasks.jsonl`, which is not on the Hub" in card.text
    assert "`held out.jsonl`" in card.text
    # As somebody else would use it: the token ids, their order and what is trained on are those of the recipe.
    again = ("--set", "data.source=datasets/chats", "--set", "data.prompt=null", "--set", "data.eval_source=null")
    again += ("--set", "data.eval_split=validation", "--set", "data.shuffle_seed=null")
    ours, theirs = (
        json.loads(hub.works("data", "--recipe", "mine.yaml", *options, "--json", cwd=work)) for options in ((), again)
    )
    for key in ("example", "tokens_per_epoch", "trained_tokens_per_epoch", "histogram"):
        assert theirs[key] == ours[key]
    assert theirs["splits"]["eval"]["tokens"] == ours["splits"]["eval"]["tokens"]


def test_again_nothing_is_sent_and_a_split_that_has_gone_goes(hub: Hub, work: Path) -> None:
    hub.works(*PUSH, cwd=work)
    sent, receipt = hub.stored(), (work / "datasets/chats/hub.json").read_bytes()
    assert "nothing was sent" in hub.works(*PUSH, cwd=work)
    assert hub.stored() == sent
    assert hub.state("ann/chats", "dataset")["commits"] == 2
    assert (work / "datasets/chats/hub.json").read_bytes() == receipt
    held = json.loads(receipt)["pushes"]["ann/chats@main"]
    assert held["commit"] == hub.state("ann/chats", "dataset")["branches"]["main"]
    hub.works(*PUSH, "--branch", "short", "--set", "data.train_size=2", cwd=work)
    assert "made" not in hub.works(*PUSH, cwd=work)
    assert hub.state("ann/chats", "dataset")["branches"].keys() == {"main", "short"}
    edit = {"kind": "dataset", "name": "ann/chats", "branch": "main", "path": "data/theirs.parquet", "text": "theirs"}
    hub.control("edit", edit)
    hub.works(*PUSH, "--set", "data.eval_source=null", cwd=work)
    there = hub.files("ann/chats", kind="dataset")
    assert there.keys() == {"README.md", "data/train-00000-of-00001.parquet", "data/theirs.parquet"}
    assert not list(work.glob("datasets/chats/data/validation*"))


def test_the_card_of_a_branch_says_which(hub: Hub, work: Path) -> None:
    said = hub.works(*PUSH, "--branch", "b2", cwd=work)
    assert f"{hub.url}/datasets/ann/chats/tree/b2" in said
    card = hub.read("ann/chats", "README.md", "b2", kind="dataset").decode()
    assert 'load_dataset("ann/chats", split="train", revision="b2")' in card
    assert "`data.source: ann/chats`, `data.revision: b2`" in card
    hub.works(*PUSH, cwd=work)
    assert "revision" not in hub.read("ann/chats", "README.md", kind="dataset").decode()


def test_prompts_with_completions_and_sources_on_the_hub(hub: Hub, work: Path) -> None:
    """For a base without a chat template a row is a prompt and what follows it; two data sets, and what they say."""
    rows = [json.dumps({"prompt": f"{n} + {n} = ", "completion": f"{n + n}"}) + "\n" for n in range(3)]
    for name, language in (("lab/sums", "en"), ("lab/more", ["fr", "not a language"])):
        card = {"license": "mit", "language": language}
        repo = {"kind": "dataset", "name": name, "files": {"train.jsonl": "".join(rows)}, "card": card}
        hub.control("state", {"repos": [repo]})
    hub.works("data", "--recipe", "tiny", cwd=work)
    [base] = (path.parent for path in Path(hub.env["GGUFY_CACHE"]).glob("*/config.json"))
    plain = work / "plain"
    plain.mkdir()
    for path in base.iterdir():
        if path.suffix in (".json", ".safetensors") and path.name != "chat_template.json":
            (plain / path.name).write_bytes(path.read_bytes())
    config = json.loads((plain / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    recipe = (
        "extends: tiny\nmodel: {base: ./plain}\ndata: {source: lab/sums, train_size: null, more: [{source: lab/more}]}"
    )
    (work / "mine.yaml").write_text(recipe)
    hub.works(*PUSH, cwd=work)
    found = parquet.read_table(work / "datasets/chats/data/train-00000-of-00001.parquet").to_pylist()
    assert found == [json.loads(row) for row in rows] * 2
    card = DatasetCard((work / "datasets/chats/README.md").read_text("utf-8"))
    assert (card.data.license, card.data.language) == ("mit", ["en", "fr"])
    assert card.data.to_dict()["source_datasets"] == ["lab/sums", "lab/more"]


def _nothing(work: Path) -> None:
    del work


KEY = "hf_" + "Zz9" * 12
BAD: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], dict[str, str], str, str]] = {
    "a key in a row": (
        lambda work: (work / "tasks.jsonl").write_text(_row("a", "b", "c") + _row("ask", "my key?", f"It is {KEY}.")),
        (),
        {},
        "tasks.jsonl:2 holds a Hugging Face token",
        "remove it, and",
    ),
    "read only": (_nothing, (), {"token": READER}, "can only read", "write access"),
    "someone else's": (
        _nothing,
        ("--push", "bob/x"),
        {},
        "the token belongs to ann, who may not write to bob",
        "--push ann/x",
    ),
    "a model already": (_nothing, ("--push", "ann/model"), {}, "a model already", "another --push"),
    "public already": (_nothing, ("--push", "ann/set", "--private"), {}, "and is public", "private at"),
    "somebody's README": (
        lambda work: (
            (work / "datasets/chats").mkdir(parents=True) or (work / "datasets/chats/README.md").write_text("mine")
        ),
        (),
        {},
        "README.md already exists",
        "--out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_must_not_leave(hub: Hub, work: Path, case: str) -> None:
    prepare, options, how, error, hint = BAD[case]
    prepare(work)
    repos = [{"kind": "model", "name": "ann/model"}, {"kind": "dataset", "name": "ann/set"}]
    hub.control("state", {"repos": repos})
    said = hub.fails(*PUSH, *options, cwd=work, **how)
    assert error in said.splitlines()[0]
    assert hint in said.splitlines()[1]
    assert KEY not in said
    assert "dataset:ann/chats" not in hub.control("look")["repos"]
    assert all(KEY.encode() not in path.read_bytes() for path in (hub.folder / "bodies").iterdir())
    assert not list(work.rglob("*.parquet"))


def test_words_with_hyphens_are_no_keys_and_rows_may_name_folders(hub: Hub, work: Path) -> None:
    page = "https://example.org/sk-hn-what-are-your-favourite-books-of-2020-and-before-that"
    long = _row("ask", page, f"desk-With-A-Very-Long-Name-Of-2020-And-More, {work}/x")
    # One that keeps its end: data of which none does is refused.
    (work / "tasks.jsonl").write_text(long + _row("ask", "Who?", "Me."))
    hub.works(*PUSH, cwd=work)
