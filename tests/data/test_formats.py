"""Formats and how they are rendered, against transformers' tokenizing and the published prompts."""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ggufy.data import source
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Plain, Sample
from ggufy.data.rows.detect import detect
from ggufy.data.rows.reader import Reader
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.errors import DataError, RecipeError
from ggufy.model import tiny
from ggufy.recipe.recipe import from_values
from ggufy.recipe.schema import Data, Part

DAY = date(2026, 3, 7)
BOS, END = "<|begin_of_text|>", "<|eot_id|>"
PAIR = {"prompt": "What does it cost? A blue kettle, new.\n\nPrice is $", "completion": "42.00"}


@pytest.fixture(scope="module")
def chat_base() -> Path:
    return tiny.ensure(source.sample_texts())


@pytest.fixture(scope="module")
def plain_base(chat_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model as Llama-3.2-3B is one: without a chat template."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copy(chat_base / "tokenizer.json", folder)
    config = json.loads((chat_base / "tokenizer_config.json").read_text("utf-8"))
    config |= {"eos_token": "<|end_of_text|>"}
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def told(tokenizer: Tokenizer, sample: Sample) -> tuple[str, str]:
    """What a sample becomes as text, and what of it is trained on."""
    example = tokenizer.encode(sample)
    return tokenizer.decode(example.input_ids), tokenizer.decode([n for n in example.labels if n != IGNORED])


def test_prompt_and_completion_are_the_ids_transformers_gives_the_whole_text(plain_base: Path) -> None:
    ours, theirs = Tokenizer(plain_base, DAY, "responses"), AutoTokenizer.from_pretrained(plain_base)
    example = ours.encode(Reader("prompt-completion", chat=ours.chat).read(PAIR))
    assert example.input_ids == theirs(PAIR["prompt"] + PAIR["completion"] + theirs.eos_token)["input_ids"]
    prompt = theirs(PAIR["prompt"])["input_ids"]
    assert example.labels == [IGNORED] * len(prompt) + example.input_ids[len(prompt) :]
    assert ours.decode(example.labels[len(prompt) :]) == "42.00<|end_of_text|>"


def test_the_prompt_is_tokenized_as_it_will_be_asked(plain_base: Path) -> None:
    """Also where a token of the whole text would reach over the boundary."""
    ours = Tokenizer(plain_base, DAY, "responses")
    for prompt, completion in (("The answ", "er is France"), ("a ", " b"), ("Hel", "lo")):
        example = ours.encode(Plain(prompt, completion))
        asked = ours.rust.encode(prompt, add_special_tokens=False).ids
        assert example.input_ids[1 : 1 + len(asked)] == asked
        assert example.labels[: 1 + len(asked)] == [IGNORED] * (1 + len(asked))
        assert told(ours, Plain(prompt, completion))[1] == completion + "<|end_of_text|>"


def test_a_base_with_a_template_gets_prompt_and_completion_as_turns(chat_base: Path) -> None:
    tokenizer = Tokenizer(chat_base, DAY, "responses")
    text, trained = told(tokenizer, Reader("prompt-completion").read({"prompt": "a?", "completion": "b."}))
    assert text.endswith(f"\n\na?{END}<|start_header_id|>assistant<|end_header_id|>\n\nb.{END}")
    assert trained == f"b.{END}"


# As published with Stanford Alpaca.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nTranslate.\n\n### Input:\nGood day\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\nSay yes.\n\n### Response:\n"
)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Translate.", "input": "Good day", "output": "Buenos días"}, WITH_INPUT),
        ({"instruction": "Say yes.", "input": "", "output": "Buenos días"}, WITHOUT_INPUT),
        ({"instruction": "Say yes.", "input": None, "output": "Buenos días"}, WITHOUT_INPUT),
        ({"instruction": "Say yes.", "output": "Buenos días"}, WITHOUT_INPUT),
    ],
    ids=["input", "empty", "null", "none"],
)
def test_alpaca_on_a_base_without_a_template(plain_base: Path, row: dict[str, Any], prompt: str) -> None:
    tokenizer = Tokenizer(plain_base, DAY, "responses")
    text, trained = told(tokenizer, Reader("alpaca", chat=tokenizer.chat).read(row))
    assert text == f"{BOS}{prompt}Buenos días<|end_of_text|>"
    assert trained == "Buenos días<|end_of_text|>"


def test_alpaca_on_a_base_with_a_template(chat_base: Path) -> None:
    tokenizer = Tokenizer(chat_base, DAY, "responses")
    row = {"instruction": "Translate.", "input": "Good day", "output": "Buenos días"}
    text, trained = told(tokenizer, Reader("alpaca").read(row))
    assert f"Translate.\n\nGood day{END}" in text
    assert "###" not in text
    assert trained == f"Buenos días{END}"


def test_several_turns_on_a_base_without_a_template(plain_base: Path) -> None:
    tokenizer = Tokenizer(plain_base, DAY, "responses")
    turns = [("system", "Be brief."), ("user", "a?"), ("assistant", "b."), ("user", "c?"), ("assistant", "d.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    text, trained = told(tokenizer, Reader("messages", chat=False).read(row))
    end = "<|end_of_text|>"
    assert text == (
        f"{BOS}Be brief.\n\n### Instruction:\na?\n\n### Response:\nb.{end}"
        f"\n\n### Instruction:\nc?\n\n### Response:\nd.{end}"
    )
    assert trained == f"b.{end}d.{end}"


def test_plain_text_is_trained_on_whole(chat_base: Path) -> None:
    tokenizer = Tokenizer(chat_base, DAY, "responses")
    sample = Reader("text").read({"text": "Once upon a time.\n"})
    assert told(tokenizer, sample) == (f"{BOS}Once upon a time.\n{END}", f"Once upon a time.\n{END}")


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        ({"conversations"}, "sharegpt"),
        ({"messages", "id"}, "messages"),
        ({"instruction", "output"}, "alpaca"),
        ({"instruction", "input", "output", "text"}, "alpaca"),
        ({"prompt", "completion"}, "prompt-completion"),
        ({"text", "url"}, "text"),
    ],
)
def test_the_format_is_told_from_the_columns(columns: set[str], form: str) -> None:
    assert detect(columns, Part(source="x"), "x:1") == form


def test_a_named_format_and_odd_names() -> None:
    part = Part(source="x", format="alpaca", columns={"instruction": "Q", "output": "A"})
    assert detect({"Q", "A", "messages"}, part, "x:1") == "alpaca"
    assert Reader("alpaca", part).read({"Q": "a?", "A": "b."}) == [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b."},
    ]
    with pytest.raises(BadRow, match="the column 'Q' is int, not a string"):
        Reader("alpaca", part).read({"Q": 3, "A": "b."})
    with pytest.raises(DataError, match=r"x:1: data\.columns names 'Q', which is not a column; the columns are A, B"):
        detect(["A", "B"], part, "x:1")
    with pytest.raises(DataError, match=r"x:1: not in the format text, which needs 'text': the columns are A, Q"):
        detect(["Q", "A"], part.model_copy(update={"format": "text"}), "x:1")


def test_odd_names_inside_turns() -> None:
    part = Part(source="x", columns={"messages": "dialogue", "role": "speaker", "content": "said"})
    assert detect({"dialogue"}, part, "x:1") == "messages"
    row = {"dialogue": [{"speaker": "human", "said": "a?"}, {"speaker": "gpt", "said": "b."}]}
    assert [turn["content"] for turn in Reader("messages", part).read(row)] == ["a?", "b."]  # type: ignore[index]


def test_either_kind_of_turn_in_either_column() -> None:
    ours = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]
    theirs = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b."}]
    assert Reader("sharegpt").read({"conversations": ours}) == ours
    assert Reader("messages").read({"messages": theirs}) == ours


@pytest.mark.parametrize(
    ("form", "row", "prompt", "asked"),
    [
        ("alpaca", {"TASK": "sum", "instruction": "1+1", "output": "2"}, "[{TASK}] {instruction}", "[sum] 1+1"),
        # The input is left out in no template.
        ("alpaca", {"instruction": "Add", "input": "1", "output": "2"}, "Now: {instruction}", "Now: Add\n\n1"),
        ("alpaca", {"instruction": "Add", "input": "1", "output": "2"}, "Now: {prompt}", "Now: Add\n\n1"),
        ("alpaca", {"instruction": "Add", "input": "1", "output": "2"}, "{input}: {instruction}", "1: Add"),
        ("alpaca", {"instruction": "Add", "input": None, "output": "2"}, "<{input}> {instruction}", "<> Add"),
        ("alpaca", {"instruction": "Add", "output": "2"}, "<{input}> {instruction}", "<> Add"),
        # Columns that happen to have these names: a whole prompt with its answer, what the row was made by.
        ("alpaca", {"instruction": "Add", "prompt": "Add: 2", "output": "2"}, "[x] {prompt}", "[x] Add"),
        (
            "messages",
            {
                "instruction": "META",
                "messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}],
            },
            "X {instruction}",
            "X 1+1",
        ),
        ("alpaca", {"instruction": "a", "input": "b", "output": "c"}, "{prompt}!", "a\n\nb!"),
        ("prompt-completion", {"n": 7, "prompt": "a", "completion": "c"}, "{{{n}}} {prompt}", "{7} a"),
        (
            "messages",
            {"TASK": "sum", "messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]},
            "[{TASK}] {instruction}",
            "[sum] 1+1",
        ),
    ],
)
def test_a_prompt_template(form: str, row: dict[str, Any], prompt: str, asked: str) -> None:
    sample = Reader(form, Part(source="x", prompt=prompt)).read(row)
    assert isinstance(sample, list)
    assert sample[0] == {"role": "user", "content": asked}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"instruction": "a", "output": "b"}, r"data\.prompt names \{TASK\}; the columns are instruction, output"),
        ({"TASK": None, "instruction": "a", "output": "b"}, r"\{TASK\}, which is null, not a text"),
        ({"TASK": ["x"], "instruction": "a", "output": "b"}, r"\{TASK\}, which is list, not a text"),
    ],
    ids=["unknown", "null", "list"],
)
def test_a_prompt_template_that_does_not_fit(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRow, match=problem):
        Reader("alpaca", Part(source="x", prompt="[{TASK}] {instruction}")).read(row)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("no column", "names no column"),
        ("{a.__class__}", "is not the name of a column"),
        ("{a[0]}", "is not the name of a column"),
        ("{a!r}", "is not the name of a column"),
        ("{}", "is not the name of a column"),
        ("{a", "expected '}'"),
    ],
)
def test_a_prompt_template_that_is_none(prompt: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=rf"data\.prompt: .*{problem}"):
        from_values({"model": {"base": "b"}, "data": {"source": "x", "prompt": prompt}})


@pytest.mark.parametrize("side", ["end", "middle", "start"])
def test_a_prompt_is_cut_to_the_budget(chat_base: Path, side: str) -> None:
    tokenizer = Tokenizer(chat_base, DAY, "responses")
    text = "One two three four five. 你好 🌻 six seven eight nine ten."
    whole = len(tokenizer.rust.encode(text, add_special_tokens=False).ids)
    for budget in range(4, whole):
        cut = tokenizer.cut(text, budget, side)
        assert len(tokenizer.rust.encode(cut, add_special_tokens=False).ids) <= budget
        head = next(n for n in range(len(cut), -1, -1) if text.startswith(cut[:n]))
        assert cut[head:] == "" or text.endswith(cut[head:])
        if side == "end":
            assert text.startswith(cut)
        if side == "start":
            assert text.endswith(cut)
        if side == "middle":
            assert cut[0] == "O"
            assert cut[-1] == "."
    assert tokenizer.cut(text, whole, side) == text


def test_a_mapping_and_a_mix_are_checked_like_the_rest_of_a_recipe() -> None:
    data = {"source": "x", "columns": {"instrucion": "q"}, "more": [{"source": "y"}, {"sorce": "z", "weight": 0}]}
    with pytest.raises(RecipeError) as caught:
        from_values({"model": {"base": "b"}, "data": data})
    for part in ("data.columns", "data.more.1.sorce: unknown key; did you mean source?", "data.more.1.weight"):
        assert part in caught.value.message
    assert Data(source="x", more=(Part(source="y", weight=2),)).more[0].weight == 2
