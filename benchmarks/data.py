"""Preparing conversations for training: trl's own way against ggufy, in turn, on the same file and tokenizer.

    python benchmarks/data.py [--conversations 20000] [--rounds 2] [--base FOLDER]
    python benchmarks/data.py --before CHECKOUT     # against ggufy as it is in another checkout, instead of trl

Both start from a JSON lines file of FineTome-sized conversations and end with token ids on the disk, where only what
the assistant says is to be trained on. trl's way is its documented one: load_dataset, then SFTTrainer's preparation
with assistant_only_loss, on as many processes as there are cores. It needs a template with {% generation %} marks: the
base's own with these added is used for it. Caches are off. ggufy's peak memory is printed for a quarter of the
conversations and for all, which should be the same; its workers' are not in it.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from ggufy.data import source
from ggufy.model import tiny

OURS = """
import resource, sys, time
from datetime import date
from pathlib import Path
from ggufy.data import prepare, source
try:
    from ggufy.recipe.schema import Data
except ImportError:  # before the rooms
    from ggufy.recipe import Data
rows, base, out, count = sys.argv[1:]
data = Data(source=rows, train_size=int(count))
begun = time.perf_counter()
found = source.locate(data, offline=True)
counts = prepare.prepare(found, data, Path(base), 2048, date(2026, 1, 2), Path(out))["train"]
seconds = time.perf_counter() - begun
print(seconds, counts.tokens, counts.trained_tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
THEIRS = """
import os, resource, sys, time
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
rows, base, out, count = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
turn = "{{- message['content'] | trim + \\"<|eot_id|>\\" }}"
assert turn in tokenizer.chat_template
marked = "{%- if message['role'] == 'assistant' %}{%- generation %}" + turn + "{%- endgeneration %}{%- else %}" + turn
tokenizer.chat_template = tokenizer.chat_template.replace(turn, marked + "{%- endif %}")
model = AutoModelForCausalLM.from_pretrained(base)
begun = time.perf_counter()
data = load_dataset("json", data_files=rows, split=f"train[:{count}]", cache_dir=out)
arguments = SFTConfig(
    output_dir=out, max_length=2048, assistant_only_loss=True, dataset_num_proc=len(os.sched_getaffinity(0)),
    use_cpu=True, report_to="none",
)
trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
seconds = time.perf_counter() - begun
tokens = trained = 0
for batch in trainer.train_dataset.iter(1000):
    tokens += sum(map(len, batch["input_ids"]))
    trained += sum(label != -100 for labels in batch["labels"] for label in labels)
print(seconds, tokens, trained, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write(path: Path, count: int) -> None:
    """Conversations of one or two exchanges, of about as many words as FineTome's."""
    words = " ".join(source.sample_texts()).split()
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            turns = []
            for _ in range(rng.choice((1, 1, 1, 2))):
                turns.append({"role": "user", "content": " ".join(rng.choices(words, k=rng.randint(10, 120)))})
                turns.append({"role": "assistant", "content": " ".join(rng.choices(words, k=rng.randint(50, 350)))})
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


def measure(code: str, rows: Path, base: Path, count: int, checkout: Path) -> tuple[float, int, int, float]:
    """Seconds, tokens, tokens trained on, and the peak memory of the main process in MB."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout.resolve())}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-W", "ignore", "-c", code, str(rows), str(base), out, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(done.stderr)
    seconds, tokens, trained, memory = done.stdout.split()[-4:]
    return float(seconds), int(tokens), int(trained), int(memory) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--base", type=Path, help="a folder with a model; the built-in one if not given")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="compare with ggufy as it is there")
    given = parser.parse_args()
    here = Path(__file__).parents[1]
    peer = ("before", OURS, given.before) if given.before else ("trl", THEIRS, here)
    base = given.base or tiny.ensure(source.sample_texts())
    count = given.conversations
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write(rows, count)
        print(f"{count:,} conversations, {rows.stat().st_size / 1e6:,.0f} MB, {os.cpu_count()} cores")
        best: dict[str, float] = {}
        for _ in range(given.rounds):
            for name, code, checkout in (peer, ("ggufy", OURS, here)):
                seconds, tokens, trained, memory = measure(code, rows, base, count, checkout)
                best[name] = min(seconds, best.get(name, seconds))
                print(
                    f"{name:<6} {seconds:7.1f} s  {count / seconds:8,.0f} conversations/s  "
                    f"{tokens:,} tokens  {trained:,} trained on  {memory:,.0f} MB"
                )
        quarter = measure(OURS, rows, base, count // 4, here)[3]
        print(f"ggufy's peak memory for a quarter of them: {quarter:,.0f} MB")
        print(f"ratio, best of each: {best[peer[0]] / best['ggufy']:.2f}")


if __name__ == "__main__":
    main()
