"""What `ggufy chat` costs over llama-cpp-python's bare loop, in tokens a second, in turn, on a model of a real shape.

    python benchmarks/chat.py [--file MODEL.gguf] [--tokens 96] [--rounds 7] [--folder DIR]

Without --file a random checkpoint of Llama 3.2 1B's shape is made and exported as Q4_K_M: what is written is nonsense,
what it costs is not. The bare loop is `for token in llama.generate(...)`, each token detokenized and written; ggufy's
the conversation of the terminal: prompt, decoding of characters, Markdown drawn as it grows, figures. Both run on one
loaded model with the same threads, greedily, the prompt evaluated anew each time; a pair in each round, the order
changing. On a machine with other work the pairs differ by more than is looked for; so the time outside of `generate`,
which is all that the two differ in, is measured by itself.

Then the threads: tokens a second with each number that was tried.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
from rich.console import Console

import ggufy
from ggufy.chat import threads
from ggufy.chat.model import ChatModel, Sampling
from ggufy.chat.session import Session
from ggufy.chat.terminal import display
from ggufy.model import random_llama

VOCABULARY = Path(__file__).parents[1] / "vendor" / "llama.cpp" / "models" / "ggml-vocab-llama-bpe.gguf"
QUESTION = "Explain how a bicycle stays upright, and give an example."


def make(folder: Path) -> Path:
    """A Q4_K_M of the shape of Llama 3.2 1B, or the one that is there."""
    if not (folder / "1b" / "config.json").is_file():
        random_llama.write(folder / "1b", random_llama.SHAPES["1b"], VOCABULARY)
    made = ggufy.export(folder / "1b", quants=["q4_k_m"], out=folder / "gguf", check_files=False)
    return made["q4_k_m"].path


@dataclass
class Round:
    speed: float
    """Tokens a second, from the first token to the end of everything that is shown."""
    outside: float
    """Seconds a token that were not spent in llama_cpp.Llama.generate."""
    inside: float
    """And those that were."""


class Watch:
    """Counts the time in `generate` of a model, from the first token on."""

    def __init__(self, llama: Any) -> None:
        self.original, self.inside, self.first = llama.generate, 0.0, 0.0
        llama.generate = self.generate

    def generate(self, *args: Any, **how: Any) -> Iterator[int]:
        stream = self.original(*args, **how)
        self.inside = self.first = 0.0
        for number in range(1 << 30):
            begun = time.perf_counter()
            token = next(stream, None)
            now = time.perf_counter()
            if number == 0:
                self.first = now
            else:
                self.inside += now - begun
            if token is None:
                return
            yield token

    def round(self, tokens: int) -> Round:
        spent = time.perf_counter() - self.first
        return Round((tokens - 1) / spent, (spent - self.inside) / (tokens - 1), self.inside / (tokens - 1))


def bare(model: ChatModel, watch: Watch, tokens: int, out: Any) -> Round:
    """llama-cpp-python's own loop."""
    llama = model.llama
    prompt = model.tokens([{"role": "user", "content": QUESTION}])
    llama.reset()
    for number, token in enumerate(llama.generate(prompt, temp=0.0), 1):
        out.write(llama.detokenize([token]).decode("utf-8", "ignore"))
        out.flush()
        if number == tokens:
            break
    return watch.round(tokens)


def chat(model: ChatModel, watch: Watch, tokens: int, out: Any) -> Round:
    """A conversation as a terminal shows it."""
    model.llama.reset()
    session = Session([model], None, Sampling(temperature=0.0, max_tokens=tokens))
    screen = display.markdown(Console(file=out, force_terminal=True, width=100, height=40), ["model"])
    with contextlib.redirect_stderr(out):
        session.ask(QUESTION, screen)
    if model.figures.tokens != tokens:
        raise SystemExit(f"the model ended after {model.figures.tokens} tokens; choose another --file")
    return watch.round(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the random model goes; a temporary one if not given")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.environ["GGUFY_CACHE"] = scratch
        path = words.file or make(words.folder or Path(scratch))
        begun = time.perf_counter()
        model = ChatModel(path, context=1024)
        print(f"{path.name}: loaded and threads measured in {time.perf_counter() - begun:.1f} s: {model.threads}")
        compare(model, words.tokens, words.rounds, nowhere)
        for count in threads.candidates(threads.cores()):
            llama_cpp.llama_set_n_threads(model.llama.ctx, count, count)
            watch = Watch(model.llama)
            speeds = [bare(model, watch, 32, nowhere).speed for _ in range(3)]
            mark = "  (measured as the best)" if count == model.threads.answering else ""
            print(f"{count} threads: {statistics.median(speeds):.2f} tokens/s{mark}")


def compare(model: ChatModel, tokens: int, rounds: int, nowhere: Any) -> None:
    ways = {"bare": bare, "ggufy": chat}
    watch = Watch(model.llama)
    for way in ways.values():
        way(model, watch, 8, nowhere)
    found: dict[str, list[Round]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 else reversed(ways):
            found[name].append(ways[name](model, watch, tokens, nowhere))
    middle = statistics.median
    outside = {name: middle(one.outside for one in those) for name, those in found.items()}
    inside = middle(one.inside for those in found.values() for one in those)
    for name, those in found.items():
        speeds = [one.speed for one in those]
        print(
            f"{name:6} {middle(speeds):7.2f} tokens/s  ({min(speeds):.2f} to {max(speeds):.2f}), "
            f"{1e6 * outside[name]:,.0f} µs a token outside llama-cpp-python, {1e3 * inside:.1f} ms inside"
        )
    ratios = [b.speed / g.speed for b, g in zip(found["bare"], found["ggufy"], strict=True)]
    own = (outside["ggufy"] - outside["bare"]) / (inside + outside["bare"])
    print(f"overhead {middle(ratios) - 1:+.2%} by the clock, the median of {len(ratios)} pairs")
    print(f"overhead {own:+.2%} by what ggufy's own code takes (bound: 3%)")


if __name__ == "__main__":
    main()
