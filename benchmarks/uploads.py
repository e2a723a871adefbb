"""Time a training that sends each checkpoint to the Hub while it trains, against the same one that sends none.

    python benchmarks/uploads.py [--steps 60] [--every 10] [--rounds 3] [--cores 1]

The built-in tiny model with a large adapter, and the loopback Hub of the tests. The two take turns; what is compared is
the time of the steps, saves included, which both do. The training computes on `--cores` threads: with one fewer than
the machine has there is a core for the sending, as there is beside a GPU. The sending needs a core's time for hashes
and copies; on a machine without a spare core that time comes from the training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
TOKEN = f"hf_{'a' * 34}"


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--steps", type=int, default=60)
    asked.add_argument("--every", type=int, default=10)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--cores", type=int, default=1)
    options = asked.parse_args()
    seconds: dict[str, list[float]] = {"off": [], "every_save": []}
    sent = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "tests.hub.server", str(folder / "hub")]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            ask(url, "state", {"people": {TOKEN: {"name": "ann"}}})
            for number in range(options.rounds):
                for mode in seconds:
                    seconds[mode].append(train(folder, url, mode, number, options))
                    print(f"{mode}, round {number + 1}: {seconds[mode][-1]:.2f} s", flush=True)
            for repo in ask(url, "look", {})["repos"].values():
                sent += repo["commits"] - 1
        finally:
            server.kill()
            server.wait()
    if not sent:
        sys.exit("nothing arrived on the Hub, so nothing was measured")
    off, on = median(seconds["off"]), median(seconds["every_save"])
    print(f"{options.steps} steps: {off:.2f} s without, {on:.2f} s while {sent / options.rounds:.0f} commits were sent")
    print(f"ratio {on / off:.3f}; rounds without differ by {max(seconds['off']) / min(seconds['off']):.3f}")


def ask(url: str, what: str, values: object) -> dict[str, dict[str, dict[str, int]]]:
    request = urllib.request.Request(f"{url}/_/{what}", json.dumps(values).encode(), method="POST")
    with urllib.request.urlopen(request) as answer:
        found: dict[str, dict[str, dict[str, int]]] = json.load(answer)
        return found


def train(folder: Path, url: str, mode: str, number: int, options: argparse.Namespace) -> float:
    run = f"{mode}-{number}"
    settings = {
        "lora.r": 64,
        "train.max_steps": options.steps,
        "train.save_steps": options.every,
        "hub.checkpoints": mode,
        **({"hub.repo": f"ann/{run.replace('_', '-')}"} if mode != "off" else {}),
    }
    env = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "GGUFY_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": str(options.cores),
        "PYTHONPATH": str(ROOT),
    }
    env.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "ggufy", "train", "--recipe", "tiny", "--run", run]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(json.loads((folder / "runs" / run / "summary.json").read_text())["seconds"])


if __name__ == "__main__":
    main()
