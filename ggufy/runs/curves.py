"""Draw loss curves: with block characters for a terminal, and as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ggufy.system import plots

Curve = Sequence[tuple[int, float]]
_MARKS = "█▒░▓"


def blocks(curves: Mapping[str, Curve], width: int = 64, height: int = 12) -> list[str]:
    """The curves over one another, each with a mark of its own; where two meet, the later one is seen.

    Of several steps in one column the mean is drawn. Nothing where no curve has a finite point.
    """
    drawn = {name: [(x, y) for x, y in points if y == y and abs(y) != float("inf")] for name, points in curves.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return []
    last = max(points[-1][0] for points in drawn.values())
    values = [y for points in drawn.values() for _, y in points]
    low, high = min(values), max(values)
    grid = [[" "] * width for _ in range(height)]
    for mark, points in zip(_MARKS * len(drawn), drawn.values(), strict=False):
        columns: dict[int, list[float]] = {}
        for x, y in points:
            columns.setdefault(min(width - 1, x * width // max(last, 1)), []).append(y)
        for column, ys in columns.items():
            share = (sum(ys) / len(ys) - low) / ((high - low) or 1)
            grid[height - 1 - round(share * (height - 1))][column] = mark
    lines = []
    for number, cells in enumerate(grid):
        value = high - (high - low) * number / max(height - 1, 1)
        label = f"{value:.3f}" if number in (0, height - 1) or number == height // 2 else ""
        lines.append(f"{label:>9} │{''.join(cells).rstrip()}")
    lines.append(f"{'':>9} └{'─' * width}")
    lines.append(f"{'':>11}{'step 0':<{width - len(str(last))}}{last}")
    marks = "   ".join(f"{mark} {name}" for mark, name in zip(_MARKS * len(drawn), drawn, strict=False))
    return [*lines, f"{'':>11}{marks}"]


def png(path: Path, curves: Mapping[str, Curve]) -> None:
    """The curves in one plot. Raises MissingExtra without matplotlib."""
    with plots.picture(path, x="step", y="loss") as axes:
        for name, points in curves.items():
            if points:
                xs, ys = zip(*points, strict=True)
                style = ["--o"] if name.endswith("eval") else []
                axes.plot(xs, ys, *style, label=plots.label(name), markersize=3)
        axes.grid(visible=True, alpha=0.3)
