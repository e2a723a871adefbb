"""Run a GGUF over whole texts on the CPU, for the logits at every position and the inputs of every matrix.

llama.cpp's own evaluation through its C interface. llama-cpp-python's `Llama` keeps the logits of a whole context in an
array of its own, half a gigabyte for a Llama 3 vocabulary; here they come a batch at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from ggufy.errors import ModelError
from ggufy.llamacpp import graph, greedy, library
from ggufy.system import interrupts

BATCH = 128
Watch = Callable[[str, Any], None]
"""Gets the name of a matrix and its inputs, float32 (rows, columns), for each product while it is computed."""


class Forward:
    """One loaded GGUF. Weights are mapped, not copied; memory is the context and one batch.

    Raises ModelError where llama.cpp cannot load the file, saying why.
    """

    def __init__(self, path: Path, context: int, threads: int, watch: Watch | None = None, batch: int = BATCH) -> None:
        import llama_cpp

        self.path, self.batch, self.model, self.context = path, batch, None, None
        self.failure: BaseException | None = None
        self._library = llama_cpp
        llama_cpp.llama_backend_init()
        wanted = llama_cpp.llama_model_default_params()
        # No copies repacked for speed: they are as large as the model.
        wanted.n_gpu_layers, wanted.use_extra_bufts = 0, False
        with interrupts.held(), library.quiet() as said:
            self.model = llama_cpp.llama_model_load_from_file(path.as_posix().encode(), wanted)
        if not self.model:
            raise cannot_load(path, said)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.width = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = context, batch, batch, 1
        params.n_threads = params.n_threads_batch = threads
        params.offload_kqv = params.op_offload = False
        self._callback = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(self._watcher(watch))
        if watch:
            params.cb_eval = self._callback
        self._abort = llama_cpp.llama_cpp.ggml_abort_callback(_interrupted)
        params.abort_callback = self._abort
        with interrupts.held(), library.quiet() as said:
            self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            self.close()
            raise cannot_load(path, said)

    def __enter__(self) -> Forward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        self.close()

    def close(self) -> None:
        with interrupts.held(), library.quiet():
            if self.context:
                self._library.llama_free(self.context)
            if self.model:
                self._library.llama_model_free(self.model)
        self.context = self.model = None

    @property
    def bos(self) -> int | None:
        """The token that begins a text, if the vocabulary has one."""
        number = int(self._library.llama_vocab_bos(self.vocab))
        return number if number >= 0 else None

    @property
    def eos(self) -> int:
        return int(self._library.llama_vocab_eos(self.vocab))

    def ends_turn(self, token: int) -> bool:
        """Whether generation stops after a token."""
        return bool(self._library.llama_vocab_is_eog(self.vocab, token))

    def is_control(self, token: int) -> bool:
        """Whether a token is a mark, which no text of a person becomes; so is the one for what is unknown."""
        marks = self._library.LLAMA_TOKEN_ATTR_CONTROL | self._library.LLAMA_TOKEN_ATTR_UNKNOWN
        return bool(self._library.llama_vocab_get_attr(self.vocab, token) & marks)

    @property
    def adds_bos(self) -> bool:
        """Whether the file asks for a BOS before every text."""
        return self.bos is not None and bool(self._library.llama_vocab_get_add_bos(self.vocab))

    @property
    def trained_context(self) -> int:
        """The longest text that the model was made for, in tokens."""
        return int(self._library.llama_model_n_ctx_train(self.model))

    def specials(self) -> dict[str, int]:
        """The control tokens, by how they are written."""
        found = (n for n in range(self.width) if self._library.llama_vocab_is_control(self.vocab, n))
        return {self.piece(number).decode("utf-8", "replace"): number for number in found}

    def piece(self, token: int) -> bytes:
        """What a token stands for; a control token is written out."""
        room = 256
        text = ctypes.create_string_buffer(room)
        count = self._library.llama_token_to_piece(self.vocab, token, text, room, 0, True)
        if count < 0:
            room = -count
            text = ctypes.create_string_buffer(room)
            count = self._library.llama_token_to_piece(self.vocab, token, text, room, 0, True)
        return text.raw[:count]

    def tokenize(self, text: str, *, special: bool, ends: bool = False) -> list[int]:
        """The tokens of a text. With `special`, marks such as <|eot_id|> are read as their tokens.

        With `ends`, the BOS and EOS that the vocabulary puts around a text are there.
        """
        raw = text.encode()
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self.vocab, raw, len(raw), ids, room, ends, special)
        if count < 0:
            raise ModelError(
                f"{self.path.as_posix()}: llama.cpp cannot tokenize a text of {len(raw):,} bytes", "export it again"
            )
        return list(ids[:count])

    def logits(self, tokens: Sequence[int], wanted: Sequence[bool] | None = None) -> Iterator[Any]:
        """The logits after each token of one text, float32 (n, vocabulary), batch by batch.

        With `wanted` only after the tokens marked there; a batch without any gives nothing. Each array is llama.cpp's
        own memory, good until the next is asked for. The batches are of nearly equal size.
        """
        import numpy as np

        lib = self._library
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        pieces = -(-len(tokens) // self.batch)
        edges = [len(tokens) * n // pieces for n in range(pieces + 1)]
        held = lib.llama_batch_init(self.batch, 0, 1)
        try:
            for start, stop in pairwise(edges):
                size = held.n_tokens = stop - start
                for i in range(size):
                    held.token[i], held.pos[i] = tokens[start + i], start + i
                    held.n_seq_id[i], held.seq_id[i][0] = 1, 0
                    held.logits[i] = wanted is None or bool(wanted[start + i])
                count = size if wanted is None else sum(map(bool, wanted[start:stop]))
                with interrupts.held(), library.quiet() as said:
                    failed = lib.llama_decode(self.context, held)
                if self.failure:
                    raise self.failure
                if failed:
                    raise ModelError(f"{self.path.as_posix()}: llama.cpp cannot evaluate it: {' '.join(said[-1:])}")
                if not count:
                    continue
                found = lib.llama_get_logits(self.context)
                yield np.ctypeslib.as_array(found, shape=(count * self.width,)).reshape(count, self.width)
        finally:
            lib.llama_batch_free(held)

    def answer(self, prompt: Sequence[int], most: int) -> list[int]:
        """What the model says to a prompt, always the likeliest token: at most so many, the one that ends it included.

        Prompt and answer have to fit into the context.
        """
        return greedy.answer(self.path, self.context, prompt, most)

    def _watcher(self, watch: Watch | None) -> Callable[[int, bool, Any], bool]:
        def step(address: int, ask: bool, data: Any) -> bool:
            del data
            if watch is None:
                return False
            try:
                return graph.is_product(address) if ask else _show(address, watch)
            except BaseException as error:  # noqa: BLE001 - nothing may leave a function that C has called
                self.failure = error
                return False

        return step


def _interrupted(data: Any) -> bool:
    del data
    return interrupts.waiting()


def _show(address: int, watch: Watch) -> bool:
    name, rows = graph.product_inputs(address)
    watch(name, rows)
    return True


def cannot_load(path: Path, said: list[str], error: BaseException | None = None) -> ModelError:
    """What llama.cpp has against a file, from what it logged; without that, from what its Python wrapper raised."""
    # llama.cpp says why in one line, and in the last that it could not.
    told = [line.rpartition("error loading model: ")[2] for line in said if "error loading model: " in line]
    last = said[-1].partition(": ")[2] or said[-1] if said else " ".join(str(error or "no reason given").split())
    reason = told[-1].removeprefix("error loading model architecture: ") if told else last
    hint = "another model, or a newer llama-cpp-python" if "unknown model arch" in reason else "export it again"
    return ModelError(f"{path.as_posix()}: llama.cpp cannot load it: {reason}", hint)
