"""What stops the model is how its answers end, and what it is asked is what it was trained on.

The templates are those of public reports; ids and labels are transformers' own or written out by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ggufy.data import prepare, source
from ggufy.data.files import BadRow
from ggufy.data.rows.conversation import Conversation
from ggufy.data.tokenize import IGNORED, Tokenizer
from ggufy.errors import DataError, ModelError
from ggufy.model import tiny
from ggufy.model.template import ChatTemplate
from ggufy.recipe.schema import Data

DAY = date(2026, 3, 7)
Make = Callable[..., Path]
HEAD = "<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n"
PROMPT = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
TALK = [{"role": "user", "content": "Is the lamp on?"}, {"role": "assistant", "content": "Yes"}]
LONGER = [*TALK, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Very sure."}]


def turns(end: str, content: str = "m['content']") -> str:
    """A template whose turns end in a way of their own."""
    return f"{{{{ bos_token }}}}{{% for m in messages %}}{{{{ '{HEAD}' + {content} + '{end}' }}}}{{% endfor %}}"


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.ensure(source.sample_texts())


@pytest.fixture
def made(base: Path, tmp_path: Path) -> Make:
    """made(template, generation_config={...}) is a copy of the base with these instead of its own."""

    def made(template: str = "", **files: Any) -> Path:
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        folder = Path(shutil.copytree(base, tmp_path / "base"))
        if template:
            (folder / "chat_template.jinja").write_text(template, "utf-8")
        for name, values in files.items():
            path = folder / f"{name}.json"
            if values is None:
                path.unlink()
            else:
                old = json.loads(path.read_text("utf-8")) if path.is_file() else {}
                path.write_text(json.dumps({**old, **values}), "utf-8")
        return folder

    return made


def told(folder: Path, conversation: list[dict[str, Any]]) -> tuple[list[str], list[int]]:
    """The text of each stretch that is trained on, and the row's ids."""
    tokenizer = Tokenizer(folder, DAY, "responses")
    example = tokenizer.encode(conversation)
    stretches: list[list[int]] = [[]]
    for label in example.labels:
        if label == IGNORED:
            stretches += [[]] if stretches[-1] else []
        else:
            stretches[-1].append(label)
    return [tokenizer.decode(stretch) for stretch in stretches if stretch], example.input_ids


@pytest.mark.parametrize(
    ("template", "naming"),
    [
        (turns("") + PROMPT, ["writes nothing after an answer", "<|eot_id|>"]),
        (turns("\n") + PROMPT, ["writes nothing after an answer"]),
        (turns("[END]") + PROMPT, ["writes '[END]' after an answer"]),
        (turns("<|reserved_special_token_0|>\n") + PROMPT, ["ends an answer with <|reserved_special_token_0|>"]),
        (turns("<|end_header_id|>") + PROMPT, ["ends an answer with <|end_header_id|>"]),
    ],
)
def test_a_template_whose_answers_never_end_is_refused(template: str, naming: list[str], made: Make) -> None:
    tokenizer = Tokenizer(made(template), DAY, "responses")
    for talk in (TALK, LONGER):
        with pytest.raises(ModelError) as caught:
            tokenizer.encode(talk)
        assert all(part in caught.value.message for part in naming), caught.value.message
        assert caught.value.hint


def test_an_end_that_generation_config_names_is_one(made: Make) -> None:
    """As `generate` of transformers takes it: what config.json says does not count beside it."""
    number = Tokenizer(made(), DAY, "responses").special["<|reserved_special_token_0|>"]
    folder = made(turns("<|reserved_special_token_0|>\n") + PROMPT, generation_config={"eos_token_id": number})
    said, _ = told(folder, LONGER)
    assert said == ["Yes<|reserved_special_token_0|>", "Very sure.<|reserved_special_token_0|>"]


def test_the_end_of_text_alone_in_the_config_is_no_end_of_turn(made: Make) -> None:
    """Base models given an Instruct template: only the tokenizer's eos_token could still say it."""
    end = {"eos_token_id": 737}
    folder = made(generation_config=end, config=end, tokenizer_config={"eos_token": "<|end_of_text|>"})
    with pytest.raises(
        ModelError, match=r"ends an answer with <\|eot_id\|> \(745\).* that is <\|end_of_text\|> \(737\)"
    ):
        Tokenizer(folder, DAY, "responses").encode(TALK)


@pytest.mark.parametrize("listed", [True, False])
def test_special_tokens_map_counts_where_transformers_reads_it(listed: bool, made: Make) -> None:
    """It does where tokenizer_config.json lists no added tokens."""
    folder = made(
        generation_config=None,
        config={"eos_token_id": 737},
        special_tokens_map={"eos_token": {"content": "<|eot_id|>", "lstrip": False, "special": True}},
        tokenizer_config={"eos_token": "<|end_of_text|>"},
    )
    if listed:
        path = folder / "tokenizer_config.json"
        added = {"745": {"content": "<|eot_id|>", "special": True}}
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "added_tokens_decoder": added}), "utf-8")
    theirs = AutoTokenizer.from_pretrained(folder).eos_token
    assert theirs == ("<|end_of_text|>" if listed else "<|eot_id|>")
    assert ChatTemplate.specials(folder)["eos_token"] == theirs
    tokenizer = Tokenizer(folder, DAY, "responses")
    if listed:
        with pytest.raises(ModelError, match="does not stop the model"):
            tokenizer.encode(TALK)
    else:
        assert told(folder, TALK)[0] == ["Yes<|eot_id|>"]


@pytest.mark.parametrize(
    ("template", "naming"),
    [
        # It ignores add_generation_prompt.
        (turns("<|eot_id|>"), "has no generation prompt"),
        # It always writes the prompt.
        (
            turns("<|eot_id|>") + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
            "no answer is asked for|none is",
        ),
        # It asks with something that an answer does not begin with.
        (turns("<|eot_id|>") + PROMPT.replace("\n\n' }}", "\n\n<think>\n' }}"), "is not how an answer begins"),
        (turns("<|eot_id|>") + PROMPT.replace("assistant<", "model<"), "is not how an answer begins"),
    ],
)
def test_a_template_that_asks_in_another_way_is_refused(template: str, naming: str, made: Make) -> None:
    tokenizer = Tokenizer(made(template), DAY, "responses")
    for talk in (TALK, LONGER):
        with pytest.raises(ModelError, match=naming) as caught:
            tokenizer.encode(talk)
        assert "turn" not in caught.value.message or "once more" not in caught.value.message


@pytest.mark.parametrize("answer", ["A", "ANT", "ASSISTANT", ":", "ASSISTANT:"])
def test_an_answer_that_stands_in_its_header_does_not_hide_it(answer: str, made: Make) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper + ': ' + m['content'] + '<|eot_id|>' }}"
    tokenizer = Tokenizer(made(template + "{% endfor %}"), DAY, "responses")
    with pytest.raises(ModelError, match=r"has no generation prompt.*asked without 'ASSISTANT: '"):
        tokenizer.encode([TALK[0], {"role": "assistant", "content": answer}])
    prompt = "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    said, _ = told(made(template + "{% endfor %}" + prompt), [TALK[0], {"role": "assistant", "content": answer}])
    assert said == [f"{answer}<|eot_id|>"]


def test_a_template_without_headers_needs_no_generation_prompt(made: Make) -> None:
    """As Mistral's and Llama 2's: the user's turn ends where the answer begins."""
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    folder = made(template)
    said, ids = told(folder, LONGER)
    assert said == ["Yes<|eot_id|>", "Very sure.<|eot_id|>"]
    theirs = AutoTokenizer.from_pretrained(folder)
    asked = theirs.apply_chat_template(LONGER[:3], add_generation_prompt=True)["input_ids"]
    assert ids[: len(asked)] == asked


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        # The space before the answer is part of its first token, if nobody looks.
        ("ASSISTANT: ", "the lamp"),
        # So are line breaks of the header and the answer's own.
        ("<|start_header_id|>assistant<|end_header_id|>\n", "\n\nthe lamp"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", "\nthe lamp"),
        ("Answer", "ing it"),
    ],
)
def test_the_ids_that_are_asked_begin_the_row(prompt: str, answer: str, made: Make) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + '\n' }}"
        "{% else %}{{ PROMPT + m['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ PROMPT }}{% endif %}"
    ).replace("PROMPT", repr(prompt))
    folder = made(template)
    talk = [TALK[0], {"role": "assistant", "content": answer}]
    theirs = AutoTokenizer.from_pretrained(folder)
    asked = theirs.apply_chat_template(talk[:1], add_generation_prompt=True)["input_ids"]
    example = Tokenizer(folder, DAY, "responses").encode(talk)
    assert example.input_ids[: len(asked)] == asked
    assert example.labels[: len(asked)] == [IGNORED] * len(asked)
    assert example.labels[len(asked) :] == example.input_ids[len(asked) :]
    assert theirs.decode(example.input_ids[len(asked) :]) == f"{answer}<|eot_id|>"


@pytest.mark.parametrize(
    ("content", "answer", "naming"),
    [
        ("m['content'].split('</think>')[-1]", "<think>Lit.</think>Yes", "turn 2: the chat template leaves out"),
        ("m['content'][:3]", "A long answer", "turn 1: the chat template leaves out what the user turn says"),
        (
            "(m['content'] if m['role'] == 'user' else m['content'] | upper)",
            "Yes",
            "turn 2: the chat template leaves out",
        ),
    ],
)
def test_what_a_template_takes_away_is_named(content: str, answer: str, naming: str, made: Make) -> None:
    tokenizer = Tokenizer(made(turns("<|eot_id|>", content) + PROMPT), DAY, "responses")
    with pytest.raises(BadRow, match=naming):
        tokenizer.encode([TALK[0], {"role": "assistant", "content": answer}])


def test_a_system_turn_that_the_template_drops_is_named(made: Make) -> None:
    template = turns("<|eot_id|>").replace("for m in messages", "for m in messages if m['role'] != 'system'") + PROMPT
    tokenizer = Tokenizer(made(template), DAY, "responses")
    assert tokenizer.encode(TALK).trained
    with pytest.raises(BadRow, match=r"turn 1: the chat template leaves out what the system turn says: 'Be rude\.'"):
        tokenizer.encode([{"role": "system", "content": "Be rude."}, *TALK])


def test_reasoning_goes_where_the_template_has_a_place_for_it(made: Make) -> None:
    talk = [TALK[0], {"role": "assistant", "content": "Yes", "reasoning_content": "It is lit."}]
    with pytest.raises(BadRow, match="no place for it"):
        Tokenizer(made(), DAY, "responses").encode(talk)
    thought = "('<think>' + m.thinking + '</think>' if m.thinking else '') + m['content']"
    said, _ = told(made(turns("<|eot_id|>", thought) + PROMPT), talk)
    assert said == ["<think>It is lit.</think>Yes<|eot_id|>"]


def test_spaces_that_a_template_trims_are_counted(base: Path, tmp_path: Path) -> None:
    rows = [("Go on", "    return x"), ("And?", "yes "), ("Now", "\n\tindented"), ("Hm", "done")]
    path = tmp_path / "rows.jsonl"
    talks = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in rows]
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks), "utf-8")
    data = Data(source=path.as_posix())
    counts = prepare.prepare(source.locate(data, offline=True), data, base, 256, DAY, tmp_path / "out")["train"]
    assert counts.trimmed == 2
    assert "2 answers lose the spaces" in counts.text()


@pytest.mark.parametrize(("longest", "ended"), [(46, None), (46, 1), (200, 3)])
def test_answers_that_keep_their_end_are_counted(longest: int, ended: int | None, base: Path, tmp_path: Path) -> None:
    answers = ["a", "one two three four five", "one two three four five six seven eight"]
    path = tmp_path / "rows.jsonl"
    talks = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": a}]} for a in answers]
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks[0 if ended else 1 :]), "utf-8")
    lengths = [
        len(
            AutoTokenizer.from_pretrained(base).apply_chat_template(t["messages"], date_string="07 Mar 2026")[
                "input_ids"
            ]
        )
        for t in talks
    ]
    assert lengths[0] <= 46 < lengths[1]
    data = Data(source=path.as_posix())
    located = source.locate(data, offline=True)
    if ended is None:
        with pytest.raises(DataError, match="all 2 answers of the train split are cut before the token that ends them"):
            prepare.prepare(located, data, base, longest, DAY, tmp_path / "out")
        return
    counts = prepare.prepare(located, data, base, longest, DAY, tmp_path / "out")["train"]
    assert (counts.answers, counts.ended) == (3, sum(length <= longest for length in lengths)) == (3, ended)
    assert ("answers cut before their end" in counts.text()) is (ended < 3)


def test_a_turn_of_weight_0_is_not_trained_on(base: Path) -> None:
    talk = Conversation([dict(turn) for turn in LONGER])
    talk[1]["untrained"] = True
    said, ids = told(base, talk)
    assert said == ["Very sure.<|eot_id|>"]
    assert ids == told(base, LONGER)[1]


ENDLESS = {
    "only the last": turns("' + ('<|eot_id|>' if loop.last else '') + '"),
    "another between": turns("' + ('<|eot_id|>' if loop.last else '<|eom_id|>') + '"),
    "only the user's": turns("' + ('' if m['role'] == 'assistant' and not loop.last else '<|eot_id|>') + '"),
}


@pytest.mark.parametrize("template", ENDLESS)
def test_training_on_all_every_answer_has_its_end(template: str, made: Make) -> None:
    folder = made(ENDLESS[template] + PROMPT)
    ends = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|eot_id|>")
    folder = made(ENDLESS[template] + PROMPT, generation_config={"eos_token_id": ends})
    tokenizer = Tokenizer(folder, DAY, "all")
    assert tokenizer.encode(TALK).input_ids[-1] == ends
    with pytest.raises(ModelError, match=r"between the answer of turn 2 and what turn 3 says, and nothing there stops"):
        tokenizer.encode(LONGER)


def test_training_on_all_a_template_with_all_its_ends_is_taken(made: Make) -> None:
    folder = made()
    tokenizer = Tokenizer(folder, DAY, "all")
    for talk in (TALK, LONGER, [*LONGER, {"role": "user", "content": "e"}, {"role": "assistant", "content": "s"}]):
        theirs = AutoTokenizer.from_pretrained(folder)
        ids = theirs.apply_chat_template(talk, return_dict=False, date_string="07 Mar 2026")
        assert tokenizer.encode(talk).input_ids == ids


@pytest.mark.parametrize("train_on", ["responses", "all"])
def test_training_on_all_keeps_to_the_same_rules(train_on: str, made: Make) -> None:
    with pytest.raises(ModelError, match="writes nothing after an answer"):
        Tokenizer(made(turns("") + PROMPT), DAY, train_on).encode(TALK)
    cut = turns("<|eot_id|>", "m['content'].split('</think>')[-1]") + PROMPT
    thought = [TALK[0], {"role": "assistant", "content": "<think>Lit.</think>Yes"}]
    with pytest.raises(BadRow, match="turn 2: the chat template leaves out"):
        Tokenizer(made(cut), DAY, train_on).encode(thought)
    masked = [TALK[0], {**TALK[1], "untrained": True}]
    with pytest.raises(BadRow, match="weight 0"):
        Tokenizer(made(), DAY, train_on).encode(masked)


def test_reasoning_does_not_excuse_a_missing_generation_prompt(made: Make) -> None:
    thought = "('<think>' + m.thinking + '</think>' if m.thinking else '') + m['content']"
    talk = [TALK[0], {"role": "assistant", "content": "Yes", "reasoning_content": "It is lit."}]
    with pytest.raises(ModelError, match="has no generation prompt"):
        Tokenizer(made(turns("<|eot_id|>", thought)), DAY, "responses").encode(talk)


def test_a_dropped_turn_is_missed_where_another_says_its_words(made: Make) -> None:
    template = turns("<|eot_id|>").replace("for m in messages", "for m in messages if m['role'] != 'system'") + PROMPT
    with pytest.raises(BadRow, match="turn 1: the chat template leaves out what the system turn says"):
        Tokenizer(made(template), DAY, "responses").encode(
            [{"role": "system", "content": "lamp"}, *TALK],
        )


@pytest.mark.parametrize("text", ["user", "start", "s", "assistant", "lamp", "|>", "Yes"])
def test_a_dropped_turn_is_missed_where_the_template_writes_its_words(text: str, made: Make) -> None:
    talk = [{"role": "system", "content": text}, *LONGER]
    dropping = turns("<|eot_id|>").replace("for m in messages", "for m in messages if m['role'] != 'system'") + PROMPT
    with pytest.raises(BadRow, match=r"turn 1: the chat template leaves out what the system turn says"):
        Tokenizer(made(dropping), DAY, "responses").encode(talk)
    with pytest.raises(BadRow, match=r"turn 1: the chat template leaves out what the system turn says"):
        Tokenizer(made(dropping), DAY, "all").encode(talk)
    # Beside a system text of the template's own, too.
    folder = made("{{ 'You are a useful assistant of the user. ' }}" + dropping)
    with pytest.raises(BadRow, match=r"turn 1: the chat template leaves out what the system turn says"):
        Tokenizer(folder, DAY, "responses").encode(talk)
    folder = made(turns("<|eot_id|>") + PROMPT)
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(talk, return_dict=False)
    assert Tokenizer(folder, DAY, "responses").encode(talk).input_ids == ids


@pytest.mark.parametrize("train_on", ["responses", "all"])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        # The user's or the system's text, and what of the answers' beginnings, ends and of the others is lost.
        ([("", "    def f():\n        pass", "x1")], (0, 0, 1)),
        ([("   keep\n", "q", "code"), ("\n\n\tkeep", "  q", "code")], (0, 0, 3)),
        ([("", "q", "code\n\n"), ("", "q", "code \n \n"), ("", "q", "  code\n\n\n")], (1, 3, 0)),
        # As FineTome has them.
        ([("", " q ", "code\n"), ("", "q\n", "code "), ("Be brief. ", "\nq\n\n", "code \n")], (0, 0, 0)),
        ([("", "a\n    b", "x\n\ny")], (0, 0, 0)),
    ],
)
def test_what_a_template_trims_is_counted(
    rows: list[tuple[str, str, str]],
    counts: tuple[int, int, int],
    keeps: bool,
    train_on: str,
    made: Make,
    tmp_path: Path,
) -> None:
    folder = made(turns("<|eot_id|>", "m['content']" if keeps else "m['content'] | trim") + PROMPT)
    talks = [
        [{"role": "system", "content": s}] * bool(s)
        + [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for s, q, a in rows
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks), "utf-8")
    data = Data(source=path.as_posix(), train_on=train_on)
    found = prepare.prepare(source.locate(data, offline=True), data, folder, 256, DAY, tmp_path / "out")["train"]
    expected = (0, 0, 0) if keeps else counts
    assert (found.trimmed, found.trimmed_ends, found.trimmed_given) == expected
    names = ("the spaces they begin with", "the blank lines they end with", "the indentation they begin with")
    assert [name in found.text() for name in names] == [count > 0 for count in expected]
    assert not any("trimmed" in name for name in found.values())


def test_a_turn_that_is_given_to_several_answers_is_counted_once(made: Make, tmp_path: Path) -> None:
    """Of a row that becomes a row for each answer, as the first is in a piece of its own."""
    template = turns("<|eot_id|>", "(m['content'] | trim if m['role'] == 'user' else m['content'])") + PROMPT
    template = template.replace("\n\n", "\n")
    talk = [{"role": "user", "content": "    q"}, {"role": "assistant", "content": "\n\nthe lamp"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [*talk, *talk, *talk]}) + "\n", "utf-8")
    data = Data(source=path.as_posix())
    found = prepare.prepare(source.locate(data, offline=True), data, made(template), 256, DAY, tmp_path / "out")[
        "train"
    ]
    assert (found.kept, found.apart, found.answers, found.trimmed_given) == (3, 1, 3, 3)
