"""Templates that write a conversation in another way once it goes on: a row for each answer, as it will be asked.

What is asked is transformers' own rendering with the generation prompt; what follows is written out by hand.
"""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from ggufy.data import prepare, source
from ggufy.data.budget import Budget
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.errors import ModelError
from ggufy.model import tiny
from ggufy.recipe.schema import Data
from tests.data.renamed import CHATML, VENDORED, base_of
from tests.data.test_answers_end import turns

DAY = date(2026, 3, 7)
LLAMA = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates/meta-llama-Llama-3.2-3B-Instruct.jinja"
ASK = "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
OPENED = ASK.replace("\n\n'", "\n\n<think>\n'")
TURN = "'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
# As Qwen3's: only the last answer has a place for its thinking, which is empty where there is none.
THINKING = (
    "{{- bos_token }}{%- for m in messages %}{%- set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    f"{{%- if m.role == 'assistant' and loop.last %}}{{{{- {TURN} + '<think>\n' + (m.content.split('</think>')[0]"
    ".split('<think>')[-1].strip('\n') if '</think>' in m.content else '') + '\n</think>\n\n' + said + '<|eot_id|>' }}"
    f"{{%- else %}}{{{{- {TURN} + said + '<|eot_id|>' }}}}{{%- endif %}}{{%- endfor %}}{ASK}"
)
# As Phi-3.5's: a token closes the whole, where no answer is asked for.
CLOSED = (
    f"{{{{- bos_token }}}}{{%- for m in messages %}}{{{{- {TURN} + m.content + '<|eot_id|>\n' }}}}{{%- endfor %}}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- else %}{{- eos_token }}{%- endif %}"
)
# As Mistral-Nemo's: the system text is written into the last turn, if that is the user's.
SYSTEM_LAST = (
    "{%- if messages[0].role == 'system' %}{%- set first = messages[0].content %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}{%- for m in turns %}"
    "{%- if m.role == 'user' and loop.last and first is defined %}"
    f"{{{{- {TURN} + first + '\n\n' + m.content + '<|eot_id|>' }}}}"
    f"{{%- else %}}{{{{- {TURN} + m.content + '<|eot_id|>' }}}}{{%- endif %}}{{%- endfor %}}{ASK}"
)
# Another end after the last answer.
OTHER_LAST = (
    f"{{{{- bos_token }}}}{{%- for m in messages %}}{{{{- {TURN} + m.content }}}}"
    "{%- if loop.last and m.role == 'assistant' %}{{- eos_token }}{%- else %}{{- '<|eom_id|>' }}{%- endif %}"
    f"{{%- endfor %}}{ASK}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is the lamp on?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Very sure."},
]
THOUGHT = [*TALK[1:2], {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}, *TALK[3:4], TALK[4]]


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


def with_template(base: Path, folder: Path, template: str) -> Path:
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


def asked(folder: Path, talk: list[dict[str, Any]]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False)
    return [int(number) for number in found]


@pytest.mark.parametrize(
    ("template", "talk", "said"),
    [
        (THINKING, TALK, ["<think>\n\n</think>\n\nYes.<|eot_id|>", "<think>\n\n</think>\n\nVery sure.<|eot_id|>"]),
        (THINKING, TALK[1:3], ["<think>\n\n</think>\n\nYes.<|eot_id|>"]),
        (
            THINKING,
            THOUGHT,
            ["<think>\nHm.\n</think>\n\nYes.<|eot_id|>", "<think>\n\n</think>\n\nVery sure.<|eot_id|>"],
        ),
        (THINKING.replace(ASK, OPENED), TALK[1:3], ["\n</think>\n\nYes.<|eot_id|>"]),
        (SYSTEM_LAST, TALK, ["Yes.<|eot_id|>", "Very sure.<|eot_id|>"]),
        (SYSTEM_LAST, TALK[:3], ["Yes.<|eot_id|>"]),
        (OTHER_LAST, TALK, ["Yes.<|eot_id|>", "Very sure.<|eot_id|>"]),
    ],
)
def test_each_answer_is_learnt_as_it_will_be_asked(
    template: str, talk: list[dict[str, Any]], said: list[str], base: Path, tmp_path: Path
) -> None:
    folder = with_template(base, tmp_path / "base", template)
    tokenizer = Tokenizer(folder, DAY, "responses")
    examples = tokenizer.examples(Conversation(talk))
    answers = [at for at, turn in enumerate(talk) if turn["role"] == "assistant"]
    assert len(examples) == len(answers)
    for at, example, text in zip(answers, examples, said, strict=True):
        before = asked(folder, talk[:at])
        assert example.input_ids[: len(before)] == before
        assert example.labels[: len(before)] == [IGNORED] * len(before)
        told = example.labels[len(before) :]
        assert tokenizer.decode([label for label in told if label != IGNORED]) == text
        assert IGNORED not in told[: len(told) - told[::-1].index(tokenizer.special["<|eot_id|>"])]


def test_a_token_that_closes_the_whole_is_not_learnt(base: Path, tmp_path: Path) -> None:
    """It follows the end of the last answer, and stands in no conversation that goes on."""
    folder = with_template(base, tmp_path / "base", CLOSED)
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        values = json.loads((folder / name).read_text("utf-8")) if (folder / name).is_file() else {}
        eot, end = (Tokenizer(base, DAY, "responses").special[text] for text in ("<|eot_id|>", "<|end_of_text|>"))
        values |= {"eos_token": "<|end_of_text|>"} if name.startswith("tok") else {"eos_token_id": [eot, end]}
        (folder / name).write_text(json.dumps(values), "utf-8")
    tokenizer = Tokenizer(folder, DAY, "responses")
    [example] = tokenizer.examples(Conversation(TALK[1:]))
    before = asked(folder, TALK[1:4])
    assert example.input_ids[: len(before)] == before
    assert tokenizer.decode(example.input_ids[len(before) :]) == "Very sure.<|eot_id|>"
    stretches = tokenizer.decode([label for label in example.labels if label != IGNORED])
    assert stretches == "Yes.<|eot_id|>Very sure.<|eot_id|>"
    [single] = tokenizer.examples(Conversation(TALK[1:3]))
    before = asked(folder, TALK[1:2])
    assert single.input_ids[: len(before)] == before
    assert tokenizer.decode(single.input_ids[len(before) :]) == "Yes.<|eot_id|>"


@pytest.mark.parametrize(
    ("template", "naming"),
    [
        # Left out in what is asked, too.
        (SYSTEM_LAST.replace("first + '\n\n' +", "'' +"), "leaves out what the system turn says: 'Be brief.'"),
        # The header of what is asked is not that of an answer.
        (SYSTEM_LAST.replace(ASK, ASK.replace("assistant", "model")), "leaves out what the system turn says"),
        (turns("<|eot_id|>") + OPENED, "not how an answer begins"),
    ],
)
def test_what_is_asked_without_or_otherwise_is_refused(template: str, naming: str, base: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(with_template(base, tmp_path / "base", template), DAY, "responses")
    with pytest.raises((BadRow, ModelError)) as caught:
        tokenizer.examples(Conversation(TALK))
    assert naming in str(caught.value)


@pytest.mark.parametrize(("overflow", "rows", "kept"), [("truncate", 2, 3), ("drop", 1, 1)])
def test_rows_made_of_answers_are_counted(overflow: str, rows: int, kept: int, base: Path, tmp_path: Path) -> None:
    folder = with_template(base, tmp_path / "base", THINKING)
    path = tmp_path / "rows.jsonl"
    long = [*TALK[1:4], {"role": "assistant", "content": "Very sure. " * 30}]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in (TALK[1:3], long)))
    data = Data(source=path.as_posix(), overflow=overflow)
    counts = prepare.prepare(source.locate(data, offline=True), data, folder, 60, DAY, tmp_path / "out")["train"]
    assert (counts.used, counts.kept, counts.truncated, counts.split_long) == (rows, kept, rows - 1, 0)
    assert counts.dropped_long == 2 - rows
    with pa.OSFile((tmp_path / "out/train.arrow").as_posix()) as file, pa.ipc.open_stream(file) as stream:
        assert sum(batch.num_rows for batch in stream) == kept
    assert ("made into a row for each answer" in counts.text()) is (rows == 2)


def test_a_prompt_that_is_cut_keeps_the_tools_of_its_row(base: Path, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {"type": "object"}}}
    talk = Conversation([{"role": "user", "content": "warm " * 50}, TALK[2]], [tool])
    tokenizer = Tokenizer(with_template(base, tmp_path / "base", LLAMA.read_text("utf-8")), DAY, "responses")
    [cut] = Budget(tokenizer, Data(source="rows.jsonl", prompt_tokens=10), 4096).encode(talk)
    assert cut.cut
    assert '"weather"' in tokenizer.decode(cut.example.input_ids)
    short = len(cut.example.input_ids) + 5
    [further] = Budget(tokenizer, Data(source="rows.jsonl", prompt_tokens=40), short).encode(talk)
    assert further.further
    assert '"weather"' in tokenizer.decode(further.example.input_ids)


VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
LAMP = {"type": "function", "function": {"name": "get_lamp", "description": "", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "get_lamp", "arguments": {"room": "hall"}}}
CALLED = [
    {"role": "user", "content": "Is the lamp on?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "get_lamp", "content": "on"},
    {"role": "assistant", "content": "Yes, it is on."},
]


def spoken(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("template", "end", "talk", "pieces"),
    [
        # A line break of the header and those that an answer begins with are one token.
        (CHATML, "<|im_end|>", spoken("q", "\n\nthe lamp", "p", "the end"), True),
        (CHATML, "<|im_end|>", spoken("q", "yes", "p", "\nthe lamp", "r", "the end"), True),
        (CHATML, "<|im_end|>", spoken("q", "\nthe lamp", "p", "\n\nthe end"), True),
        # Only what is asked before the last answer has to be so, and one answer is in pieces by itself.
        (CHATML, "<|im_end|>", spoken("q", "yes", "p", "\n\nthe lamp"), False),
        (CHATML, "<|im_end|>", spoken("q", "yes", "p", "the end"), False),
        # The space of the prompt is a part of the first word.
        (VICUNA, "</s>", spoken("q", "the lamp is on.", "p", "the lamp is on, yes."), True),
        ("Qwen3.5-4B", "<|im_end|>", CALLED, True),
        ("StepFun3.5-Flash", "<|im_end|>", CALLED, True),
        ("Bielik-11B-v3.0-Instruct", "<|im_end|>", CALLED, True),
    ],
)
def test_earlier_answers_are_tokenized_as_they_will_be_asked(
    template: str, end: str, talk: list[dict[str, Any]], pieces: bool, base: Path, tmp_path: Path
) -> None:
    """At once with all that comes before what is asked, also where one of them is learnt in a piece of its own."""
    tools = [LAMP] if talk == CALLED else None
    text = template if "{" in template else (VENDORED / f"{template}.jinja").read_text("utf-8")
    folder = base_of(base, tmp_path / "base", text, end)
    tokenizer = Tokenizer(folder, DAY, "responses")
    examples = tokenizer.examples(Conversation(talk, tools))
    answers = [at for at, turn in enumerate(talk) if turn["role"] == "assistant"]
    assert len(examples) == (len(answers) if pieces else 1)
    theirs = AutoTokenizer.from_pretrained(folder)
    for number, at in enumerate(answers):
        before = theirs.apply_chat_template(talk[:at], tools=tools, add_generation_prompt=True, return_dict=False)
        if tokenizer.bos not in before:
            before = [tokenizer.bos, *before]
        example = examples[number if pieces else 0]
        assert example.input_ids[: len(before)] == before
        assert example.labels[len(before) - 1] == IGNORED
        stop = next(n for n in range(len(before), len(example.labels)) if example.labels[n] in tokenizer.stopping)
        assert example.labels[len(before) : stop + 1] == example.input_ids[len(before) : stop + 1]
        said = theirs.decode(example.labels[len(before) : stop + 1])
        assert talk[at]["content"] in said
        assert said.endswith(end)
        if pieces:
            assert {*example.labels[: len(before)], *example.labels[stop + 1 :]} == {IGNORED}
