"""Bad input costs one line and a hint, and nothing that was there."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.conftest import Process

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]
Row = Callable[..., str]
Started = tuple[Process, Path, Path]

TINY = "extends: tiny\n"


def tiny(*overrides: str) -> list[str]:
    """`ggufy train` on the tiny recipe, two steps long."""
    return [
        "train",
        "--recipe",
        "tiny",
        *(part for one in ("train.max_steps=2", *overrides) for part in ("--set", one)),
    ]


def on_file(name: str) -> list[str]:
    return tiny(f"data.source={name}", "data.train_size=null")


# Recipes


@pytest.mark.parametrize(
    "command", [["train", "--recipe"], ["recipes", "show"], ["recipes", "check"]], ids=["train", "show", "check"]
)
@pytest.mark.parametrize(("name", "near"), [("tinny", "tiny"), ("3b_qlra", "3b_qlora"), ("1b-lora", "1b_lora")])
def test_unknown_recipe(fails: Fails, tmp_path: Path, command: list[str], name: str, near: str) -> None:
    fails(*command, name, cwd=tmp_path, naming=[name, near])


def test_unknown_recipe_to_copy(fails: Fails, tmp_path: Path) -> None:
    fails("recipes", "copy", "tinny", "mine.yaml", cwd=tmp_path, naming=["tinny", "tiny"])


@pytest.mark.parametrize(
    "command", [["train", "--recipe"], ["recipes", "show"], ["recipes", "check"]], ids=["train", "show", "check"]
)
def test_recipe_file_is_missing(fails: Fails, tmp_path: Path, command: list[str]) -> None:
    fails(*command, "gone.yaml", cwd=tmp_path, naming=["gone.yaml"])


ONE_MISTAKE = {
    "unknown key": ("lora:\n  alfa: 3\n", 3, ["lora.alfa", "did you mean alpha?"]),
    "unknown section": ("loar:\n  r: 3\n", 2, ["loar", "did you mean lora?"]),
    "key of another section": ("train:\n  alpha: 3\n", 3, ["train.alpha", "lora.alpha"]),
    "text for a number": ("train:\n  learning_rate: fast\n", 3, ["train.learning_rate", "fast"]),
    "text for an integer": ("lora:\n  alpha: 16\n  r: many\n", 4, ["lora.r", "many"]),
    "fraction for an integer": ("lora:\n  r: 8.5\n", 3, ["lora.r", "8.5"]),
    "truth for an integer": ("lora:\n  r: true\n", 3, ["lora.r"]),
    "nothing for an integer": ("lora:\n  r: null\n", 3, ["lora.r"]),
    "quoted truth": ("train:\n  packing: 'yes'\n", 3, ["train.packing", "true or false, without quotes", "'yes'"]),
    "number for a truth": ("lora:\n  rslora: 1\n", 3, ["lora.rslora", "true or false", "not 1"]),
    "text for a truth": ("lora:\n  rslora: maybe\n", 3, ["lora.rslora", "maybe"]),
    "number for a section": ("lora: 5\n", 2, ["lora", "5"]),
    "text for a list": ("export:\n  quants: q8_0\n", 3, ["export.quants", "q8_0"]),
    "rank zero": ("lora:\n  r: 0\n", 3, ["lora.r", "0"]),
    "negative rate": ("train:\n  learning_rate: -1\n", 3, ["train.learning_rate", "-1"]),
    "rate that is no number": ("train:\n  learning_rate: .nan\n", 3, ["train.learning_rate", "nan"]),
    "no steps": ("train:\n  max_steps: 0\n", 3, ["train.max_steps", "0"]),
    "everything dropped": ("lora:\n  dropout: 1.5\n", 3, ["lora.dropout", "1.5"]),
    "no rows": ("data:\n  train_size: 0\n", 3, ["data.train_size", "0"]),
    "not a choice": ("model:\n  load_in: 3bit\n", 3, ["model.load_in", "3bit", "4bit", "16bit"]),
}


@pytest.mark.parametrize(("text", "line", "naming"), ONE_MISTAKE.values(), ids=ONE_MISTAKE.keys())
def test_one_mistake(fails: Fails, tmp_path: Path, text: str, line: int, naming: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(TINY + text, "utf-8")
    fails("recipes", "check", "mine.yaml", cwd=tmp_path, naming=[f"mine.yaml:{line}", *naming])


@pytest.mark.parametrize("command", [["train", "--recipe"], ["recipes", "show"]], ids=["train", "show"])
def test_a_mistake_is_told_by_every_command(fails: Fails, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(TINY + "lora:\n  alfa: 3\n", "utf-8")
    fails(*command, "mine.yaml", cwd=tmp_path, naming=["mine.yaml:3", "lora.alfa", "did you mean alpha?"])


@pytest.mark.parametrize(
    ("override", "naming"),
    [
        ("lora.alfa=3", ["did you mean alpha?"]),
        ("loar.r=3", ["did you mean lora?"]),
        ("r=3", ["lora.r"]),
        ("lora.r", ["section.key=value"]),
        ("lora.=3", ["section.key=value"]),
        ("lora.r=", ["lora.r"]),
        ("lora.r=0", ["lora.r"]),
        ("lora.r=true", ["lora.r"]),
        ("train.packing='yes'", ["train.packing", "expected true or false"]),
        ("lora.r=many", ["lora.r"]),
        ("lora=5", ["lora"]),
        ("train.learning_rate=inf", ["train.learning_rate"]),
    ],
)
@pytest.mark.parametrize("command", [tiny(), ["recipes", "check", "tiny"]], ids=["train", "check"])
def test_one_mistake_in_set(fails: Fails, tmp_path: Path, command: list[str], override: str, naming: list[str]) -> None:
    fails(*command, "--set", override, cwd=tmp_path, naming=[f"--set {override}", *naming])


def test_several_mistakes_in_one_message(fails: Fails, tmp_path: Path) -> None:
    text = TINY + "lora:\n  r: 0\n  alfa: 3\ntrain:\n  learning_rate: fast\nloar: 1\n"
    (tmp_path / "mine.yaml").write_text(text, "utf-8")
    naming = ["mine.yaml:3: lora.r", "mine.yaml:4: lora.alfa", "mine.yaml:6: train.learning_rate", "mine.yaml:7: loar"]
    fails("recipes", "check", "mine.yaml", cwd=tmp_path, naming=naming)


@pytest.mark.parametrize(
    ("text", "naming"),
    [
        ("lora:\n  r: 4\n  r: 8\n", ["mine.yaml:4", "mine.yaml:3", "lora.r", "twice"]),
        ("lora:\n  r: 4\nlora:\n  alpha: 8\n", ["mine.yaml:4", "mine.yaml:2", "lora", "twice"]),
    ],
    ids=["key", "section"],
)
def test_given_twice(fails: Fails, tmp_path: Path, text: str, naming: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(TINY + text, "utf-8")
    fails("recipes", "check", "mine.yaml", cwd=tmp_path, naming=naming)


@pytest.mark.parametrize(
    ("content", "naming"),
    [
        (b"extends: tiny\nlora: [r: 4\n", ["mine.yaml:3"]),
        (b"extends: tiny\nlora:\n\tr: 4\n", ["mine.yaml:3"]),
        (b"extends: tiny\nlora: *nowhere\n", ["mine.yaml:2"]),
        (b"extends: tiny\nlora: &a\n  r: *a\n", ["mine.yaml:"]),
        (b"extends: tiny\nlora: !!python/object/apply:os.mkdir [owned]\n", ["mine.yaml:2"]),
        (b"extends: tiny\n---\nextends: tiny\n", ["mine.yaml:2"]),
        (b"- extends\n- tiny\n", ["mine.yaml:1"]),
        (b"tiny\n", ["mine.yaml:1"]),
        (b"description: caf\xe9\n", ["mine.yaml"]),
        (b"\x00\x01\x02", ["mine.yaml"]),
        (b"", ["mine.yaml"]),
    ],
    ids=["unclosed", "tab", "alias", "recursive", "object", "two", "list", "word", "latin-1", "binary", "empty"],
)
def test_not_a_recipe(fails: Fails, tmp_path: Path, content: bytes, naming: list[str]) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    fails("recipes", "check", "mine.yaml", cwd=tmp_path, naming=naming)


@pytest.mark.parametrize(
    ("extends", "naming"),
    [
        ("tinny", ["mine.yaml:1", "tinny", "tiny"]),
        ("gone.yaml", ["mine.yaml:1", "gone.yaml"]),
        ("3", ["mine.yaml:1", "extends"]),
        ("mine.yaml", ["mine.yaml:1", "circle"]),
        ("other.yaml", ["other.yaml:1", "mine.yaml", "circle"]),
    ],
    ids=["unknown", "missing", "number", "itself", "circle"],
)
def test_extends(fails: Fails, tmp_path: Path, extends: str, naming: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: {extends}\n", "utf-8")
    (tmp_path / "other.yaml").write_text("extends: mine.yaml\n", "utf-8")
    fails("recipes", "check", "mine.yaml", cwd=tmp_path, naming=naming)


@pytest.mark.parametrize("number", ["2e-4", "'2e-4'", "2.0e-4", "0.0002", "2E-4"])
def test_a_number_is_a_number_however_written(run: Run, tmp_path: Path, number: str) -> None:
    (tmp_path / "mine.yaml").write_text(TINY + f"train:\n  learning_rate: {number}\n", "utf-8")
    for command in (["mine.yaml"], ["tiny", "--set", f"train.learning_rate={number}"]):
        shown = run("recipes", "show", *command, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        [value] = re.findall(r"^  learning_rate: (\S+)", shown.stdout, re.MULTILINE)
        assert float(value) == 2e-4


# Data


DATA: dict[str, tuple[str | None, list[str], list[str]]] = {
    "missing": (None, ["my.jsonl"], ["data.source"]),
    "empty": ("", ["my.jsonl", "empty"], []),
    "not json": ("{good}\n{good}{{oops\n{good}", ["my.jsonl:4"], []),
    "unknown format": ('{{"zeta": "x", "bar": "y"}}\n', ["my.jsonl:1", "zeta", "bar"], ["sharegpt", "messages"]),
    "role marker": ("{good}{marked}{good}", ["my.jsonl:2", "<|eot_id|>"], ["data.on_bad_row=skip"]),
}


@pytest.mark.parametrize(("text", "naming", "hinting"), DATA.values(), ids=DATA.keys())
def test_data_file(
    fails: Fails, row: Row, tmp_path: Path, text: str | None, naming: list[str], hinting: list[str]
) -> None:
    if text is not None:
        filled = text.format(good=row("hello"), marked=row("hello <|eot_id|> there"))
        (tmp_path / "my.jsonl").write_text(filled, "utf-8")
    fails(*on_file("my.jsonl"), cwd=tmp_path, naming=naming, hinting=hinting, works=True)
    # Nothing is left that looks like a run with something in it.
    fails("export", cwd=tmp_path, naming=["runs"])


def test_every_label_is_masked(fails: Fails, tmp_path: Path) -> None:
    naming = ["builtin:samples", "masked", "model.max_length"]
    fails(*tiny("model.max_length=8"), cwd=tmp_path, naming=naming, hinting=["model.max_length"], works=True)


def test_bad_rows_are_skipped_and_counted(local_made: tuple[Path, str]) -> None:
    said = local_made[1]
    [counted] = [line for line in said.splitlines() if "skipped" in line]
    assert "3 of 4" in counted
    assert re.search(r"\b1 \D*skipped", counted)
    assert "data.jsonl:2" in counted


# Quants


QUANTS = ["q9_0", "f16", "q8_0", "q4_k_m", "bf16"]


def test_unknown_quant(fails: Fails, quick: Path) -> None:
    fails("export", "quick", "--quant", "q9_0", cwd=quick, naming=QUANTS)


def test_one_unknown_quant_of_two(fails: Fails, quick: Path) -> None:
    fails("export", "quick", "--quant", "q4_k_m", "--quant", "q9_0", cwd=quick, naming=QUANTS)


def test_unknown_quant_to_chat_with(fails: Fails, quick: Path) -> None:
    fails("chat", "quick", "--quant", "q9_0", "--prompt", "hi", cwd=quick, naming=QUANTS)


@pytest.mark.parametrize("command", [["recipes", "check"], ["train", "--recipe"]], ids=["check", "train"])
def test_unknown_quant_in_a_recipe(fails: Fails, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(TINY + "export:\n  quants: [q8_0, q9_0]\n", "utf-8")
    fails(*command, "mine.yaml", cwd=tmp_path, naming=["mine.yaml:3", "export.quants", *QUANTS])


def test_unknown_quant_in_set(fails: Fails, tmp_path: Path) -> None:
    naming = ["--set export.quants=[q9_0]", *QUANTS]
    fails("train", "--recipe", "tiny", "--set", "export.quants=[q9_0]", cwd=tmp_path, naming=naming)


# Bases


def test_base_without_config(fails: Fails, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "mine", ignore=shutil.ignore_patterns("config.json"))
    fails(*tiny("model.base=./mine"), cwd=tmp_path, naming=["mine", "config.json"], hinting=["model.base"], works=True)


def test_base_is_missing(fails: Fails, tmp_path: Path) -> None:
    fails(*tiny("model.base=./mine"), cwd=tmp_path, naming=["mine"], hinting=["model.base"], works=True)


def test_base_is_pickled(fails: Fails, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "mine", ignore=shutil.ignore_patterns("*.safetensors*"))
    (tmp_path / "mine" / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    naming = ["mine", "pytorch_model.bin"]
    fails(*tiny("model.base=./mine"), cwd=tmp_path, naming=naming, hinting=["safetensors"], works=True)


def test_base_is_truncated_at_train(fails: Fails, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "mine")
    weights = tmp_path / "mine" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3_000_000])
    fails(*tiny("model.base=./mine"), cwd=tmp_path, naming=["mine", "model.safetensors"], works=True)


@pytest.mark.parametrize("size", [-1, 3_000_000, 1000, 4, 0])
def test_base_is_truncated_at_export(fails: Fails, local: Path, size: int) -> None:
    weights = local / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    fails("export", "local", "--quant", "q8_0", cwd=local, naming=["base", "model.safetensors"], works=True)
    assert not list(local.rglob("*.gguf*"))


# Runs


def test_run_of_a_different_recipe(fails: Fails, quick: Path, quick_again: tuple[str, ...]) -> None:
    fails(
        *("train", *quick_again, "--set", "lora.r=8", "--set", "train.learning_rate=1e-3"),
        cwd=quick,
        naming=["runs/quick", "lora.r", "32", "8", "train.learning_rate", "0.002", "0.001"],
        hinting=["--fresh", "--run"],
    )


def test_changed_data(fails: Fails, row: Row, local: Path, local_again: tuple[str, ...]) -> None:
    with (local / "data.jsonl").open("a", encoding="utf-8") as data:
        data.write(row("five"))
    fails(
        *("train", *local_again),
        cwd=local,
        naming=["runs/local", "data.jsonl", "changed"],
        hinting=["--fresh", "--run"],
    )


LIVE = ("--recipe", "tiny", "--run", "live", "--set", "train.max_steps=900", "--set", "train.save_steps=5")


@pytest.fixture(scope="module")
def live(start: Callable[..., Process], quick_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Started:
    """A training in the background, and the folder it runs in; the test that interrupts it is the last one."""
    assert quick_made.is_dir()
    cwd = tmp_path_factory.mktemp("live")
    log = tmp_path_factory.mktemp("log") / "log"
    process = start("train", *LIVE, cwd=cwd, log=log)
    folder = cwd / "runs" / "live"
    end = time.monotonic() + 120
    while not ((folder / "lock").exists() and list(folder.glob("checkpoints/checkpoint-*/manifest.json"))):
        assert process.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < end, log.read_text("utf-8")
        time.sleep(0.1)
    return process, cwd, log


@pytest.mark.parametrize(
    "command",
    [["train", *LIVE], ["train", *LIVE, "--fresh"], ["export", "live"]],
    ids=["train", "train --fresh", "export"],
)
def test_second_process(run: Run, live: Started, command: list[str]) -> None:
    process, cwd, _ = live
    folder = cwd / "runs" / "live"
    metrics, identity = (folder / "metrics.jsonl").read_text("utf-8"), (folder / "run.json").read_bytes()
    assert metrics
    second = run(*command, cwd=cwd)
    assert second.returncode == 1
    assert "Traceback" not in second.stdout + second.stderr
    error, hint = second.stderr.splitlines()
    assert error.startswith("error: ")
    assert "runs/live" in error
    assert str(process.pid) in error
    assert hint.startswith("hint: ")
    assert process.poll() is None
    assert (folder / "metrics.jsonl").read_text("utf-8").startswith(metrics)
    assert (folder / "run.json").read_bytes() == identity
    assert list(folder.glob("checkpoints/checkpoint-*/manifest.json"))


def test_interrupted(live: Started) -> None:
    process, cwd, log = live
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    said = log.read_text("utf-8")
    assert "Traceback" not in said
    assert "error:" not in said
    steps = [json.loads(line)["step"] for line in (cwd / "runs/live/metrics.jsonl").read_text("utf-8").splitlines()]
    assert (cwd / f"runs/live/checkpoints/checkpoint-{steps[-1]}/manifest.json").is_file()


def test_no_gpu(fails: Fails, tmp_path: Path) -> None:
    said = fails(
        *("train", "--recipe", "3b_qlora"),
        cwd=tmp_path,
        naming=["no GPU", "3b_qlora"],
        hinting=["--backend hf", "ggufy demo"],
    )
    assert re.search(r"about \d+ (minutes|hours|days)", said)


@pytest.mark.parametrize("command", [["export"], ["chat", "--prompt", "hi"]], ids=["export", "chat"])
def test_no_runs_yet(fails: Fails, tmp_path: Path, command: list[str]) -> None:
    fails(*command, cwd=tmp_path, naming=["no runs yet"], hinting=["ggufy train --recipe tiny"])


@pytest.mark.parametrize("command", [["export"], ["chat", "--prompt", "hi"]], ids=["export", "chat"])
@pytest.mark.parametrize("name", ["quik", "../quick", "runs/gone"])
def test_unknown_run(fails: Fails, quick: Path, command: list[str], name: str) -> None:
    fails(*command, name, cwd=quick, naming=[name], hinting=["quick"])


def test_run_without_an_adapter(fails: Fails, quick: Path) -> None:
    for part in ("adapter", "stamps", "checkpoints"):
        shutil.rmtree(quick / "runs" / "quick" / part)
    fails("export", "quick", cwd=quick, naming=["runs/quick", "adapter"], hinting=["ggufy train"])


def test_run_without_an_export(fails: Fails, local: Path) -> None:
    fails("chat", "local", "--prompt", "hi", cwd=local, naming=["runs/local", "GGUF"], hinting=["ggufy export local"])


@pytest.mark.parametrize("name", ["..", "."])
def test_run_name_that_would_start_over_what_is_no_run(fails: Fails, tmp_path: Path, name: str) -> None:
    for path in ("mine.txt", "data/mine.txt", "runs/mine.txt", "runs/old/mine.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("dear to me", "utf-8")
    fails(*tiny(), "--fresh", "--run", name, cwd=tmp_path, naming=[f"'{name}'"], works=True)


# GGUF files


def exported(folder: Path) -> Path:
    [path] = folder.glob("runs/quick/export/*.gguf")
    return path


@pytest.mark.parametrize("size", [-1, 100_000, 5_000, 30])
def test_chat_with_a_truncated_file(fails: Fails, quick_made: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(exported(quick_made).read_bytes()[:size])
    fails("chat", "cut.gguf", "--prompt", "hi", cwd=tmp_path, naming=["cut.gguf", "truncated"])


def test_chat_with_a_run_whose_export_is_truncated(fails: Fails, quick: Path) -> None:
    path = exported(quick)
    path.write_bytes(path.read_bytes()[:1_000_000])
    fails("chat", "quick", "--prompt", "hi", cwd=quick, naming=["runs/quick"], hinting=["ggufy export quick"])


@pytest.mark.parametrize("content", [b"hello there\n", b"", b"GGU", b"PK\x03\x04" + bytes(100), bytes(4096)])
def test_chat_with_what_is_no_gguf(fails: Fails, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.gguf").write_bytes(content)
    fails("chat", "some.gguf", "--prompt", "hi", cwd=tmp_path, naming=["some.gguf", "not a GGUF"])


def test_chat_with_a_missing_file(fails: Fails, tmp_path: Path) -> None:
    fails("chat", "gone.gguf", "--prompt", "hi", cwd=tmp_path, naming=["gone.gguf"])


def test_chat_with_a_folder(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "some.gguf").mkdir()
    fails("chat", "some.gguf", "--prompt", "hi", cwd=tmp_path, naming=["some.gguf"])
