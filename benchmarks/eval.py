"""How long `ggufy eval` takes on the run of the demonstration: from nothing, and again.

    python benchmarks/eval.py

The bound is the project's own: 60 s on 2 cores, with the model in torch, two quants against F16, and 14 prompts to base
and tuned model.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path


def timed(folder: Path, *arguments: str) -> float:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ggufy", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed(folder, "demo")
        print(f"ggufy eval demo          {timed(folder, 'eval', 'demo'):6.2f} s   bound 60 s")
        print(f"ggufy eval demo, again   {timed(folder, 'eval', 'demo'):6.2f} s")


if __name__ == "__main__":
    main()
