"""Verifying a GGUF against the training model: an earlier commit against this one, in turn, on random weights.

    python benchmarks/verify.py [--shape 1b|3b] [--quant q4_k_m] [--rounds 3] [--commit 77b9092] [--folder DIR]

Each is `ggufy verify` on the same folder of exports, with all of its checks: hashes, llama.cpp's loading and
tokenizing, rows of weights, logits. The earlier commit, by default the last that held the training model in memory
whole, is checked out beside this one for the time being (`git worktree`). Times and memory are those of the process, as
in export.py.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from export import REPOSITORY, VENDOR, Cost, make_adapter, measure, warm

from ggufy.model import random_llama
from ggufy.system.machine import cores

BEFORE = "77b9092"


def command(code: Path, folder: Path) -> list[str]:
    """`ggufy verify` of the package in `code`, whichever is installed."""
    return ["env", f"PYTHONPATH={code}", "HF_HUB_OFFLINE=1", sys.executable, "-m", "ggufy", "verify", str(folder)]


def compares_logits(code: Path, folder: Path) -> bool:
    """Whether it gets as far as the logits: with too little memory the earlier one leaves them out."""
    done = subprocess.run(command(code, folder), capture_output=True, text=True, check=True)
    return "against the training model" in done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(random_llama.SHAPES), default="1b")
    parser.add_argument("--quant", default="q4_k_m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commit", default=BEFORE, help="what this commit is compared with")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here for the next time")
    given = parser.parse_args()
    kept = given.folder.resolve() if given.folder else None
    # `-m` looks in the current folder first, which is not to be a checkout.
    os.chdir(tempfile.gettempdir())
    git = ["git", "-C", str(REPOSITORY)]
    with tempfile.TemporaryDirectory() as scratch:
        earlier = Path(scratch) / "earlier"
        done = subprocess.run(
            [*git, "worktree", "add", "--detach", str(earlier), given.commit], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{given.commit} cannot be checked out here: {done.stderr.strip()}")
        try:
            compare(given, earlier, kept or Path(scratch))
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(earlier)], check=True)


def compare(given: argparse.Namespace, earlier: Path, folder: Path) -> None:
    base, adapter, out = folder / given.shape, folder / f"{given.shape}-adapter", folder / f"{given.shape}-exports"
    if not (adapter / "adapter_config.json").is_file():
        random_llama.write(base, random_llama.SHAPES[given.shape], VENDOR / "models" / "ggml-vocab-llama-bpe.gguf")
        make_adapter(base, adapter)
    export = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "ggufy", "export", str(adapter)]
    how = ["--base", str(base), "--out", str(out), "--quant", given.quant, "--no-verify"]
    subprocess.run([*export, *how], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sides = {given.commit: earlier, "this commit": REPOSITORY}
    for name, code in sides.items():
        if not compares_logits(code, out):
            sys.exit(f"{name} does not compare logits here: too little memory, or no torch")
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(given.rounds):
        for name, code in sides.items():
            warm(base)
            costs[name].append(measure(*command(code, out)))
    print(
        f"{given.shape} {given.quant}, {cores()} cores; wall s by round, median; CPU s; peak anonymous MB, resident MB"
    )
    walls = {name: statistics.median(cost.wall for cost in found) for name, found in costs.items()}
    for name, found in costs.items():
        rounds = ", ".join(f"{cost.wall:.1f}" for cost in found)
        cpu = statistics.median(cost.cpu for cost in found)
        peaks = [max(getattr(cost, kind) for cost in found) / 1e6 for kind in ("anonymous", "resident")]
        print(f"  {name:<12} {rounds:<24} {walls[name]:6.1f} {cpu:7.1f} {peaks[0]:8.0f} {peaks[1]:8.0f}")
    before, now = walls.values()
    most, least = (max(cost.anonymous for cost in found) for found in costs.values())
    print(f"  ratio        {before / now:.2f} in time, {most / least:.1f} in memory")


if __name__ == "__main__":
    main()
