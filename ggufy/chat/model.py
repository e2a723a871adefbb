"""A GGUF that answers: its own template, its own tokenizer, text as it is made.

What a person types is never read as a template's mark: where a message spells a special token, that message is
tokenized without special tokens, and only the template's own text with them.
"""

from __future__ import annotations

import codecs
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ggufy import ggml, interrupts
from ggufy.errors import ChatError
from ggufy.template import ChatTemplate, Message

DATE_KEY = "general.ggufy.date"
_KEYS = ("tokenizer.chat_template", DATE_KEY)


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.6
    """0 takes the most likely token every time."""
    top_p: float = 0.9
    max_tokens: int = 1024
    seed: int | None = None


@dataclass
class Figures:
    """What an answer cost."""

    prompt_tokens: int = 0
    tokens: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0
    ended: bool = False
    """The model ended its turn itself."""

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, whose time is the prompt's."""
        rest = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / rest if self.tokens > 1 and rest > 0 else 0.0


class ChatModel:
    """One loaded GGUF. Raises ModelError or ChatError where the file cannot be used."""

    def __init__(self, path: Path, context: int = 4096, threads: int | None = None, day: date | None = None) -> None:
        from llama_cpp import Llama

        if not path.is_file():
            raise ChatError(f"no file {path.as_posix()}", "name a .gguf file, or a run that was exported")
        texts = ggml.read_gguf(path, _KEYS).texts
        self.path = path
        self.day = day or _day(texts.get(DATE_KEY)) or date.today()
        with interrupts.held(), ggml.quiet() as said:
            try:
                self.llama = Llama(
                    path.as_posix(), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False
                )
            except (ValueError, RuntimeError, AssertionError, UnicodeDecodeError) as error:
                # llama-cpp-python reads the keys again by itself, and trips over damaged ones in these ways.
                reason = said[-1].partition(": ")[2] if said else " ".join(str(error).split())
                raise ChatError(f"{path.as_posix()}: llama.cpp cannot load it: {reason}", "export it again") from None
        self.context = min(context, int(self.llama._model.n_ctx_train()))
        special = {
            "bos_token": self._piece(self.llama.token_bos()),
            "eos_token": self._piece(self.llama.token_eos()),
        }
        self.template = ChatTemplate(texts.get("tokenizer.chat_template", ""), special, path.as_posix())
        self.figures = Figures()

    def close(self) -> None:
        self.llama.close()

    def tokens(self, conversation: list[Message]) -> list[int]:
        """The prompt for the next answer."""
        shown: list[Message] = []
        typed: dict[str, str] = {}
        for message in conversation:
            # What a terminal could not decode arrives as half surrogates, which no tokenizer takes.
            spoken = message["content"].encode("utf-8", "replace").decode("utf-8")
            if self._tokenize(spoken, special=True) != self._tokenize(spoken, special=False):
                # A word nobody can have typed stands for it while the template is rendered.
                word = f"ggufy{secrets.token_hex(16)}"
                typed[word] = spoken.strip()
                spoken = word
            shown.append({"role": message["role"], "content": spoken})
        text = self.template.render(shown, self.day, generate=True)
        tokens: list[int] = []
        pieces = re.split(f"({'|'.join(typed)})", text) if typed else [text]
        for piece in pieces:
            tokens += self._tokenize(typed.get(piece, piece), special=piece not in typed)
        bos = self.llama.token_bos()
        if bos >= 0 and self.llama._model.add_bos_token() and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def answer(self, conversation: list[Message], sampling: Sampling) -> Iterator[str]:
        """The next answer, piece by piece. `figures` holds its cost afterwards."""
        import llama_cpp

        prompt = self.tokens(conversation)
        if len(prompt) >= self.context:
            raise ChatError(
                f"the conversation is {len(prompt):,} tokens long, and the context holds {self.context:,}",
                self._room_hint(),
            )
        self.figures = figures = Figures(prompt_tokens=len(prompt))
        if sampling.seed is not None:
            self.llama.set_seed(sampling.seed)
        vocab = llama_cpp.llama_model_get_vocab(self.llama._model.model)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        room = min(sampling.max_tokens, self.context - len(prompt))
        start = time.perf_counter()
        stream = self.llama.generate(prompt, temp=sampling.temperature, top_p=sampling.top_p, top_k=0, min_p=0.05)
        with suppress(StopIteration):
            while figures.tokens < room:
                token = next(stream)
                figures.tokens += 1
                figures.seconds = time.perf_counter() - start
                if figures.tokens == 1:
                    figures.first_token_seconds = figures.seconds
                if llama_cpp.llama_vocab_is_eog(vocab, token):
                    figures.ended = True
                    break
                if text := decoder.decode(self.llama.detokenize([token])):
                    yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def ask(self, prompt: str, *, system: str | None = None, **sampling: Any) -> str:
        """The answer to one question, whole. Further arguments are those of Sampling: temperature, seed, ..."""
        before: list[Message] = [{"role": "system", "content": system}] if system else []
        return "".join(self.answer([*before, {"role": "user", "content": prompt}], Sampling(**sampling)))

    def _room_hint(self) -> str:
        trained = int(self.llama._model.n_ctx_train())
        return (
            "shorten it" if self.context >= trained else f"shorten it, or give a larger --context (up to {trained:,})"
        )

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        return list(self.llama.tokenize(text.encode(), add_bos=False, special=special))

    def _piece(self, token: int) -> str:
        return str(self.llama._model.token_get_text(token)) if token >= 0 else ""


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None


def trim(conversation: list[Message], model: ChatModel, reserve: int) -> int:
    """Drop the oldest exchanges until `reserve` tokens are free for the answer; returns how many were dropped."""
    dropped = 0
    first = 1 if conversation and conversation[0]["role"] == "system" else 0
    while len(conversation) > first + 1 and len(model.tokens(conversation)) + reserve > model.context:
        del conversation[first : first + 2]
        dropped += 1
    return dropped


def describe(figures: Figures) -> str:
    """The cost of an answer in a line."""
    speed = f"{figures.tokens_per_second:.1f} tokens/s, first after {figures.first_token_seconds:.2f} s"
    text = f"{figures.tokens} tokens, {speed}"
    return text if figures.ended else f"{text}, stopped early"


def greedy(model: ChatModel, question: str, max_tokens: int = 200) -> str:
    """The most likely answer to one question."""
    conversation: list[Message] = [{"role": "user", "content": question}]
    return "".join(model.answer(conversation, Sampling(temperature=0.0, max_tokens=max_tokens)))
