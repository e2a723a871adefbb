"""Tokens of the template that were added without the flag `special` are its own all the same."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ggufy.data import source
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation, Plain
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.model import tiny
from tests.data.renamed import CHATML, NAMES, base_of

DAY = date(2026, 3, 7)
# The marks put together from the roles.
ROLES = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ASKED, TOLD = {"role": "user", "content": "q"}, {"role": "assistant", "content": "hello"}


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def named(folder: Path, *, special: bool, **names: str) -> Path:
    """The folder, with more of its spare tokens renamed."""
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text("utf-8"))
    spare = [token for token in spec["added_tokens"] if "reserved" in token["content"]]
    for token, name in zip(spare, names.values(), strict=False):
        token |= {"content": name, "special": special}
    path.write_text(json.dumps(spec), "utf-8")
    return folder


@pytest.mark.parametrize("plain", [(), NAMES])
@pytest.mark.parametrize(
    ("turns", "mark"),
    [
        ([{**ASKED, "content": "q<|im_end|>\n<|im_start|>assistant\nx"}, TOLD], "turn 1 contains .*<|im_end|>"),
        ([{**ASKED, "content": "<|im_start|>system"}, TOLD], "turn 1 contains .*<|im_start|>"),
        ([ASKED, {**TOLD, "content": "hello<|im_end|>"}], "turn 2 contains .*<|im_end|>"),
    ],
)
def test_a_text_with_marks_of_the_template_is_refused(
    turns: list[dict[str, Any]], mark: str, plain: tuple[str, ...], base: Path, tmp_path: Path
) -> None:
    folder = base_of(base, tmp_path / "base", CHATML, "<|im_end|>", plain)
    with pytest.raises(BadRow, match=mark.replace("|", r"\|")):
        Tokenizer(folder, DAY, "responses").encode(turns)


def test_marks_made_of_roles_are_found(base: Path, tmp_path: Path) -> None:
    folder = base_of(base, tmp_path / "base", ROLES, "</s>", NAMES)
    named(folder, special=False, one="<|user|>", two="<|assistant|>", three="<|other|>")
    tokenizer = Tokenizer(folder, DAY, "responses")
    assert {"<|user|>", "<|assistant|>", "</s>"} <= tokenizer.special.keys()
    assert "<|other|>" not in tokenizer.special
    with pytest.raises(BadRow, match=r"<\|assistant\|>"):
        tokenizer.encode([{**ASKED, "content": "q<|assistant|>x"}, TOLD])


@pytest.mark.parametrize("text", ["content", "**bold**", "for", "<think>hm</think>hello", "<tool_call> is a tag", "  "])
def test_words_and_tags_that_were_added_are_for_rows_to_hold(text: str, base: Path, tmp_path: Path) -> None:
    """Though the template's own text names them."""
    template = CHATML + "{# **bold** <think> </think> <tool_call> </tool_call> #}"
    folder = base_of(base, tmp_path / "base", template, "<|im_end|>", NAMES)
    names = dict(enumerate(("content", "for", "  ", "**", "<tool_call>", "</tool_call>")))
    named(folder, special=False, **{f"n{number}": name for number, name in names.items()})
    talk = [ASKED, {**TOLD, "content": f"It is {text} here"}]
    example = Tokenizer(folder, DAY, "responses").encode(talk)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert [n for n in example.labels if n != IGNORED] == theirs.encode(
        f"It is {text} here<|im_end|>", add_special_tokens=False
    )


@pytest.mark.parametrize("plain", [(), NAMES])
@pytest.mark.parametrize("template", ["", CHATML])
def test_an_end_without_the_flag_ends_a_text(template: str, plain: tuple[str, ...], base: Path, tmp_path: Path) -> None:
    folder = base_of(base, tmp_path / "base", template, "<|im_end|>", plain)
    tokenizer = Tokenizer(folder, DAY, "responses")
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = theirs.encode("hello there<|im_end|>", add_special_tokens=False)
    [whole] = tokenizer.examples(Plain("", "hello there"))
    assert whole.input_ids == [tokenizer.bos, *ids]
    assert whole.labels == [IGNORED, *ids]
    [talk] = tokenizer.examples(Conversation([ASKED, {**TOLD, "content": "hello there"}]))
    assert [n for n in talk.labels if n != IGNORED] == ids
    with pytest.raises(BadRow, match=r"the text contains the special token <\|im_end\|>"):
        tokenizer.examples(Plain("", "hello<|im_end|>"))
