"""Bases with more than one chat template, in each of the ways that transformers reads."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ggufy.data import source
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation
from ggufy.data.tokenize import Tokenizer
from ggufy.model import tiny
from tests.data.renamed import CHATML, base_of

DAY = date(2026, 3, 7)
END = "<|im_end|>"
CALLING = CHATML.replace("m.content", "(m.content or m.tool_calls[0] | tojson)") + "{# tools #}"
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
ASKED, DONE = {"role": "user", "content": "q"}, {"role": "assistant", "content": "done"}
CALLED = [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}, DONE]
WAYS = ("list", "dict", "files", "beside")


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def with_templates(base: Path, folder: Path, way: str, **templates: str) -> Path:
    base_of(base, folder, "", END)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    if way in ("list", "dict"):
        listed = [{"name": name, "template": text} for name, text in templates.items()]
        path.write_text(json.dumps(config | {"chat_template": listed if way == "list" else templates}), "utf-8")
        return folder
    more = folder / "additional_chat_templates"
    more.mkdir()
    for name, text in templates.items():
        (folder / "chat_template.jinja" if name == "default" else more / f"{name}.jinja").write_text(text, "utf-8")
    if way == "beside":
        path.write_text(json.dumps(config | {"chat_template": "not this"}), "utf-8")
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("talk", "tools", "what"),
    [
        (CALLED, None, "turn 2 calls a tool"),
        ([*CALLED[:1], DONE, CALLED[2], DONE], None, "the row has a tool's answers"),
    ],
)
def test_a_template_for_tools_that_is_not_used_is_named(
    way: str, talk: list[dict[str, Any]], tools: list[Any] | None, what: str, base: Path, tmp_path: Path
) -> None:
    folder = with_templates(base, tmp_path / "base", way, default=CHATML, tool_use=CALLING)
    with pytest.raises(BadRow) as caught:
        Tokenizer(folder, DAY, "responses").examples(Conversation(talk, tools))
    assert str(caught.value).startswith(
        f"{what}, and only `default` of the base's chat templates is used, which has no"
    )
    assert "make it the chat_template.jinja of a copy of the base" in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_rows_with_tools_are_written_by_the_template_for_them(way: str, base: Path, tmp_path: Path) -> None:
    """As transformers chooses it: `apply_chat_template(tools=...)` takes `tool_use` where there is one."""
    naming = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}" + CALLING
    folder = with_templates(base, tmp_path / "base", way, default=CHATML, tool_use=naming)
    tokenizer, theirs = Tokenizer(folder, DAY, "responses"), AutoTokenizer.from_pretrained(folder)
    for talk in (CALLED, [ASKED, DONE]):
        [example] = tokenizer.examples(Conversation(talk, [TOOL]))
        ids = theirs.apply_chat_template(talk, tools=[TOOL], return_dict=False)
        # What follows the last answer is nothing that the model has to say.
        assert example.input_ids == [tokenizer.bos, *ids][: len(example.input_ids)]
        assert len(example.input_ids) > 10


@pytest.mark.parametrize("way", WAYS)
def test_what_the_hint_says_works(way: str, base: Path, tmp_path: Path) -> None:
    folder = with_templates(base, tmp_path / "base", way, default=CHATML, tool_use=CALLING)
    (folder / "chat_template.jinja").write_text(CALLING, "utf-8")
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    tokenizer = Tokenizer(folder, DAY, "responses")
    [example] = tokenizer.examples(Conversation(CALLED, [TOOL]))
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = theirs.apply_chat_template(CALLED, tools=[TOOL], return_dict=False)
    assert example.input_ids == [tokenizer.bos, *ids]


@pytest.mark.parametrize("way", WAYS)
def test_rows_without_tools_are_written_by_the_default(way: str, base: Path, tmp_path: Path) -> None:
    folder = with_templates(base, tmp_path / "base", way, default=CHATML, tool_use=CALLING, rag="{{ 1 }}")
    tokenizer = Tokenizer(folder, DAY, "responses")
    [example] = tokenizer.examples(Conversation([ASKED, DONE]))
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template([ASKED, DONE], return_dict=False)
    assert example.input_ids == [tokenizer.bos, *ids]


def test_a_lone_template_is_spoken_of_as_before(base: Path, tmp_path: Path) -> None:
    folder = base_of(base, tmp_path / "base", CHATML, END)
    with pytest.raises(BadRow, match=r"^the row has tools, and the base's chat template has no place for them$"):
        Tokenizer(folder, DAY, "responses").examples(Conversation(CALLED, [TOOL]))
