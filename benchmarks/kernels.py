"""Million weights a second on one core, for each type and variant: ggufy's kernels and llama.cpp's, in turn.

    python benchmarks/kernels.py [--types q4_k q6_k] [--rounds 5] [--json FILE]

The rows are normal values of a real matrix's size, rounded to float16: what an export hands to a kernel. Times are CPU
time of this thread, the least of the rounds; in each round every kernel runs once, so a busy machine slows all alike.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ggufy import ggml
from ggufy.export import native
from ggufy.export.kernels import build

ROWS, COLUMNS = 512, 2048


def seconds(work: Callable[[], object]) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def measure(number: int, importance: np.ndarray | None, rounds: int) -> dict[str, float]:
    """Seconds by kernel, "llama.cpp" first."""
    rows = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32) * np.float32(0.02)
    rows = rows.astype(np.float16).astype(np.float32)
    out = np.empty(ROWS * ggml.row_size(number, COLUMNS), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    chunk = ggml.library().ggml_quantize_chunk
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
        raise SystemExit(f"{ggml.type_name(number)}: {', '.join(different)} gives other bytes")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=native.TYPES, default=native.TYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    numbers = {name: i for i in range(42) if (name := ggml.type_name(i)) in words.types}
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


if __name__ == "__main__":
    main()
