"""Where an answer ends whose words, names or arguments stand in other places of what the template writes, too.

What is learnt is written out by hand; what is asked is transformers' own.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ggufy.data import source
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.errors import ModelError
from ggufy.model import tiny
from tests.data.renamed import CHATML, VENDORED, base_of

DAY = date(2026, 3, 7)
HEAD = "'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
ASK = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
EOT, EOM, TAG = "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"
# Reasoning ends with a token that stops the model.
REASONED = (
    f"{{{{ bos_token }}}}{{% for m in messages %}}{{{{ {HEAD} }}}}{{% if m.reasoning_content %}}"
    "{{ 'think: ' + m.reasoning_content + '<|eom_id|>final: ' }}{% endif %}"
    f"{{{{ m.content + '<|eot_id|>' }}}}{{% endfor %}}{ASK}"
)
# A call begins with a special token, and its last one is not that of an answer.
CALLING = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
    f"{{% for m in messages %}}{{{{ {HEAD} }}}}{{% if m.tool_calls %}}{{{{ m.content }}}}{{% for c in m.tool_calls %}}"
    "{{ '<|python_tag|>' + (c.function | tojson) }}{% endfor %}{{ '<|eom_id|>' }}"
    f"{{% else %}}{{{{ m.content + '<|eot_id|>' }}}}{{% endif %}}{{% endfor %}}{ASK}"
)
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def stopping_at(folder: Path, *ends: str) -> Path:
    """The folder, with these as the tokens that stop the model."""
    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(list(ends))
    for name in ("generation_config.json", "config.json"):
        values = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(values | {"eos_token_id": ids}), "utf-8")
    return folder


def learnt(folder: Path, talk: list[dict[str, Any]], tools: list[Any] | None = None) -> list[str]:
    """The text of each stretch that is trained on."""
    tokenizer = Tokenizer(folder, DAY, "responses")
    found: list[list[int]] = []
    for example in tokenizer.examples(Conversation(talk, tools)):
        last = IGNORED
        for label in example.labels:
            if label != IGNORED:
                found += [[]] if last == IGNORED else []
                found[-1].append(label)
            last = label
    return [tokenizer.decode(stretch) for stretch in found]


def thought(answer: str, reasoning: str) -> dict[str, Any]:
    return {"role": "assistant", "content": answer, "reasoning_content": reasoning}


def called(content: str = "", **functions: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in functions.items()]
    return {"role": "assistant", "content": content, "tool_calls": calls}


ASKED = {"role": "user", "content": "q"}
LIT = "Yes, since it is lit."


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        ([ASKED, thought("Yes", LIT)], [f"think: {LIT}{EOM}final: Yes{EOT}"]),
        ([ASKED, thought(LIT, LIT)], [f"think: {LIT}{EOM}final: {LIT}{EOT}"]),
        ([ASKED, thought("final", "The final: it is lit.")], [f"think: The final: it is lit.{EOM}final: final{EOT}"]),
        ([ASKED, thought("eo", "eom, eot")], [f"think: eom, eot{EOM}final: eo{EOT}"]),
        (
            [ASKED, thought("Yes", LIT), ASKED, thought("No", "No. Not at all.")],
            [f"think: {LIT}{EOM}final: Yes{EOT}", f"think: No. Not at all.{EOM}final: No{EOT}"],
        ),
        (
            [ASKED, thought("Yes", LIT), ASKED, {"role": "assistant", "content": "eot"}],
            [f"think: {LIT}{EOM}final: Yes{EOT}", f"eot{EOT}"],
        ),
    ],
)
def test_an_answer_whose_words_stand_in_its_reasoning(
    talk: list[dict[str, Any]], said: list[str], base: Path, tmp_path: Path
) -> None:
    folder = stopping_at(base_of(base, tmp_path / "base", REASONED, EOT), EOM, EOT)
    assert learnt(folder, talk) == said


@pytest.mark.parametrize("answers", [["Yes"], ["Yes", "No"]])
def test_solar_s_own_template(answers: list[str], base: Path, tmp_path: Path) -> None:
    text = (VENDORED / "upstage-Solar-Open-100B.jinja").read_text("utf-8")
    folder = base_of(base, tmp_path / "base", text, "<|end|>")
    talk = [turn for answer in answers for turn in (ASKED, thought(answer, f"{answer}, since it is lit."))]
    assert learnt(folder, talk) == [
        f"<|think|>{answer}, since it is lit.<|end|><|begin|>assistant<|content|>{answer}<|end|>" for answer in answers
    ]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (called(f={"x": 1}), f'{TAG}{{"name": "f", "arguments": {{"x": 1}}}}{EOM}'),
        (called(f={}), f'{TAG}{{"name": "f", "arguments": {{}}}}{EOM}'),
        (called(eom_id={"e": "id"}), f'{TAG}{{"name": "eom_id", "arguments": {{"e": "id"}}}}{EOM}'),
        (called("Let me look.", f={"x": 1}), f'Let me look.{TAG}{{"name": "f", "arguments": {{"x": 1}}}}{EOM}'),
        (
            called(f={"x": 1}, g={"y": [1, 2]}),
            f'{TAG}{{"name": "f", "arguments": {{"x": 1}}}}{TAG}{{"name": "g", "arguments": {{"y": [1, 2]}}}}{EOM}',
        ),
    ],
)
def test_a_call_ends_behind_its_arguments(turn: dict[str, Any], said: str, base: Path, tmp_path: Path) -> None:
    """Though a token that begins it stops the model, too."""
    folder = stopping_at(base_of(base, tmp_path / "base", CALLING, EOT), TAG, EOM, EOT)
    talk = [ASKED, turn, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "done"}]
    assert learnt(folder, talk, [TOOL]) == [said, f"done{EOT}"]
    assert learnt(folder, talk[:2], [TOOL]) == [said]


@pytest.mark.parametrize("ends", [(EOT,), (EOT, TAG)])
@pytest.mark.parametrize("turn", [called(f={"x": 1}), called("Let me look.", f={"x": 1}), called(f={}, g={})])
def test_the_token_that_ends_a_call_is_named(
    ends: tuple[str, ...], turn: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    folder = stopping_at(base_of(base, tmp_path / "base", CALLING, EOT), *ends)
    with pytest.raises(ModelError, match=r"ends an answer with <\|eom_id\|> \(744\), which does not stop the model"):
        learnt(folder, [ASKED, turn, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "done"}])


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("rest", ["[END]", "<|start_header_id|>user", "and more<|eot_id|>"])
def test_what_follows_the_end_of_any_answer_is_refused(last: bool, rest: str, base: Path, tmp_path: Path) -> None:
    template = (
        f"{{{{ bos_token }}}}{{% for m in messages %}}{{{{ {HEAD} + m.content + '<|eot_id|>' }}}}"
        "{% if m.content == 'Yes' %}{{ REST }}{% endif %}{% endfor %}" + ASK
    )
    folder = base_of(base, tmp_path / "base", template.replace("REST", repr(rest)), EOT)
    talk = [ASKED, {"role": "assistant", "content": "Yes"}]
    later = [ASKED, {"role": "assistant", "content": "No"}]
    with pytest.raises(ModelError, match="after the end of an answer") as caught:
        learnt(folder, [*later, *talk] if last else [*talk, *later])
    assert repr(rest) in caught.value.message


OPENED = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
HM, HELLO = "<think>\nhm\n</think>\n\nhello", "hm\n</think>\n\nhello<|im_end|>"


def says(*texts: str) -> list[dict[str, Any]]:
    return [turn for text in texts for turn in (ASKED, {"role": "assistant", "content": text})]


@pytest.mark.parametrize(
    ("template", "talk", "said"),
    [
        (OPENED, says(HM), [HELLO]),
        (OPENED, says("\n" + HM + "\n"), None),
        (OPENED, says(HM, "<think>\n\n</think>\n\nbye"), [HELLO, "\n</think>\n\nbye<|im_end|>"]),
        # What is no thinking is not how an answer begins.
        (OPENED, says("hello"), None),
        (OPENED.replace("+ m.content +", "+ m.content.replace('hm', '') +"), says(HM), None),
        ("Qwen3.5-4B", says(HM), [HELLO]),
        ("Qwen3.5-4B", says("<think>hm</think>hello"), [HELLO]),
        ("Qwen3.5-4B", says("<think>\n\nhm\n\n</think>\n\n\n\nhello\n"), [HELLO]),
        ("Qwen3.5-4B", says("hello"), ["\n</think>\n\nhello<|im_end|>"]),
        ("Qwen3.5-4B", says(HM, "bye"), [HELLO, "\n</think>\n\nbye<|im_end|>"]),
        ("Qwen-Qwen3-0.6B", says("<think>hm</think>hello"), [f"<think>\n{HELLO}"]),
        # What stands before the thinking is left out.
        ("Qwen-Qwen3-0.6B", says("Well. <think>hm</think>hello"), None),
    ],
)
def test_thinking_that_the_generation_prompt_opens(
    template: str, talk: list[dict[str, Any]], said: list[str] | None, base: Path, tmp_path: Path
) -> None:
    text = template if "{" in template else (VENDORED / f"{template}.jinja").read_text("utf-8")
    folder = base_of(base, tmp_path / "base", text, "<|im_end|>", plain=("<think>", "</think>"))
    if said is None:
        with pytest.raises((BadRow, ModelError), match=r"not how an answer begins|leaves out a part of the answer"):
            learnt(folder, talk)
        return
    assert learnt(folder, talk) == said
    theirs = AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer(folder, DAY, "responses")
    before = theirs.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.examples(Conversation(talk))[-1].input_ids
    assert ids[: len(before) + 1] == [tokenizer.bos, *before]
