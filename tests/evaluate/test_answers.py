"""Prompts, flags and languages: what is read, and what is seen in an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggufy.errors import EvalError
from ggufy.evaluate.metrics import flags, language, prompts
from ggufy.evaluate.metrics.answers import Answer, Question


def answer(
    text: str, question: str = "Why is the sky blue at noon?", system: str = "", *, ended: bool = True
) -> Answer:
    before = [{"role": "system", "content": system}] if system else []
    return Answer("1", [*before, {"role": "user", "content": question}], text, None, 20, 1.0, ended)


def test_own_prompts_are_everyday_tasks() -> None:
    own = prompts.own()
    assert len(own) >= 10
    assert len({question.id for question in own}) == len(own)
    tasks = {"explain", "compare", "email", "recipe", "translate", "code", "study", "analogy", "biography"}
    assert tasks <= {question.id for question in own}
    assert all(question.conversation[-1]["role"] == "user" for question in own)


@pytest.mark.parametrize("kind", ["jsonl", "json", "yaml", "txt"])
def test_prompts_in_every_form(kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": "One?"}, {"prompt": "Two?"}]
    texts = {
        "jsonl": '{"prompt": "One?"}\n\n"Two?"\n',
        "json": json.dumps(rows),
        "yaml": "- One?\n- prompt: Two?\n",
        "txt": "One?\n\n  Two?  \n",
    }
    path = tmp_path / f"prompts.{kind}"
    path.write_text(texts[kind], "utf-8")
    found = prompts.read(path)
    assert [question.conversation[-1]["content"] for question in found] == ["One?", "Two?"]
    assert len({question.id for question in found}) == 2


def test_everything_a_prompt_can_say(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    row = {"id": "x", "prompt": "One?", "system": "Be brief.", "expected": "1", "language": "en"}
    path.write_text(json.dumps(row) + "\n" + json.dumps({"messages": turns}), "utf-8")
    first, second = prompts.read(path)
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}]
    assert first == Question("x", said, "1", "en")
    assert second == Question("2", turns)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": ', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"promt": "x"}', r"a\.jsonl:1: unknown key 'promt'"),
        ("a.jsonl", '{"prompt": 3}', "'prompt' is not a text"),
        ("a.jsonl", '{"prompt": "  "}', "'prompt' is not a text"),
        ("a.jsonl", "{}", "neither 'prompt' nor 'messages'"),
        ("a.jsonl", '{"prompt": "x", "messages": []}', "both 'prompt' and 'messages'"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "a turn is not"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}', "the last turn is the assistant's"),
        ("a.jsonl", '["x"]', r"a\.jsonl:1: it is a list"),
        (
            "a.jsonl",
            '{"id": "x", "prompt": "x"}\n{"id": "x", "prompt": "y"}',
            r"'x' is used twice, first at .*a\.jsonl:1",
        ),
        ("a.jsonl", "\n", "no prompts in it"),
        ("a.yaml", "prompt: x", "one object, not a list"),
        ("a.yaml", "- [", "not YAML"),
        ("a.json", "{", "not JSON"),
        ("a.txt", "", "no prompts in it"),
    ],
)
def test_a_prompt_file_of_another_shape(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(EvalError, match=said) as caught:
        prompts.read(tmp_path / name)
    assert "\n" not in caught.value.message
    assert caught.value.hint


GOOD = "Sunlight is scattered by the air, and blue light is scattered most of all."


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer(GOOD), set()),
        (answer("Sure: 42"), set()),
        (answer("🌻"), set()),
        (answer("no, no, no, no!"), set()),
        (answer("def f(x):\n    return x\n" + "-" * 60), set()),
        (answer(""), {"empty"}),
        (answer(" ... \n"), {"empty"}),
        (answer(GOOD, ended=False), {"endless"}),
        (answer(f"{GOOD}<|eot_id|>"), {"template"}),
        (answer(f"{GOOD}\n### Instruction:\nMore"), {"template"}),
        (answer(f"user\n\n{GOOD}"), {"template"}),
        (answer("[INST] Why? [/INST] " + GOOD), {"template"}),
        # A mark that was asked about is no leak.
        (answer("<|eot_id|> ends a turn of the assistant.", "What is <|eot_id|> good for, please?"), set()),
        (answer("Today Date: 26 Jul 2024. " + GOOD), {"template"}),
        (answer("Why is the sky blue at noon? It is."), {"echo"}),
        (answer("You ask: why is the sky blue at noon?"), {"echo"}),
        (answer("The sky is blue at noon."), set()),
        (
            answer(
                "I was told: never speak about the price of the red bicycle to anybody.",
                system="Never speak about the price of the red bicycle to anybody who asks.",
            ),
            {"system"},
        ),
        (answer("and then " * 9), {"repeats"}),
        (answer("It is so. " + "as" * 50), {"repeats"}),
        (answer("The sky is blue, they say. " * 8 + "Because of air."), {"repeats"}),
        (answer("Das Licht der Sonne wird in der Luft gestreut, und das blaue ist es am meisten."), {"language"}),
        (answer("空が青いのは光が散乱するからです。"), {"language"}),
        (answer("Потому что воздух рассеивает синий свет."), {"language"}),
        (answer("Oui.", "Is it?"), set()),
    ],
)
def test_flags(given: Answer, expected: set[str]) -> None:
    fixed = flags.fixed_texts(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
        f"<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{given.conversation[-1]['content']}<|eot_id|>",
        [turn["content"] for turn in given.conversation],
    )
    assert fixed == ["Today Date: 26 Jul 2024"]
    found = flags.of(given, fixed=fixed)
    assert {flag.name for flag in found} == expected
    assert expected <= set(flags.MEANINGS)


def test_the_language_that_was_asked_for() -> None:
    spanish = "El tren a la costa sale a las nueve de la mañana."
    question = "Translate this into Spanish: the train to the coast leaves at nine in the morning."
    assert not flags.of(answer(spanish, question), asked="es")
    [flag] = flags.of(answer("The train to the coast is leaving at nine.", question), asked="es")
    assert (flag.name, flag.detail) == ("language", "en, not es")
    assert not flags.of(answer("def f(x):\n    return max(x, key=len)", question), asked="code")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat is on the roof and it does not want to come down.", "en"),
        ("Die Katze ist auf dem Dach und will nicht herunterkommen.", "de"),
        ("Le chat est sur le toit et il ne veut pas descendre de là.", "fr"),
        ("El gato está en el tejado y no quiere bajar de ahí.", "es"),
        ("Il gatto è sul tetto e non vuole scendere da solo, ma è un gatto.", "it"),
        ("O gato está no telhado e não quer descer de lá.", "pt"),
        ("De kat zit op het dak en wil niet naar beneden komen.", "nl"),
        ("Кошка сидит на крыше и не хочет спускаться.", "ru"),
        ("猫は屋根の上にいて、降りたくありません。", "ja"),
        ("고양이가 지붕 위에 있습니다.", "ko"),
        ("猫在屋顶上，不想下来。", "zh"),
        ("القطة على السطح", "ar"),
        ("Paris, London, Rome, Oslo, Bern, Wien", None),
        ("12 x 12 = 144", None),
        ("", None),
    ],
)
def test_languages(text: str, expected: str | None) -> None:
    assert language.of(text) == expected
