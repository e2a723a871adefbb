"""Million weights a second on one core, for each type and variant: ggufy's kernels and llama.cpp's, in turn.

    python benchmarks/kernels.py [--types q4_k q6_k] [--rounds 5] [--json FILE] [--plot FILE.svg]

The rows are normal values of a real matrix's size, rounded to float16: what an export hands to a kernel. Times are CPU
time of this thread, the least of the rounds; in each round every kernel runs once, so a busy machine slows all alike.
--plot draws them as bars; it needs matplotlib.
"""

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.export.kernels import build, native
from ggufy.llamacpp import library

ROWS, COLUMNS = 512, 2048


def seconds(work: Callable[[], object]) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def measure(number: int, importance: np.ndarray | None, rounds: int) -> dict[str, float]:
    """Seconds by kernel, "llama.cpp" first."""
    rows = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32) * np.float32(0.02)
    rows = rows.astype(np.float16).astype(np.float32)
    out = np.empty(ROWS * library.row_size(number, COLUMNS), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    chunk = library.library().ggml_quantize_chunk
    best: dict[str, float] = {}
    kernels: dict[str, Callable[[], Any]] = {
        "llama.cpp": lambda: chunk(number, rows.ctypes.data, out.ctypes.data, 0, ROWS, COLUMNS, weights)
    }
    for variant in reversed(native.variants()):
        kernels[variant] = lambda variant=variant: native.quantize(number, rows, out, importance, variant)
    results = {}
    for _ in range(rounds):
        for name, kernel in kernels.items():
            best[name] = min(best.get(name, 1e9), seconds(kernel))
            results[name] = out.tobytes()
    different = [name for name, result in results.items() if result != results["llama.cpp"]]
    if different:
        raise SystemExit(f"{library.type_name(number)}: {', '.join(different)} gives other bytes")
    return best


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Times llama.cpp's speed, by type and variant: without an importance matrix above, with one below."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same file from the same figures.
    mpl.rcParams["svg.hashsalt"] = "ggufy"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    for panel, importance in zip(panels, (False, True), strict=True):
        rows = [row for row in found if row["importance"] == importance]
        names = [name for name in rows[0]["speeds"] if name != "llama.cpp"]
        for number, name in enumerate(names):
            ratios = [row["speeds"][name] / row["speeds"]["llama.cpp"] for row in rows]
            places = [place + (number - (len(names) - 1) / 2) * 0.8 / len(names) for place in range(len(rows))]
            bars = panel.bar(places, ratios, 0.8 / len(names), label=name)
            panel.bar_label(bars, fmt="%.1f", fontsize=7)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_xticks(range(len(rows)), [row["type"] for row in rows])
        panel.set_title("with an importance matrix" if importance else "without an importance matrix", fontsize=10)
        panel.set_ylabel("times llama.cpp's speed")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, ncols=len(names))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=native.TYPES, default=native.TYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture: .svg or .png")
    words = parser.parse_args()
    if words.plot and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install matplotlib")
    numbers = {name: i for i in range(42) if (name := library.type_name(i)) in words.types}
    importance = np.random.default_rng(1).random(COLUMNS, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        if not native.variants():
            build.build(Path(folder))
            os.environ[native.PLACE] = folder
        found = []
        for weights in (None, importance):
            print("\nwith an importance matrix" if weights is not None else "million weights/s on one core")
            names = ["llama.cpp", *reversed(native.variants())]
            print(" " * 8 + "".join(f"{name:>18}" for name in names))
            for kind in words.types:
                times = measure(numbers[kind], weights, words.rounds)
                speeds = {name: ROWS * COLUMNS / time / 1e6 for name, time in times.items()}
                ratios = [f"{speeds[name]:9.1f} {speeds[name] / speeds['llama.cpp']:6.2f} x" for name in names]
                print(f"{kind:8}" + "".join(f"{text:>18}" for text in ratios), flush=True)
                found.append({"type": kind, "importance": weights is not None, "speeds": speeds})
    if words.json:
        words.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if words.plot:
        plot(found, words.plot)


if __name__ == "__main__":
    main()
