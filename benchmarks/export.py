"""From base + adapter to GGUF: the usual pipeline against ggufy, in turn, on random weights of a real shape.

    python benchmarks/export.py [--shape 1b|3b] [--quants q4_k_m q8_0] [--folder DIR] [--only NAME ...]
    python benchmarks/export.py --before COMMIT [--rounds 5] [--shape 1b|3b] [--quants q4_k_m q8_0] [--folder DIR]

The usual pipeline is three processes: peft merges and saves F16, llama.cpp's converter makes an F16 GGUF, llama.cpp
quantizes it once for each quant. ggufy is one command: without its verify step, with its own kernels and with
llama.cpp's; then with the verify step, without and with the logits of the training model in float32. Wall and CPU time,
peak memory and bytes written are those of the processes: anonymous memory (RssAnon), which is what a machine has to
have, and all that is resident (VmHWM), in which every page of a mapped file counts, though the system takes those back.
Each finds the base's weights in the page cache. The floor is the time of llama.cpp's kernels on the same tensors,
divided by the threads: no exporter that uses those can be faster.

With --before, the same command of ggufy as it was at a commit and as it is, in turn, without verifying. The first round
is of a user's first export with this tokenizer, and stands for itself.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggufy.export import families
from ggufy.export.engine import plan
from ggufy.export.request import Request
from ggufy.llamacpp import library
from ggufy.model import random_llama, safetensors
from ggufy.system.machine import cores

REPOSITORY = Path(__file__).parents[1]
VENDOR = REPOSITORY / "vendor" / "llama.cpp"

MERGE = """
import shutil, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(f"{base}/{name}", out)
"""
QUANTIZE = """
import sys
from pathlib import Path
from ctypes import byref
import llama_cpp
source, target, ftype = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = int(ftype)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), byref(params)))
"""


@dataclass
class Cost:
    wall: float = 0.0
    cpu: float = 0.0
    anonymous: int = 0
    resident: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.wall + other.wall,
            self.cpu + other.cpu,
            max(self.anonymous, other.anonymous),
            max(self.resident, other.resident),
        )


def measure(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> Cost:
    """Run a process; its wall and CPU time, the peak of its RssAnon, sampled every 10 ms, and its VmHWM."""
    before, begun = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cwd, env=env)
    peak = resident = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int(status.partition("RssAnon:")[2].split()[0]) * 1024)
            resident = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        except (OSError, IndexError):
            pass
        time.sleep(0.01)
    if process.returncode:
        sys.exit((process.stderr.read() if process.stderr else b"").decode())
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.perf_counter() - begun, cpu, peak, resident)


def usual(base: Path, adapter: Path, out: Path, quants: list[str]) -> tuple[Cost, int]:
    merged, f16 = out / "merged", out / "f16.gguf"
    converter = str(VENDOR / "convert_hf_to_gguf.py")
    cost = measure(sys.executable, "-c", MERGE, str(base), str(adapter), str(merged))
    cost += measure(sys.executable, converter, str(merged), "--outfile", str(f16), "--outtype", "f16")
    for quant in quants:
        if quant != "f16":
            ftype = str(library.ftypes()[quant])
            cost += measure(sys.executable, "-c", QUANTIZE, str(f16), str(out / f"{quant}.gguf"), ftype)
    return cost, sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def ours(base: Path, adapter: Path, out: Path, quants: list[str], *extra: str) -> tuple[Cost, int]:
    """The real command: with the hashes of its stamps and the sync to the disk, which the pipeline does not have."""
    command = [sys.executable, "-m", "ggufy", "export", str(adapter), "--base", str(base), "--out", str(out), *extra]
    cost = measure(*command, *(part for quant in quants for part in ("--quant", quant)))
    return cost, sum(path.stat().st_size for path in out.glob("*.gguf"))


def without_verify(base: Path, adapter: Path, out: Path, quants: list[str]) -> tuple[Cost, int]:
    return ours(base, adapter, out, quants, "--no-verify")


def with_llama_cpp(base: Path, adapter: Path, out: Path, quants: list[str]) -> tuple[Cost, int]:
    return ours(base, adapter, out, quants, "--no-verify", "--kernels", "llama.cpp")


def without_logits(base: Path, adapter: Path, out: Path, quants: list[str]) -> tuple[Cost, int]:
    return ours(base, adapter, out, quants, "--no-logits")


EXPORTERS = {
    "usual pipeline": usual,
    "ggufy": without_verify,
    "with llama.cpp's": with_llama_cpp,
    "no logits": without_logits,
    "ggufy, verified": ours,
}


def floor(base: Path, quants: list[str]) -> float:
    """Seconds of llama.cpp's kernels on every tensor, on one thread, divided by the threads."""
    with tempfile.TemporaryDirectory() as scratch:
        outputs = {quant: Path(scratch) / quant for quant in quants}
        ready = plan(Request(base, None, outputs, {"name": "benchmark"}), Path(scratch))
    rng, seconds = np.random.default_rng(0), 0.0
    rates: dict[tuple[int, int], float] = {}
    for sink in ready.sinks.values():
        for slot in sink.layout.slots:  # type: ignore[union-attr]
            if slot.type in (library.F32, library.F16, library.BF16):
                continue
            columns = slot.tensor.shape[-1]
            if (slot.type, columns) not in rates:
                rows = rng.standard_normal(((1 << 21) // columns, columns), np.float32) * np.float32(0.02)
                target = np.empty(len(rows) * library.row_size(slot.type, columns), np.uint8)
                begun = time.perf_counter()
                library.quantize(slot.type, rows, target)
                rates[slot.type, columns] = rows.size / (time.perf_counter() - begun)
            seconds += slot.tensor.shape[0] * columns / rates[slot.type, columns]
    return seconds / cores()


def warm(base: Path) -> None:
    """Read the base's weights once, so that each exporter finds them in the page cache alike."""
    for path in base.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def make_adapter(base: Path, folder: Path, rank: int = 16) -> None:
    """A random r=16 adapter on all linear layers, as peft writes it."""
    rng = np.random.default_rng(1)
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in safetensors.Checkpoint.open(base).tensors.items():
        if name.split(".")[-2] in modules:
            stem = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{stem}.lora_A.weight"] = rng.standard_normal((rank, tensor.shape[1]), np.float32) * np.float32(
                0.02
            )
            tensors[f"{stem}.lora_B.weight"] = rng.standard_normal((tensor.shape[0], rank), np.float32) * np.float32(
                0.02
            )
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(modules),
    }
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))


def compare(commit: str, base: Path, adapter: Path, quants: list[str], rounds: int) -> None:
    """The command at a commit and as it is here, in turn: wall and CPU seconds, and their ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        before, built = Path(scratch) / "before", "ggufy/export/kernels"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(before), commit], check=True)
        try:
            subprocess.run([sys.executable, "build.py", "."], cwd=before / built, check=True, stdout=subprocess.DEVNULL)
            env = {**os.environ, "GGUFY_CACHE": str(Path(scratch) / "cache")}
            costs: dict[Path, list[Cost]] = {before: [], REPOSITORY: []}
            out = Path(scratch) / "out"
            for number in range(rounds + 1):
                for place, found in costs.items():
                    warm(base)
                    command = ["export", str(adapter), "--base", str(base), "--out", str(out), "--no-verify"]
                    command += [part for quant in quants for part in ("--quant", quant)]
                    found.append(measure(sys.executable, "-m", "ggufy", *command, cwd=place, env=env))
                    shutil.rmtree(out)
                then, now = (found[-1] for found in costs.values())
                print(
                    f"  {number or 'first'}: {then.wall:.2f} s, {now.wall:.2f} s ({then.cpu:.1f}, {now.cpu:.1f} s CPU)"
                )
            for name in ("wall", "cpu"):
                old, new = (statistics.median(getattr(cost, name) for cost in found[1:]) for found in costs.values())
                print(f"{name}: {commit} {old:.2f} s, here {new:.2f} s: {new / old:.3f}")
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(random_llama.SHAPES), default="1b")
    parser.add_argument("--quants", nargs="+", default=None, help="one command with these; else each of the usual ones")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here for the next time")
    parser.add_argument("--only", nargs="+", choices=list(EXPORTERS), default=list(EXPORTERS), help="some of them")
    parser.add_argument("--before", metavar="COMMIT", help="compare with ggufy as it was there")
    parser.add_argument("--rounds", type=int, default=5, help="of that comparison")
    given = parser.parse_args()
    sets = [given.quants] if given.quants else [["q4_k_m"], ["q8_0"], ["f16"], ["q4_k_m", "q5_k_m", "q8_0"]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        base, adapter = folder / given.shape, folder / f"{given.shape}-adapter"
        if not (adapter / "adapter_config.json").is_file():
            random_llama.write(base, random_llama.SHAPES[given.shape], VENDOR / "models" / "ggml-vocab-llama-bpe.gguf")
            make_adapter(base, adapter)
        assert families.read(base).vocab_size == 128256
        if given.before:
            quants = given.quants or ["q8_0", "q4_k_m"]
            print(f"{given.shape}, {' '.join(quants)}, {cores()} threads: {given.before}, here")
            compare(given.before, base, adapter, quants, given.rounds)
            return
        print(f"{given.shape}, {cores()} threads; wall s, CPU s, peak anonymous MB, peak resident MB, written MB")
        for quants in sets:
            rows = {}
            for name, exporter in ((name, EXPORTERS[name]) for name in given.only):
                out = Path(scratch) / name.replace(" ", "-")
                out.mkdir()
                warm(base)
                rows[name] = exporter(base, adapter, out, quants)
                shutil.rmtree(out)
            print(f"\n{' '.join(quants)}")
            for name, (cost, written) in rows.items():
                memory = f"{cost.anonymous / 1e6:8.0f} {cost.resident / 1e6:8.0f}"
                print(f"  {name:<16}{cost.wall:8.1f} {cost.cpu:8.1f} {memory} {written / 1e6:8.0f}")
            if set(given.only) != set(EXPORTERS):
                continue
            bound = floor(base, quants)
            print(f"  kernel floor    {bound:8.1f}   of llama.cpp's kernels")
            print(f"  ratio           {rows['usual pipeline'][0].wall / rows['ggufy'][0].wall:8.2f}")


if __name__ == "__main__":
    main()
