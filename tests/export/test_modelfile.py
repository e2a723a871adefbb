"""The Modelfile beside an export: its Go template says what the model's Jinja template says, or there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ggufy.errors import ExportError
from ggufy.export import modelfile
from ggufy.model.template import ChatTemplate, Message
from ggufy.model.tiny import CHAT_TEMPLATE

Run = Callable[..., CompletedProcess[str]]
DAY = date(2026, 1, 2)
VENDORED = Path(__file__).parents[2] / "vendor" / "llama.cpp" / "models" / "templates"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACES = (
    "{% for message in messages %}{{ '{{-' + message['role'] + ' }}{{{' + message['content'] + '}{' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '{assistant{{' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] "
    "+ ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# A system prompt inside the first turn of the user, as Gemma 3 and others have it.
INSIDE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<user>' }}"
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    "{{ message['content'] + '</user>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<model>' + message['content'] + '</model>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<model>' }}{% endif %}"
)
GEMMA = (Path(__file__).parent / "gemma3.jinja").read_text("utf-8")
# Only the last turn of the user is marked.
LAST = (
    "{% for message in messages %}{{ '<' + message['role'] + ('!' if loop.last else '') + '>' + message['content'] }}"
    "{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)
GOOD = {"tiny": CHAT_TEMPLATE, "chatml": CHATML, "braces": BRACES, "system inside": INSIDE, "gemma 3": GEMMA}
BAD = {
    "no system role": (NO_SYSTEM, "Only user and assistant roles"),
    "last turn": (LAST, ""),
    "quotes": (CHATML.replace("<|im_end|>", '"""'), 'it writes """'),
    "no turns": ("{{ messages | length }}", ""),
    "content lost": ("{% for message in messages %}{{ message['role'] }}{% endfor %}", ""),
    "content twice": (CHATML.replace("message['content']", "message['content'] + message['content']"), ""),
    "upper case": (CHATML.replace("message['content']", "message['content'] | upper"), ""),
}


def conversations() -> list[list[Message]]:
    turns: list[Message] = [
        {
            "role": ("user", "assistant")[n % 2],
            "content": f"{n}: 50% of {{{{ .System }}}} {{x}} \"q\" 'a' \\n\nä🌻 <b>&",
        }
        for n in range(7)
    ]
    system: Message = {"role": "system", "content": "You are {{ a }} pirate.\n\n- Say “arr”."}
    return [[*first, *turns[:stop]] for first in ([], [system]) for stop in (1, 3, 5, 7)]


def template(text: str, **special: str) -> ChatTemplate:
    return ChatTemplate(text, {**SPECIAL, **special}, "here")


def expected(of: ChatTemplate, messages: list[Message], day: date = DAY) -> str:
    """What the model was trained on; the runtime puts the BOS before it."""
    return of.render(messages, day, generate=True).removeprefix(of.special["bos_token"])


@pytest.mark.parametrize("name", GOOD)
def test_the_pieces_say_what_the_template_says(name: str) -> None:
    of = template(GOOD[name])
    pieces = modelfile.derive(of, DAY)
    for messages in conversations():
        assert pieces.render(messages) == expected(of, messages)


@pytest.mark.parametrize("name", BAD)
def test_a_template_that_is_no_sequence_of_turns_is_refused(name: str) -> None:
    text, naming = BAD[name]
    with pytest.raises(ExportError, match=r"cannot be written as an Ollama template: .+") as caught:
        modelfile.derive(template(text), DAY)
    assert naming in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


# Go's text/template is what Ollama runs; these are the names it gives.
GO = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct { Role, Content string }
type Case struct { Template string; Conversations [][]Message }

func main() {
    var cases []Case
    if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
    said := [][]string{}
    for _, c := range cases {
        one := []string{}
        parsed, err := template.New("").Option("missingkey=zero").Parse(c.Template)
        if err != nil { said = append(said, []string{"error: " + err.Error()}); continue }
        for _, messages := range c.Conversations {
            system := []string{}
            for _, message := range messages {
                if message.Role == "system" { system = append(system, message.Content) }
            }
            var out strings.Builder
            data := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": messages, "Response": ""}
            if err := parsed.Execute(&out, data); err != nil { panic(err) }
            one = append(one, out.String())
        }
        said = append(said, one)
    }
    if err := json.NewEncoder(os.Stdout).Encode(said); err != nil { panic(err) }
}
"""


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], list[list[str]]]:
    """What Go makes of each template, on every conversation."""
    if shutil.which("go") is None:
        pytest.skip("no Go toolchain here, whose text/template is what Ollama runs")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO)
    env = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "GOFLAGS": "", "GOTOOLCHAIN": "local"}
    built = subprocess.run(
        ["go", "build", "-o", "main", "main.go"], cwd=folder, env=env, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr

    def go(templates: list[str]) -> list[list[str]]:
        talks = [[{"Role": m["role"], "Content": m["content"]} for m in messages] for messages in conversations()]
        given = json.dumps([{"Template": text, "Conversations": talks} for text in templates])
        done = subprocess.run([folder / "main"], input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    return go


@pytest.mark.parametrize("name", GOOD)
def test_go_says_what_the_template_says(name: str, go: Callable[[list[str]], list[list[str]]]) -> None:
    of = template(GOOD[name])
    [said] = go([modelfile.derive(of, DAY).go()])
    assert said == [expected(of, messages) for messages in conversations()]


# Of llama.cpp's collection: families whose template must work, and some that cannot.
MUST = ("meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "Qwen-Qwen2.5-7B-Instruct")
CANNOT = ("google-gemma-2-2b-it", "mistralai-Mistral-Nemo-Instruct-2407")


@pytest.mark.skipif(not VENDORED.is_dir(), reason="`make vendor` brings the templates of many models")
def test_the_templates_of_many_models_are_right_or_refused(go: Callable[[list[str]], list[list[str]]]) -> None:
    derived: dict[str, tuple[ChatTemplate, str]] = {}
    for path in sorted(VENDORED.glob("*.jinja")):
        bos = "<|begin_of_text|>" if "lama-3" in path.name else "<bos>"
        try:
            of = template(path.read_text("utf-8"), bos_token=bos)
            derived[path.stem] = of, modelfile.derive(of, DAY).go()
        except ExportError:
            continue
    assert set(MUST) <= derived.keys()
    assert not set(CANNOT) & derived.keys()
    wrong = {}
    for (name, (of, _)), said in zip(derived.items(), go([text for _, text in derived.values()]), strict=True):
        wanted = [expected(of, messages) for messages in conversations()]
        if said != wanted:
            wrong[name] = next((pair for pair in zip(said, wanted, strict=False) if pair[0] != pair[1]), said)
    assert wrong == {}


# Beside an export.


def stand_in(folder: Path) -> Path:
    """An `ollama` that does what `ollama create` does before the server: it reads the Modelfile and what it names."""
    (folder / "bin").mkdir()
    script = folder / "bin" / "ollama"
    script.write_text(
        f"""#!{shutil.which("python3")}
import json, os, re, sys
tag, flag, name = sys.argv[2:]
text = open(name, encoding="utf-8").read()
model = re.match(r"FROM (.+)\\n", text)[1]
said = dict(command=sys.argv[1], tag=tag, folder=os.getcwd(), flag=flag, name=name, text=text)
said["magic"] = open(model, "rb").read(4).decode()
with open({str(folder / "said.jsonl")!r}, "a") as log:
    log.write(json.dumps(said) + "\\n")
if os.path.exists({str(folder / "down")!r}):
    sys.exit("gathering model components\\nError: could not connect to ollama app, is it running?\\n")
"""
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def ollama(tmp_path: Path, env: dict[str, str]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """A stand-in for ollama first on the PATH; what it was asked."""
    path = env["PATH"]
    env["PATH"] = f"{stand_in(tmp_path).parent}{os.pathsep}{path}"
    log = tmp_path / "said.jsonl"
    yield lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    env["PATH"] = path


def test_a_modelfile_beside_each_export(quick: Path, run: Run, base: Path) -> None:
    done = run("export", "quick", "--quant", "q4_0", "--no-verify", cwd=quick)
    assert done.returncode == 0, done.stderr
    path = quick / "runs/quick/export/quick-q4_0.Modelfile"
    text = path.read_text("utf-8")
    assert text.startswith('FROM ./quick-q4_0.gguf\nTEMPLATE """{{ if .System }}<|start_header_id|>system')
    # With the date it was trained with, and where an answer ends.
    assert "Today Date: 02 Jan 2026" in text
    assert 'PARAMETER stop "<|eot_id|>"\n' in text
    pieces = modelfile.derive(ChatTemplate.from_folder(base), DAY)
    assert f'TEMPLATE """{pieces.go()}"""\n' in text
    assert "(up to date)" in run("export", "quick", "--quant", "q4_0", "--no-verify", cwd=quick).stdout
    path.unlink()
    assert run("export", "quick", "--quant", "q4_0", "--no-verify", cwd=quick).returncode == 0
    assert path.read_text("utf-8") == text


def test_one_quant_is_one_model(quick: Path, run: Run, ollama: Callable[[], list[dict[str, Any]]]) -> None:
    done = run("export", "quick", "--quant", "q8_0", "--ollama", "me/sunny", "--no-verify", cwd=quick)
    assert done.returncode == 0, done.stderr
    [said] = ollama()
    assert (said["command"], said["tag"], said["flag"], said["magic"]) == ("create", "me/sunny", "-f", "GGUF")
    assert Path(said["folder"]) == (quick / "runs/quick/export").resolve()


def test_several_quants_are_several_tags(quick: Path, run: Run, ollama: Callable[[], list[dict[str, Any]]]) -> None:
    quants = ("--quant", "q8_0", "--quant", "q4_0")
    done = run("export", "quick", *quants, "--ollama", "sunny", "--no-verify", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert [(said["tag"], said["text"].partition("\n")[0]) for said in ollama()] == [
        ("sunny:q8_0", "FROM ./quick-q8_0.gguf"),
        ("sunny:q4_0", "FROM ./quick-q4_0.gguf"),
    ]


def test_an_ollama_that_fails(
    quick: Path, fails: Callable[..., str], tmp_path: Path, ollama: Callable[[], list[dict[str, Any]]]
) -> None:
    (tmp_path / "down").touch()
    fails(
        *("export", "quick", "--quant", "q4_0", "--ollama", "sunny", "--no-verify"),
        cwd=quick,
        naming=["ollama create sunny failed: Error: could not connect to ollama app"],
        works=True,
    )
    assert len(ollama()) == 1
    assert (quick / "runs/quick/export/quick-q4_0.gguf").is_file()
    assert (quick / "runs/quick/export/quick-q4_0.Modelfile").is_file()
    assert not (quick / "runs/quick/partial").exists()


def test_no_ollama(quick: Path, fails: Callable[..., str], env: dict[str, str], tmp_path: Path) -> None:
    path, env["PATH"] = env["PATH"], str(tmp_path)
    try:
        fails("export", "quick", "--quant", "q4_0", "--ollama", "sunny", cwd=quick, naming=["ollama is not installed"])
    finally:
        env["PATH"] = path


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("--ollama", "a b"), "'a b' cannot be the name"),
        (("--ollama", "--help"), "cannot be the name"),
        (("--ollama", "../x"), "cannot be the name"),
        (("--ollama", ""), "cannot be the name"),
        (("--ollama", "a:b:c"), "cannot be the name"),
        (("--ollama", "sunny:latest", "--quant", "q8_0"), "2 quants are exported"),
        (("--ollama", "sunny", "--split-max-size", "2M"), "in several files"),
    ],
)
@pytest.mark.usefixtures("ollama")
def test_names_that_cannot_be(arguments: tuple[str, ...], naming: str, quick: Path, fails: Callable[..., str]) -> None:
    fails("export", "quick", "--quant", "q4_0", "--no-verify", *arguments, cwd=quick, naming=[naming])


@pytest.mark.usefixtures("ollama")
def test_a_template_that_ollama_cannot_have(base: Path, run: Run, fails: Callable[..., str], tmp_path: Path) -> None:
    """The export goes on without a Modelfile; asked for Ollama it fails before the work."""
    folder = tmp_path / "work"
    model = Path(shutil.copytree(base, folder / "model"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": NO_SYSTEM}))
    fails(
        *("export", "model", "--quant", "q4_0", "--ollama", "sunny"),
        cwd=folder,
        naming=["the chat template cannot be written as an Ollama template", "Only user and assistant roles"],
        works=True,
    )
    assert not list(folder.rglob("*.gguf"))
    done = run("export", "model", "--quant", "q4_0", "--no-verify", cwd=folder)
    assert done.returncode == 0, done.stderr
    [said] = [line for line in done.stderr.splitlines() if "Modelfile" in line]
    assert said.startswith("no Modelfile for Ollama: the chat template cannot be written as an Ollama template: ")
    assert {path.name for path in (folder / "exports/model").iterdir()} >= {"model-q4_0.gguf"}
    assert not list(folder.rglob("*.Modelfile"))
