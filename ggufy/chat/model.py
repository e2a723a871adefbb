"""A loaded GGUF that answers conversations, streaming, with its own template and tokenizer."""

from __future__ import annotations

import codecs
import ctypes
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ggufy.chat.prompts import Prompts
from ggufy.chat.threads import Threads
from ggufy.errors import ChatError
from ggufy.llamacpp import gguf_reader, library
from ggufy.llamacpp.evaluate_gguf import cannot_load
from ggufy.model.template import Message
from ggufy.system import interrupts


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.6
    """0 takes the most likely token every time."""
    top_p: float = 0.9
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    """1 is off."""
    max_tokens: int = 1024
    seed: int | None = None


@dataclass
class Figures:
    """Token counts and times of an answer."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Tokens of the prompt that were already evaluated in earlier turns."""
    tokens: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0
    ended: bool = False
    """The model ended its turn itself."""
    full: bool = False
    """The answer reached the allowed number of tokens, or filled the context."""

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, whose time is the prompt's."""
        rest = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / rest if self.tokens > 1 and rest > 0 else 0.0

    @property
    def finish_reason(self) -> str:
        return "stop" if self.ended else "length" if self.full else "interrupted"


class ChatModel:
    """One loaded GGUF. Raises ModelError or ChatError where the file cannot be used.

    Without `threads`, their number is measured the first time a model of this size is loaded on this machine.
    """

    def __init__(self, path: Path, context: int = 4096, threads: int | None = None, day: date | None = None) -> None:
        if not path.is_file():
            raise ChatError(f"no file {path.as_posix()}", "name a .gguf file, or a run that was exported")
        # Before llama.cpp has it: this reader names what is wrong with a file.
        gguf_reader.read_gguf(path, ())
        self.path = path
        self.llama = _load(path, context)
        self.context = min(context, int(self.llama._model.n_ctx_train()))
        self.prompts = Prompts(self.llama, path, day)
        self.day, self.template = self.prompts.day, self.prompts.template
        self.threads = Threads.of(self.llama, threads)
        self.figures = Figures()
        self._said: dict[str, list[int]] = {}

    def close(self) -> None:
        self.llama.close()

    def tokens(self, conversation: Sequence[Message], tools: list[Any] | None = None) -> list[int]:
        """The prompt for the next answer."""
        return self.prompts.tokens(conversation, self._said, tools)

    def answer(
        self, conversation: Sequence[Message], sampling: Sampling, tools: list[Any] | None = None
    ) -> Generator[str, None, None]:
        """The next answer, piece by piece; a call of one of the `tools` is the text that the model writes.

        `figures` holds its cost, from the first token on.
        """
        import llama_cpp

        prompt = self.tokens(conversation, tools)
        if len(prompt) >= self.context:
            raise ChatError(
                f"the conversation is {len(prompt):,} tokens long, and the context holds {self.context:,}",
                self.room_hint(),
            )
        # What was said in conversations that are over.
        spoken = {message["content"] for message in conversation}
        self._said = {text: tokens for text, tokens in self._said.items() if text in spoken}
        self.figures = figures = Figures(prompt_tokens=len(prompt), reused_tokens=self._evaluated(prompt))
        vocab = self.llama._model.vocab
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        room = min(sampling.max_tokens, self.context - len(prompt))
        made: list[int] = []
        text: list[str] = []
        start = time.perf_counter()
        try:
            for token in self._generate(prompt, sampling):
                figures.tokens += 1
                figures.seconds = time.perf_counter() - start
                if figures.tokens == 1:
                    figures.first_token_seconds = figures.seconds
                if llama_cpp.llama_vocab_is_eog(vocab, token):
                    figures.ended = True
                    break
                made.append(token)
                if piece := decoder.decode(self.llama.detokenize([token])):
                    text.append(piece)
                    yield piece
                if figures.tokens >= room:
                    figures.full = True
                    break
            if piece := decoder.decode(b"", final=True):
                text.append(piece)
                yield piece
        finally:
            if text and not any(llama_cpp.llama_vocab_is_control(vocab, token) for token in made):
                self._said["".join(text)] = made

    def ask(self, prompt: str, *, system: str | None = None, **sampling: Any) -> str:
        """The answer to one question, whole. Further arguments are those of Sampling: temperature, seed, ..."""
        before: list[Message] = [{"role": "system", "content": system}] if system else []
        return "".join(self.answer([*before, {"role": "user", "content": prompt}], Sampling(**sampling)))

    def _generate(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """Tokens without an end. Ctrl-C is heard while a long prompt is evaluated, not only after it."""
        from llama_cpp import LLAMA_DEFAULT_SEED

        # A seed stays set; llama.cpp takes this one for a random one.
        self.llama.set_seed(LLAMA_DEFAULT_SEED if sampling.seed is None else sampling.seed)
        stream = self.llama.generate(
            prompt,
            temp=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repeat_penalty=sampling.repeat_penalty,
        )
        # What it logs when it is stopped is no news.
        with interrupts.held(), library.quiet(), self._abortable():
            try:
                first = next(stream)
            except RuntimeError as error:
                raise ChatError(
                    f"llama.cpp could not evaluate the conversation: {error}", "start over with /reset"
                ) from None
        yield first
        yield from stream

    @contextmanager
    def _abortable(self) -> Iterator[None]:
        """Let llama.cpp stop between two operations of its graph when somebody pressed Ctrl-C."""
        from llama_cpp import llama_cpp

        @llama_cpp.ggml_abort_callback  # type: ignore[untyped-decorator]
        def pressed(data: Any) -> bool:
            del data
            return interrupts.waiting()

        lib = library.library()
        lib.llama_set_abort_callback(self.llama.ctx, ctypes.cast(pressed, ctypes.c_void_p), None)
        try:
            yield
        finally:
            lib.llama_set_abort_callback(self.llama.ctx, None, None)

    def _evaluated(self, prompt: list[int]) -> int:
        """How many tokens of a prompt llama.cpp has evaluated already."""
        if self.llama._is_recurrent or self.llama._is_hybrid:
            # Their memory has no parts to keep.
            return 0
        count = 0
        for token, there in zip(prompt, self.llama._input_ids, strict=False):
            if token != there:
                break
            count += 1
        return min(count, len(prompt) - 1)

    def room_hint(self) -> str:
        """What to do about a conversation that is too long."""
        trained = int(self.llama._model.n_ctx_train())
        return (
            "shorten it" if self.context >= trained else f"shorten it, or give a larger --context (up to {trained:,})"
        )


def _load(path: Path, context: int) -> Any:
    from llama_cpp import Llama

    with interrupts.held(), library.quiet() as said:
        try:
            llama = Llama(path.as_posix(), n_ctx=context, verbose=False)
        except (ValueError, RuntimeError, AssertionError, UnicodeDecodeError) as error:
            # llama-cpp-python reads the keys again by itself, and trips over damaged ones in these ways.
            raise cannot_load(path, said, error) from None
    vocab = llama._model.vocab

    def detokenize(tokens: Sequence[int], prev_tokens: Any = None, special: bool = False) -> bytes:
        del prev_tokens
        return b"".join(library.piece(vocab, token, special=special) for token in tokens)

    # Its own leaves out tokens of more than 32 bytes, in the server's answers too.
    llama.detokenize = detokenize
    return llama


def describe(figures: Figures) -> str:
    """The cost of an answer in a line."""
    speed = f"{figures.tokens_per_second:.1f} tokens/s, first after {figures.first_token_seconds:.2f} s"
    text = f"{figures.tokens} tokens, {speed}"
    return text if figures.ended else f"{text}, stopped early"


def greedy(model: ChatModel, question: str, max_tokens: int = 200) -> str:
    """The most likely answer to one question."""
    conversation: list[Message] = [{"role": "user", "content": question}]
    return "".join(model.answer(conversation, Sampling(temperature=0.0, max_tokens=max_tokens)))
