"""What all matplotlib pictures share: file names, drawing, saving."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ggufy.errors import GgufyError, MissingExtra


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def check_name(path: Path) -> None:
    """Raises GgufyError where a name would promise another kind of picture."""
    if path.suffix.lower() != ".png":
        raise GgufyError(f"{path.as_posix()}: a picture's name ends in .png", f"for example {path.with_suffix('.png')}")


@contextmanager
def picture(path: Path, title: str = "", *, x: str, y: str) -> Iterator[Any]:
    """Axes to draw on; what was drawn becomes the file, whole or not at all. Raises MissingExtra.

    No window and no global state of matplotlib's is touched (Agg), and the same curves make the same bytes.
    """
    check_name(path)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtra("a picture", "train", "matplotlib") from None
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    # A $ in a name is no formula.
    axes.set_title(title, parse_math=False)
    yield axes
    if axes.get_legend_handles_labels()[1]:
        for text in axes.legend().get_texts():
            text.set_parse_math(False)
    beside = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with warnings.catch_warnings():
            # A name in a script that matplotlib's font lacks is drawn as boxes; the rest of the picture is good.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
            # The version would make other bytes of the same curves.
            canvas.print_png(beside.as_posix(), metadata={"Software": None})
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def label(name: str) -> str:
    """A name as a curve's label: matplotlib leaves those that begin with _ out of the legend."""
    return f" {name}" if name.startswith("_") else name
