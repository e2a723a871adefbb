"""The commands themselves: help, usage, recipes."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]
Fails = Callable[..., str]

RECIPES = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"))
COMMANDS = [
    *("", "demo", "doctor", "recipes", "recipes show", "recipes copy", "recipes check", "plan", "data", "train"),
    *("sweep", "runs", "runs show", "runs compare", "export", "verify", "eval", "chat", "serve", "ui"),
    *("push", "pull", "space"),
]


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help(run: Run, tmp_path: Path, command: str, option: str) -> None:
    done = run(*command.split(), option, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(f"Usage: {' '.join(['ggufy', *command.split()])} ")
    assert not list(tmp_path.iterdir())


def test_every_command_is_tested(run: Run, tmp_path: Path) -> None:
    def subcommands(*of: str) -> set[str]:
        listed = run(*of, "--help", cwd=tmp_path).stdout.partition("\nCommands:\n")[2]
        return {" ".join([*of, line.split()[0]]) for line in listed.splitlines() if line.startswith("  ")}

    top = subcommands()
    below = {name for command in top for name in subcommands(command)}
    assert top
    assert below
    assert top | below == set(COMMANDS) - {""}


def test_help_is_light(run: Run, tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path, python=["-X", "importtime"])
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"click", "ggufy"} <= loaded
    assert not loaded & {"torch", "transformers", "datasets", "llama_cpp", "numpy"}


def test_version(run: Run, tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert done.returncode == 0
    assert any(part[:1].isdigit() for part in done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["exprot"], "Did you mean 'export'?"),
        (["recipes", "shwo"], "Did you mean 'show'?"),
        (["train", "--recpie", "tiny"], "Did you mean '--recipe'?"),
        (["train"], "--recipe"),
        (["train", "--recipe", "tiny", "--backend", "cuda"], "--backend"),
        (["train", "--recipe", "tiny", "--from-hub", "a/b"], "--from-hub"),
        (["push", "--what", "adapter,ggfu"], "ggfu"),
        (["pull"], "user/name"),
        (["demo", "--seed", "-1"], "--seed"),
        (["export", "--threads", "0"], "--threads"),
        (["chat", "--temperature", "hot"], "--temperature"),
        (["eval", "--limit", "0"], "--limit"),
        (["recipes", "copy", "tiny"], "FILE"),
        (["recipes", "show", "tiny", "tiny"], "tiny"),
    ],
    ids=" ".join,
)
def test_usage(run: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    [error] = [line for line in done.stderr.splitlines() if line.lower().startswith("error:")]
    assert said in error
    assert not list(tmp_path.iterdir())


def test_debug_shows_where(run: Run, tmp_path: Path) -> None:
    done = run("--debug", "recipes", "show", "tinny", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "did you mean tiny?" in done.stderr


def test_recipes_lists_all_with_what_they_are(run: Run, tmp_path: Path) -> None:
    done = run("recipes", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    listed = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [name for name, _ in listed] == RECIPES
    assert all(description for _, description in listed)


@pytest.mark.parametrize("name", RECIPES)
def test_what_show_prints_is_the_same_recipe(run: Run, tmp_path: Path, name: str) -> None:
    shown = run("recipes", "show", name, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    (tmp_path / "mine.yaml").write_text(shown.stdout, "utf-8")
    checked = run("recipes", "check", "mine.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert checked.stderr == ""
    again = run("recipes", "show", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[1:] == shown.stdout.splitlines()[1:]


def test_show_shows_what_set_changes(run: Run, tmp_path: Path) -> None:
    plain = run("recipes", "show", "tiny", cwd=tmp_path).stdout.splitlines()
    done = run("recipes", "show", "tiny", "--set", "lora.r=7", "--set", "lora.r=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    changed = [new for old, new in zip(plain, done.stdout.splitlines(), strict=True) if old != new]
    assert [line.split()[:2] for line in changed] == [["r:", "5"]]


@pytest.mark.parametrize("name", RECIPES)
def test_a_copy_is_a_right_recipe(run: Run, tmp_path: Path, name: str) -> None:
    copied = run("recipes", "copy", name, "mine.yaml", cwd=tmp_path)
    assert copied.returncode == 0, copied.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    checked = run("recipes", "check", "mine.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    shown = [run("recipes", "show", each, cwd=tmp_path).stdout.splitlines()[1:] for each in (name, "mine.yaml")]
    assert shown[0]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("content", ["mine, and dear to me\n", ""], ids=["full", "empty"])
def test_copy_never_overwrites(fails: Fails, tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.yaml").write_text(content, "utf-8")
    fails("recipes", "copy", "tiny", "mine.yaml", cwd=tmp_path, naming=["mine.yaml", "exists"])


def test_copy_onto_a_folder(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    fails("recipes", "copy", "tiny", "mine.yaml", cwd=tmp_path, naming=["mine.yaml", "exists"])


def test_copy_through_a_dangling_link(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").symlink_to("elsewhere.yaml")
    fails("recipes", "copy", "tiny", "mine.yaml", cwd=tmp_path, naming=["mine.yaml", "exists"])


def test_copy_into_a_missing_folder(fails: Fails, tmp_path: Path) -> None:
    fails("recipes", "copy", "tiny", "gone/mine.yaml", cwd=tmp_path, naming=["gone/mine.yaml"])
