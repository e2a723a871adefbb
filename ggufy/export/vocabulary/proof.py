"""Prove that llama.cpp reads text as a folder's tokenizer does, before any weight is read.

The vocabulary is written as a GGUF without weights, llama.cpp loads it, and both are given the same texts. That takes a
second for a vocabulary of 128,256.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ggufy.errors import ExportError
from ggufy.export.vocabulary import pre_tokenizers, probes, spm
from ggufy.export.vocabulary.special import Specials
from ggufy.export.vocabulary.tokens import Tokens
from ggufy.llamacpp import library
from ggufy.llamacpp.evaluate_gguf import cannot_load
from ggufy.model.template import named_templates
from ggufy.model.tokenizer.folder import FolderTokenizer
from ggufy.system import interrupts

_LONGEST = 20_000
"""Characters of a text that are compared."""
_SHOWN = 60
_MARKS = 24


class Difference(NamedTuple):
    text: str
    theirs: list[int]
    """What the folder's tokenizer makes of it."""
    ours: list[int]
    """What llama.cpp does."""
    right: int
    """How many texts before it are read alike."""

    def described(self, tokenizer: FolderTokenizer) -> str:
        pairs = zip(self.theirs, self.ours, strict=False)
        at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self.theirs), len(self.ours)))
        shown = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}..."
        names = tokenizer.names

        def some(ids: list[int]) -> str:
            return " ".join(repr(names.get(number, number)) for number in ids[at : at + 3]) or "nothing"

        return (
            f"the first text that differs is {shown!r}: at token {at} llama.cpp has {some(self.ours)}, "
            f"the tokenizer {some(self.theirs)}"
        )


class LlamaVocabulary:
    """A vocabulary that llama.cpp has loaded."""

    def __init__(self, model: Any) -> None:
        import llama_cpp

        self._library = llama_cpp
        self.vocab = llama_cpp.llama_model_get_vocab(model)

    def tokenize(self, text: str, *, ends: bool = False) -> list[int]:
        """The tokens of a text, with its marks read as tokens; with `ends` what is put around it is there."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        with library.quiet():
            count = self._library.llama_tokenize(self.vocab, raw, len(raw), ids, room, ends, True)
        return list(ids[: max(count, 0)])

    def ends_turn(self, token: int) -> bool:
        """Whether llama.cpp stops after a token."""
        return bool(self._library.llama_vocab_is_eog(self.vocab, token))


@contextmanager
def loaded(tokens: Tokens, special: Specials, keys: dict[str, Any] | None = None) -> Iterator[LlamaVocabulary]:
    """llama.cpp with this vocabulary. Raises ExportError where llama.cpp does not take it."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    with TemporaryDirectory(prefix="ggufy-") as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        _write(path, tokens, special, keys or {})
        wanted = llama_cpp.llama_model_default_params()
        wanted.vocab_only, wanted.n_gpu_layers = True, 0
        with interrupts.held(), library.quiet() as said:
            model = llama_cpp.llama_model_load_from_file(path.as_posix().encode(), wanted)
        if not model:
            raise ExportError(
                f"llama.cpp cannot load the vocabulary: {cannot_load(path, said).message.partition(': ')[2]}",
                "use a base whose tokenizer llama.cpp knows",
            )
        try:
            yield LlamaVocabulary(model)
        finally:
            with interrupts.held(), library.quiet():
                llama_cpp.llama_model_free(model)


def _write(path: Path, tokens: Tokens, special: Specials, keys: dict[str, Any]) -> None:
    from gguf import GGUFValueType

    from ggufy.export.vocabulary import key_writer

    writer = key_writer.KeyWriter(path=None, arch="llama")
    for key, value in keys.items():
        writer.add_key_value(key, value, GGUFValueType.get_type(value))
    tokens.write(writer)
    special.write(writer)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.close()
    path.write_bytes(key_writer.whole(path.read_bytes(), writer.arrays))


def first_difference(
    tokenizer: FolderTokenizer, ours: LlamaVocabulary, texts: Iterable[str], *, ends: bool = False
) -> Difference | None:
    """The first text that llama.cpp reads otherwise than the folder's tokenizer; None: they agree."""
    for right, text in enumerate(texts):
        short = text[:_LONGEST]
        theirs = list(tokenizer.backend.encode(short, add_special_tokens=ends).ids)
        found = ours.tokenize(short, ends=ends)
        if found != theirs:
            return Difference(short, theirs, found, right)
    return None


def texts_for(tokenizer: FolderTokenizer, more: Sequence[str] = ()) -> list[str]:
    """What is compared: texts of every kind, texts with the tokenizer's own marks, and `more`."""
    with_marks = probes.with_marks(marks(tokenizer), greedy(tokenizer))
    return _as_normalized(tokenizer, [*probes.TEXTS, *with_marks, *more])


def greedy(tokenizer: FolderTokenizer) -> set[str]:
    """The marks of a byte-level tokenizer that take white space beside them along, as Phi-4's.

    llama.cpp does not, in any GGUF: it reads what stands there as text.
    """
    if spm.is_spm(tokenizer):
        return set()
    return {token.content for token in tokenizer.added.values() if token.lstrip or token.rstrip}


def general(tokenizer: FolderTokenizer) -> list[str]:
    """Those of them that every tokenizer is tried with, in many scripts."""
    return _as_normalized(tokenizer, probes.TEXTS)


def _as_normalized(tokenizer: FolderTokenizer, texts: Sequence[str]) -> list[str]:
    return probes.composed(texts) if "NFC" in pre_tokenizers.normalizers(tokenizer.spec) else list(texts)


def marks(tokenizer: FolderTokenizer) -> list[str]:
    """The added tokens that texts are written with: those with a name first, then those of the templates."""
    named = [text for text in tokenizer.special.values() if text]
    written = "".join(named_templates(tokenizer.folder).values())
    contents = [token.content for token in tokenizer.added.values()]
    known = set(contents)
    used = [content for content in contents if content in written]
    return list(dict.fromkeys([*(text for text in named if text in known), *used]))[:_MARKS]
