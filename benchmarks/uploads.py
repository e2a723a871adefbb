"""Time a training that sends each checkpoint to the Hub while it trains, against the same one that sends none.

    python benchmarks/uploads.py [--steps 60] [--every 10] [--rounds 3] [--cores 1]

The built-in tiny model with a large adapter, and the loopback Hub of the tests. The two take turns; what is compared is
the time of the steps, saves included, which both do, and the time on a core of all processes together: what the sending
takes, which other work on the machine changes less. The training computes on `--cores` threads: with one fewer than the
machine has there is a core for the sending, as there is beside a GPU; without a spare core that time comes from the
training.
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
    cpu: dict[str, list[float]] = {"off": [], "every_save": []}
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
                    steps, core = train(folder, url, mode, number, options)
                    seconds[mode].append(steps)
                    cpu[mode].append(core)
                    print(f"{mode}, round {number + 1}: {steps:.2f} s, {core:.2f} s on a core", flush=True)
            for repo in ask(url, "look", {})["repos"].values():
                sent += repo["commits"] - 1
            checkpoints = list((folder / "runs/every_save-0/checkpoints").glob("checkpoint-*"))
            size = sum(path.stat().st_size for path in checkpoints[0].iterdir())
        finally:
            server.kill()
            server.wait()
    if not sent:
        sys.exit("nothing arrived on the Hub, so nothing was measured")
    off, on = median(seconds["off"]), median(seconds["every_save"])
    print(f"{options.steps} steps: {off:.2f} s without, {on:.2f} s while {sent / options.rounds:.0f} commits were sent")
    print(f"ratio {on / off:.3f}; rounds without differ by {max(seconds['off']) / min(seconds['off']):.3f}")
    plain, more = median(cpu["off"]), median(cpu["every_save"]) - median(cpu["off"])
    print(f"on a core: {plain:.2f} s without, {more:.2f} s more with it; a checkpoint has {size / 1e6:.1f} MB")


def ask(url: str, what: str, values: object) -> dict[str, dict[str, dict[str, int]]]:
    request = urllib.request.Request(f"{url}/_/{what}", json.dumps(values).encode(), method="POST")
    with urllib.request.urlopen(request) as answer:
        found: dict[str, dict[str, dict[str, int]]] = json.load(answer)
        return found


def train(folder: Path, url: str, mode: str, number: int, options: argparse.Namespace) -> tuple[float, float]:
    """The seconds of the steps, and those on a core of the whole command with what it started and waited for."""
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
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "said").read_text())
    steps = float(json.loads((folder / "runs" / run / "summary.json").read_text())["seconds"])
    return steps, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
