"""What a loaded model says to a prompt, always with the likeliest token: what `generate` of llama-cpp-python says at
temperature 0, without its sampler and its copies of the logits. The cache of llama.cpp holds what was read before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ggufy.errors import ModelError
from ggufy.llamacpp import library
from ggufy.system import interrupts


def tokens(path: Path, context: Any, prompt: Sequence[int]) -> Iterator[int]:
    """Token after token, without end; each is computed when it is asked for. The prompt has one token at least.

    `context` is llama.cpp's own, made from the file `path`; what it held is forgotten. It has to hold the prompt and
    what is taken, but for the last token. Raises ModelError where it does not, or the model cannot be evaluated.
    """
    import llama_cpp
    import numpy as np

    # From nothing: what was computed for another prompt would be reused, and rounds in another way.
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    width = llama_cpp.llama_vocab_n_tokens(_vocab(context))
    most = llama_cpp.llama_n_batch(context)
    unread = list(prompt)
    while True:
        for start in range(0, len(unread), most):
            part = unread[start : start + most]
            held = (llama_cpp.llama_token * len(part))(*part)  # the batch only points to it
            with interrupts.held(), library.quiet() as said:
                failed = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(held, len(part)))
            if failed:
                raise ModelError(f"{path.as_posix()}: llama.cpp cannot evaluate it: {' '.join(said[-1:])}")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(width,))
        unread = [int(logits.argmax())]
        yield unread[0]


def answer(path: Path, context: Any, prompt: Sequence[int], most: int) -> list[int]:
    """One token at least, and at most so many, up to and with the first that llama.cpp takes for an end."""
    import llama_cpp

    said: list[int] = []
    for token in tokens(path, context, prompt):
        said.append(token)
        if len(said) >= most or llama_cpp.llama_vocab_is_eog(_vocab(context), token):
            break
    return said


def _vocab(context: Any) -> Any:
    import llama_cpp

    return llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context))
