"""Calls in what models say: written by transformers with the templates of many models, read by ggufy."""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ggufy.chat.web.tool_answers import Offer
from ggufy.errors import ModelError
from ggufy.model.template import ChatTemplate
from ggufy.model.tool_calls import Call, Syntax

VENDORED = Path(__file__).parents[2] / "vendor" / "llama.cpp" / "models" / "templates"
LLAMA = "meta-llama-Llama-3.2-3B-Instruct"
DAY = date(2026, 1, 2)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
ENDS = ("<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "</s>", "<|end|>")
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": {"type": "object"}}}
    for name in ("weather", "add")
]
ROME = {"city": 'Rome "the old" {', "days": 3, "where": {"lat": 41.9, "tags": ["a", "ü"]}}
ADD = {"a": 2, "b": -1}

pytestmark = pytest.mark.skipif(not VENDORED.is_dir(), reason="`make vendor` brings the templates of many models")


def syntax(name: str) -> Syntax:
    return Syntax.of(ChatTemplate((VENDORED / f"{name}.jinja").read_text("utf-8"), SPECIAL, name), DAY)


def written(name: str, *calls: tuple[str, dict[str, Any]], said: str = "") -> str:
    """What transformers has the assistant write."""
    from transformers.utils.chat_template_utils import render_jinja_template

    text = (VENDORED / f"{name}.jinja").read_text("utf-8")
    asked = [{"role": "user", "content": "How is it?"}]
    made = [
        {"id": f"abcdefgh{at}", "type": "function", "function": {"name": function, "arguments": arguments}}
        for at, (function, arguments) in enumerate(calls)
    ]
    answer = {"role": "assistant", "content": said, "tool_calls": made}

    def render(messages: list[dict[str, Any]], *, generate: bool) -> str:
        how = {"tools": TOOLS, "add_generation_prompt": generate, **SPECIAL}
        return str(render_jinja_template([messages], chat_template=text, **how)[0][0])

    before, whole = render(asked, generate=True), render([*asked, answer], generate=False)
    assert whole.startswith(before)
    found = whole.removeprefix(before).rstrip()
    for end in ENDS:
        found = found.removesuffix(end)
    return found


@pytest.mark.parametrize(
    "name",
    [
        LLAMA,
        "meta-llama-Llama-3.1-8B-Instruct",
        "meta-llama-Llama-3.3-70B-Instruct",
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        "Qwen-Qwen2.5-7B-Instruct",
        "Qwen-Qwen3-0.6B",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "ibm-granite-granite-4.0",
    ],
)
def test_what_a_template_writes_is_read(name: str) -> None:
    found = syntax(name)
    text = written(name, ("weather", ROME))
    thought, _, _ = text.rpartition("</think>")
    said, calls = found.read(text, {"weather", "add"})
    assert calls == [Call("weather", ROME)]
    assert said == (f"{thought}</think>" if thought else "")
    assert found.several == ("Llama-3." not in name or "Hermes" in name)
    if found.several:
        both = written(name, ("weather", ROME), ("add", ADD))
        assert found.read(both, {"weather", "add"})[1] == [Call("weather", ROME), Call("add", ADD)]
    # Of a function that was not offered, nothing is called.
    assert found.read(text, {"add"}) == (text, [])


def test_what_is_said_before_a_call() -> None:
    text = written("Qwen-Qwen2.5-7B-Instruct", ("add", ADD), said="Let me see.")
    assert syntax("Qwen-Qwen2.5-7B-Instruct").read(text, {"add"}) == ("Let me see.", [Call("add", ADD)])


CALL = '{"name": "add", "parameters": {"a": 2, "b": -1}}'


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"<|python_tag|>{CALL}",
        f"\n {CALL}\n",
        '{"type": "function", "name": "add", "parameters": {"a": 2, "b": -1}}',
        '{"type": "function", "function": {"name": "add", "parameters": {"a": 2, "b": -1}}}',
        '{"name": "add", "arguments": {"a": 2, "b": -1}}',
    ],
)
def test_how_models_of_llama_vary_it(text: str) -> None:
    assert syntax(LLAMA).read(text, {"add"}) == ("", [Call("add", ADD)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is sunny.",
        f"I would call {CALL}",
        f"{CALL} and then",
        f"{CALL}; {CALL}",
        CALL[:-1],
        CALL.replace("add", "sub"),
        '{"name": "add"}',
        '{"name": "add", "parameters": [1]}',
        '{"name": "add", "parameters": {}, "reason": "why not"}',
        '{"name": "add", "parameters": {"a": NaN}}',
        '{"name": "add", "parameters": {"a": "\\ud800"}}',
        '{"answer": 5}',
        '["add"]',
        "{" * 5000,
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert syntax(LLAMA).read(text, {"add", "weather"}) == (text, [])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("google-gemma-2-2b-it", "no place for tools"),
        ("microsoft-Phi-3.5-mini-instruct", "no place for tools"),
        ("Qwen3-Coder", "does not write calls as JSON"),
        ("openai-gpt-oss-120b", "does not write calls as JSON"),
    ],
)
def test_templates_whose_calls_cannot_be_read_are_refused(name: str, said: str) -> None:
    with pytest.raises(ModelError) as refused:
        syntax(name)
    assert said in str(refused.value)


def pieces(text: str, size: int, reason: str = "stop") -> Iterator[dict[str, Any]]:
    """As llama-cpp-python streams it."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant"})
    for at in range(0, len(text), size):
        yield chunk({"content": text[at : at + size]})
    yield chunk({}, reason)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("name", "text", "said", "calls"),
    [
        (LLAMA, CALL, "", [ADD]),
        (LLAMA, "It is sunny: {nice}.", "It is sunny: {nice}.", []),
        (LLAMA, CALL[:-1], CALL[:-1], []),
        (LLAMA, '{"answer": 5}', '{"answer": 5}', []),
        ("Qwen-Qwen2.5-7B-Instruct", "a <b> c <tool", "a <b> c <tool", []),
        ("Qwen-Qwen2.5-7B-Instruct", f"Well.\n<tool_call>\n{CALL}\n</tool_call>", "Well.", [ADD]),
        ("Qwen-Qwen2.5-7B-Instruct", f"<tool_call>{CALL}</tool_call>\n" * 2, "", [ADD, ADD]),
    ],
    ids=str,
)
def test_a_stream_says_the_same_as_the_whole(name: str, text: str, said: str, calls: list[Any], size: int) -> None:
    offer = Offer(syntax(name), frozenset({"add"}), several=True)
    whole = offer.whole(
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    )
    [choice] = whole["choices"]
    assert (choice["message"]["content"] or "") == said
    assert [json.loads(call["function"]["arguments"]) for call in choice["message"].get("tool_calls", [])] == calls
    streamed = [chunk["choices"][0] for chunk in offer.stream(pieces(text, size))]
    assert "".join(one["delta"].get("content") or "" for one in streamed) == said
    made = [call for one in streamed for call in one["delta"].get("tool_calls", [])]
    assert [json.loads(call["function"]["arguments"]) for call in made] == calls
    assert [call["index"] for call in made] == list(range(len(calls)))
    assert streamed[-1]["finish_reason"] == choice["finish_reason"] == ("tool_calls" if calls else "stop")
    assert [one["finish_reason"] for one in streamed[:-1]] == [None] * (len(streamed) - 1)


def test_text_is_not_held_back_longer_than_it_may_be_a_call() -> None:
    offer = Offer(syntax(LLAMA), frozenset({"add"}), several=False)
    chunks = list(offer.stream(pieces("It is {sunny}", 2)))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:4]] == ["It", " i", "s "]
