"""The plan of the house: rooms, floors and the maps of them are what the tree is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ggufy"
MODULES = [path.relative_to(ROOT) for path in sorted(PACKAGE.rglob("*.py"))]
HEAVY = ("datasets", "gguf", "llama_cpp", "numpy", "peft", "torch", "transformers", "trl")
# What trains is imported where it trains. gguf's writer and torch's tensor are base classes of ours.
MAY_BE_HEAVY = ("ggufy.train", "ggufy.export.vocabulary.key_writer", "ggufy.verify.disk_tensor")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def rooms() -> set[str]:
    return {path.parts[1] for path in MODULES if len(path.parts) > 2}


def test_the_root_is_narrow() -> None:
    at_root = {path.name for path in MODULES if len(path.parts) == 2}
    assert at_root == {"__init__.py", "__main__.py", "errors.py", "installed.py", "pipeline.py"}


def test_no_folder_is_crowded() -> None:
    held = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    crowded = {str(folder): count for folder, count in held.items() if count > 15 and folder.name != "cli"}
    assert crowded == {}


def test_the_readme_maps_every_room() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Where things are\n")[2].partition("\nA run is a folder")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = [name for cell in first for name in re.findall(r"`([^`]+)`", cell)]
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert {name.split("/")[1] for name in named if name.startswith("ggufy/") and name.endswith("/")} == rooms()
    for row in table.splitlines():
        room, inner = (
            re.match(r"\| `(ggufy/\w+/)`", row),
            re.findall(r"`(\w+/)`", row.partition("|")[2].partition("|")[2]),
        )
        if room:
            assert [name for name in inner if not (ROOT / room[1] / name).is_dir()] == [], row


def test_contributing_draws_the_floors_of_the_contract() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = project.partition("layers = [\n")[2].partition("]")[0]
    contract = [set(re.findall(r"ggufy\.(\w+)", line)) for line in layers.splitlines()]
    drawn = re.findall(r"^ +(\d+)  (\w+(?: \| \w+)*)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    assert [set(names.split(" | ")) for _, names in drawn] == contract
    assert [int(number) for number, _ in drawn] == list(range(len(contract), 0, -1))
    assert len(contract) <= 11
    assert set().union(*contract) == rooms() | {"__main__", "errors", "installed", "pipeline"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.-])(?:ggufy|tests|benchmarks|recipes|docs)/[\w./-]*\w\.(?:py|md|yaml|c)\b", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_rooms_are_light() -> None:
    """Importing any of them costs no heavy package: export, chat and push work without torch."""
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    light = [name for name in names if not name.startswith(MAY_BE_HEAVY) and name != "ggufy.__main__"]
    code = f"import sys, importlib\nfor name in {light!r}: importlib.import_module(name)\n"
    code += f"print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert len(light) > 150
