"""What `ggufy chat` costs over llama-cpp-python's bare loop, in tokens a second, in turn, on a model of a real shape.

    python benchmarks/chat.py [--file MODEL.gguf] [--tokens 128] [--rounds 7] [--folder DIR]

Without --file a random checkpoint of Llama 3.2 1B's shape is made and exported as Q4_K_M: what is written is nonsense,
what it costs is not. The bare loop is `for token in llama.generate(...)`, each token detokenized and written; ggufy's
the conversation of the terminal: prompt, decoding of characters, Markdown drawn as it grows, figures. Both run on one
loaded model with the same threads, greedily, the prompt evaluated anew each time; a pair in each round, the order
changing. The time of a round is from the first token to the end of everything that is shown.

Then the threads: tokens a second with the number that llama-cpp-python takes by itself, and with the measured one.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

import ggufy
from ggufy.base import shaped
from ggufy.chat import display
from ggufy.chat.model import ChatModel, Sampling
from ggufy.chat.session import Session

VOCABULARY = Path(__file__).parents[1] / "vendor" / "llama.cpp" / "models" / "ggml-vocab-llama-bpe.gguf"
QUESTION = "Explain how a bicycle stays upright, and give an example."


def make(folder: Path) -> Path:
    """A Q4_K_M of the shape of Llama 3.2 1B, or the one that is there."""
    if not (folder / "1b" / "config.json").is_file():
        shaped.write(folder / "1b", shaped.SHAPES["1b"], VOCABULARY)
    made = ggufy.export(folder / "1b", quants=["q4_k_m"], out=folder / "gguf", check_files=False)
    return made["q4_k_m"].path


def bare(model: ChatModel, tokens: int, out: Any) -> float:
    """Tokens a second of llama-cpp-python's own loop."""
    llama = model.llama
    prompt = model.tokens([{"role": "user", "content": QUESTION}])
    llama.reset()
    begun, made = 0.0, 0
    for token in llama.generate(prompt, temp=0.0):
        begun = begun or time.perf_counter()
        out.write(llama.detokenize([token]).decode("utf-8", "ignore"))
        out.flush()
        made += 1
        if made == tokens:
            break
    return (made - 1) / (time.perf_counter() - begun)


def chat(model: ChatModel, tokens: int, out: Any) -> float:
    """Tokens a second of a conversation as a terminal shows it."""
    model.llama.reset()
    session = Session([model], None, Sampling(temperature=0.0, max_tokens=tokens))
    screen = display.markdown(Console(file=out, force_terminal=True, width=100, height=40), ["model"])
    begun = time.perf_counter()
    session.ask(QUESTION, screen)
    spent = time.perf_counter() - begun - model.figures.first_token_seconds
    if model.figures.tokens != tokens:
        raise SystemExit(f"the model ended after {model.figures.tokens} tokens; choose another --file")
    return (tokens - 1) / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the random model goes; a temporary one if not given")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.environ["GGUFY_CACHE"] = scratch
        path = words.file or make(words.folder or Path(scratch))
        begun = time.perf_counter()
        model = ChatModel(path, context=1024)
        print(f"{path.name}: loaded and threads measured in {time.perf_counter() - begun:.1f} s: {model.threads}")
        ways = {"bare": bare, "ggufy": chat}
        for way in ways.values():
            way(model, 8, nowhere)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(words.rounds):
            for name in list(ways) if number % 2 else reversed(ways):
                found[name].append(ways[name](model, words.tokens, nowhere))
        for name, speeds in found.items():
            print(f"{name:6} {statistics.median(speeds):7.2f} tokens/s  ({min(speeds):.2f} to {max(speeds):.2f})")
        ratios = [b / g for b, g in zip(found["bare"], found["ggufy"], strict=True)]
        print(f"overhead {statistics.median(ratios) - 1:+.2%}, the median of {len(ratios)} pairs (bound: 3%)")
        model.close()
        usual = max((os.cpu_count() or 1) // 2, 1)
        for threads in dict.fromkeys([usual, model.threads.answering]):
            one = ChatModel(path, context=1024, threads=threads)
            bare(one, 8, nowhere)
            speeds = [bare(one, 48, io.StringIO()) for _ in range(3)]
            print(f"{threads} threads: {statistics.median(speeds):.2f} tokens/s")
            one.close()


if __name__ == "__main__":
    main()
