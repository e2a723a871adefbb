"""What the model is trained on, against transformers' own rendering and tokenizing of the same conversations."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ggufy.data import prepare, source
from ggufy.data.files import BadRow
from ggufy.data.rows.reader import Reader
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.errors import DataError
from ggufy.model import tiny
from ggufy.model.template import Message
from ggufy.recipe.schema import Data

DAY = date(2026, 3, 7)


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


@pytest.fixture(scope="module")
def samples() -> list[list[Message]]:
    rows = source.Source(source.BUILTIN, "", source.samples_file()).rows()
    return [Reader("sharegpt").read(row) for _, row in rows]


def test_the_samples_are_varied(samples: list[list[Message]]) -> None:
    assert len(samples) >= 200
    assert sum(len(conversation) > 3 for conversation in samples) >= 40
    assert sum(conversation[0]["role"] == "system" for conversation in samples) >= 40
    text = "".join(message["content"] for conversation in samples for message in conversation)
    for piece in ("```", "\n- ", "🌻", "你", "こ", "한", "ب", "ש", "ж", "ω", "ह", "ไ", "ü", "ñ", "ç"):
        assert piece in text, piece


def test_ids_are_transformers_ids(base: Path, samples: list[list[Message]]) -> None:
    """Every sample, rendered by transformers with the date pinned, and tokenized by it."""
    ours, theirs = Tokenizer(base, DAY, "responses"), AutoTokenizer.from_pretrained(base)
    for conversation in samples:
        expected = theirs.apply_chat_template(conversation, tokenize=True, date_string="07 Mar 2026")
        assert ours.encode(conversation).input_ids == expected["input_ids"]


def test_the_samples_with_tools_are_varied_and_rendered_as_transformers_does(base: Path, tmp_path: Path) -> None:
    """By Llama 3.2's own template. The labels are the calls and texts of the assistant, and nothing of the tools."""
    template = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates/meta-llama-Llama-3.2-3B-Instruct.jinja"
    if not template.is_file():
        pytest.skip("`make vendor` brings Llama 3.2's own template")
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    shutil.copy(template, folder / "chat_template.jinja")
    ours, theirs = Tokenizer(folder, DAY, "responses"), AutoTokenizer.from_pretrained(folder)
    reader = Reader("messages")
    rows = [row for _, row in source.Source(source.TOOLS, "", source.samples_file(source.TOOLS)).rows()]
    kinds, called = Counter[str](), set()
    for row in rows:
        example = ours.encode(reader.read(row))
        # What OpenAI's form has as a text, templates take as an object.
        turns, said = [], []
        for turn in row["messages"]:
            calls = [call["function"] for call in turn.get("tool_calls") or []]
            made = [{"type": "function", "function": {**c, "arguments": json.loads(c["arguments"])}} for c in calls]
            turns.append({**turn, "content": turn["content"] or "", **({"tool_calls": made} if made else {})})
            if turn["role"] == "assistant":
                said += [f'{{"name": "{c["name"]}", "parameters": {c["arguments"]}}}' for c in calls] or [
                    turn["content"]
                ]
            kinds["tool" if turn["role"] == "tool" else "call" if calls else turn["role"]] += 1
            called |= {call["name"] for call in calls}
        how = {"tokenize": True, "date_string": "07 Mar 2026"}
        assert example.input_ids == theirs.apply_chat_template(turns, tools=row["tools"], **how)["input_ids"]
        trained = ours.decode([label for label in example.labels if label != IGNORED])
        assert trained == "".join(f"{text}<|eot_id|>" for text in said)
    assert len(rows) >= 40
    assert len(called) >= 10
    assert min(kinds["tool"], kinds["call"], kinds["assistant"]) >= 10
    assert sum(not any(turn.get("tool_calls") for turn in row["messages"]) for row in rows) >= 8


def test_labels_are_what_the_assistant_says_and_its_end(base: Path, samples: list[list[Message]]) -> None:
    tokenizer = Tokenizer(base, DAY, "responses")
    bos, end = tokenizer.special["<|begin_of_text|>"], tokenizer.special["<|eot_id|>"]
    for conversation in samples:
        example = tokenizer.encode(conversation)
        assert example.input_ids[0] == bos
        assert example.input_ids.count(bos) == 1
        assert all(label in (IGNORED, token) for token, label in zip(example.input_ids, example.labels, strict=True))
        said = [message["content"].strip() + "<|eot_id|>" for message in conversation if message["role"] == "assistant"]
        assert tokenizer.decode([label for label in example.labels if label != IGNORED]) == "".join(said)
        # Turn by turn: each stretch of labels is one turn, and its last token ends it.
        stretches: list[list[int]] = [[]]
        for label in example.labels:
            if label == IGNORED:
                stretches += [[]] if stretches[-1] else []
            else:
                stretches[-1].append(label)
        assert [tokenizer.decode(stretch) for stretch in stretches if stretch] == said
        assert all(stretch[-1] == end for stretch in stretches if stretch)


def test_train_on_all(base: Path, samples: list[list[Message]]) -> None:
    example = Tokenizer(base, DAY, "all").encode(samples[0])
    assert example.labels[0] == IGNORED
    assert example.labels[1:] == example.input_ids[1:]


def test_a_template_with_a_line_break_after_the_turn_is_not_trained_on_it(base: Path, tmp_path: Path) -> None:
    """ChatML writes one; generation stops before it."""
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\n' + m.content + '<|eot_id|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path, DAY, "responses")
    example = tokenizer.encode([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}])
    assert tokenizer.decode([label for label in example.labels if label != IGNORED]) == "yes<|eot_id|>"
    # The template writes no BOS, but the tokenizer adds one at run time: so it is there in training.
    assert tokenizer.decode(example.input_ids).startswith("<|begin_of_text|><|start_header_id|>user")


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([], "no turns"),
        (None, "no turns"),
        ("hello", "not str"),
        ([{"from": "human", "value": "a"}], "says nothing"),
        ([{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}], "speaks first"),
        ([{"from": "system", "value": "a"}], "says nothing"),
        ([{"from": "human", "value": "a"}, {"from": "robot", "value": "b"}], "unknown role 'robot'"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}], "turn 2 is empty"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": None}], "turn 2 is null"),
        ([{"from": "human", "value": "a"}, {"value": "b"}], "turn 2 has no 'from'"),
        (
            [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}],
            "turn 2: two",
        ),
        (
            [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "system", "value": "c"}],
            "turn 3: a system turn",
        ),
    ],
)
def test_a_bad_row_says_what_is_wrong(turns: object, problem: str) -> None:
    with pytest.raises(BadRow, match=problem):
        Reader("sharegpt").read({"conversations": turns})


def settings(path: Path, **values: object) -> Data:
    return Data.model_validate({"source": path.as_posix(), **values})


def write_rows(path: Path, lengths: list[int]) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q " * n}, {"role": "assistant", "content": "a"}]} for n in lengths
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("overflow", "kept", "counted"), [("truncate", 2, "1 without an answer once truncated"), ("drop", 2, "1 too long")]
)
def test_what_does_not_fit_is_counted(overflow: str, kept: int, counted: str, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [1, 200, 2])
    data = settings(path, overflow=overflow)
    counts = prepare.prepare(source.locate(data, offline=True), data, base, 64, DAY, tmp_path / "out")["train"]
    assert counts.kept == kept
    assert counted in counts.text()


def test_refusing_what_does_not_fit_names_the_row(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [1, 200])
    data = settings(path, overflow="refuse")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .* tokens, but model\.max_length is 64"):
        prepare.prepare(source.locate(data, offline=True), data, base, 64, DAY, tmp_path / "out")


def test_held_out_rows_are_those_after_the_training_rows(base: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "rows.json"
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"answer {n}"}]}
        for n in range(9)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8-sig")
    data = settings(path, train_size=5, eval_size=3)
    prepare.prepare(source.locate(data, offline=True), data, base, 64, DAY, tmp_path / "out")
    tokenizer = Tokenizer(base, DAY, "responses")
    told = {}
    for split in ("train", "eval"):
        with pa.OSFile(str(tmp_path / "out" / f"{split}.arrow")) as file:
            labels = pa.ipc.open_stream(file).read_all()["labels"].to_pylist()
        told[split] = [tokenizer.decode([n for n in row if n != IGNORED]) for row in labels]
    assert told["train"] == [f"answer {n}<|eot_id|>" for n in range(5)]
    assert told["eval"] == [f"answer {n}<|eot_id|>" for n in range(5, 8)]
