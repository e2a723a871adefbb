"""Pictures: whole or not there, and any name can be drawn. A warning of matplotlib's would fail these tests."""

from pathlib import Path

import pytest

from ggufy.errors import GgufyError
from ggufy.runs import curves
from ggufy.system import plots

FALLING = [(step, 5.0 - step / 10) for step in range(30)]


def test_any_name_of_a_run_can_be_drawn(tmp_path: Path) -> None:
    """Other scripts, what matplotlib would read as a formula (a wrong one), and what it leaves out of a legend."""
    names = ["日本語のラン", r"$\frac$", "_hidden", "plain"]
    with plots.picture(tmp_path / "a.png", r"$\frac$ 你好", x="step", y="loss") as axes:
        for name in names:
            axes.plot(*zip(*FALLING, strict=True), label=plots.label(name))
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == names
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_same_curves_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        curves.png(tmp_path / name, {"one": FALLING, "one eval": [(9, 4.5)], "none": []})
    curves.png(tmp_path / "c.png", {"one": FALLING[:20]})
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in "abc"]
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_picture_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), plots.picture(path, x="step", y="loss"):
        _ = 1 / 0
    assert path.read_bytes() == b"before"
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"folder\.png"):
        curves.png(tmp_path / "folder.png", {"one": FALLING})
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.png", "folder.png"]


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    with pytest.raises(GgufyError, match=r"a picture's name ends in \.png") as caught:
        curves.png(tmp_path / "a.svg", {"one": FALLING})
    assert "a.png" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())
