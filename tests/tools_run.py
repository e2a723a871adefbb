"""A run of the built-in model that has learnt to call two functions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

TOOLS = (
    *("--recipe", "tiny", "--run", "tools", "--set", "train.max_steps=60", "--set", "train.save_steps=60"),
    *("--set", "train.batch_size=8", "--set", "model.base=./base", "--set", "model.max_length=512"),
    *("--set", "data.source=tools.jsonl", "--set", "data.eval_source=asked.jsonl", "--set", "data.train_size=null"),
)
LLAMA = "vendor/llama.cpp/models/templates/meta-llama-Llama-3.2-3B-Instruct.jinja"


def teach(
    cwd: Path,
    base: Path,
    template: Path,
    run: Callable[..., CompletedProcess[str]],
    light_run: Callable[..., CompletedProcess[str]],
) -> None:
    shutil.copytree(base, cwd / "base")
    shutil.copy(template, cwd / "base" / "chat_template.jinja")
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "add")]

    def row(asked: str, *turns: dict[str, object]) -> str:
        return json.dumps({"tools": tools, "messages": [{"role": "user", "content": asked}, *turns]}) + "\n"

    def call(name: str, **arguments: object) -> dict[str, object]:
        made = {"name": name, "arguments": json.dumps(arguments)}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": made}],
        }

    rows = [row(f"Weather in {city}?", call("weather", city=city)) for city in ("Rome", "Oslo", "Lima")]
    rows += [row(f"What is {a} plus {b}?", call("add", a=a, b=b)) for a, b in ((2, 3), (4, 5), (7, 1))]
    rows.append(row("Hello", {"role": "assistant", "content": "Hi there."}))
    told = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    rows.append(row("Weather in Rome?", call("weather", city="Rome"), told, {"role": "assistant", "content": "Sunny."}))
    (cwd / "tools.jsonl").write_text("".join(rows), "utf-8")
    wrong = [row("What is 4 plus 5?", call("add", a=4, b=6)), row("Weather in Lima?", call("add", a=1, b=1))]
    (cwd / "asked.jsonl").write_text("".join([*rows[:1], *rows[3:4], *wrong, *rows[6:]]), "utf-8")
    done = run("train", *TOOLS, cwd=cwd, timeout=900)
    assert done.returncode == 0, done.stderr
    done = light_run("export", "tools", "--quant", "q8_0", cwd=cwd)
    assert done.returncode == 0, done.stderr
