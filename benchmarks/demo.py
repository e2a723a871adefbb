"""How long a visitor waits: `ggufy --help`, and `ggufy demo` from nothing and again.

    python benchmarks/demo.py

There is no peer with a command like it; the bounds are the project's own: --help under 0.2 s, the demo under 90 s on
2 cores with under 3 s of it for the export.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def timed(folder: Path, *arguments: str) -> tuple[float, str]:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ggufy", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - begun, done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        helps = [timed(folder, "--help")[0] for _ in range(11)]
        print(f"ggufy --help        {statistics.median(helps):6.2f} s   bound 0.2 s")
        first, shown = timed(folder, "demo")
        print(f"ggufy demo          {first:6.2f} s   bound 90 s")
        export = float(re.search(r"export ([\d.]+) s", shown)[1])  # type: ignore[index]
        print(f"  of which export   {export:6.2f} s   bound 3 s")
        print(f"ggufy demo, again   {timed(folder, 'demo')[0]:6.2f} s")


if __name__ == "__main__":
    main()
