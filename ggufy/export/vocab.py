"""Write the tokenizer of a model folder as GGUF keys, as llama.cpp's converter does; prove that it is read alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import ExportError
from ggufy.export.vocabulary import pre_tokenizers, proof, special, spm, tokens
from ggufy.export.vocabulary.special import Specials
from ggufy.export.vocabulary.tokens import Tokens
from ggufy.model.template import named_templates
from ggufy.model.tokenizer import folder
from ggufy.model.tokenizer.folder import FolderTokenizer


@dataclass(frozen=True)
class Vocabulary:
    """What is written of a tokenizer."""

    tokens: Tokens
    special: Specials
    prefix: bool | None
    """Whether llama.cpp puts a space before a text; None: as it does by itself."""
    bos: bool | None = None
    """What replaces the flag for a BOS."""

    def write(self, writer: Any) -> None:
        if self.prefix is not None:
            writer.add_add_space_prefix(self.prefix)
        self.tokens.write(writer)
        self.special.write(writer)


def add_vocab(writer: Any, base: Path, vocab_size: int, *, as_llama: bool = True) -> None:
    """Add every tokenizer key of the folder `base` to a GGUFWriter. Raises ExportError for other tokenizers."""
    made = read(base, vocab_size, as_llama=as_llama)
    made.write(writer)
    _add_templates(writer, base)
    if made.bos is not None:
        writer.add_add_bos_token(made.bos)


def read(base: Path, vocab_size: int, *, as_llama: bool = True) -> Vocabulary:
    """The vocabulary of a folder whose embedding has `vocab_size` rows. Raises ExportError, or ModelError.

    That of the last one is kept, and read again where its files have changed.
    """
    tokenizer = folder.of(base)
    key = (tokenizer.state, vocab_size, as_llama)
    if key not in _made:
        made = _read(tokenizer, vocab_size, as_llama=as_llama)
        _made.clear()
        _made[key] = made
    return _made[key]


# Those with which llama.cpp puts a BOS before every text, where the file does not say otherwise.
_ADDS_BOS = ("llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken", "chameleon")
_made: dict[tuple[object, ...], Vocabulary] = {}
_proved: set[tuple[object, ...]] = set()


def _read(tokenizer: FolderTokenizer, vocab_size: int, *, as_llama: bool) -> Vocabulary:
    _check_kind(tokenizer)
    if spm.is_spm(tokenizer):
        return _read_spm(tokenizer, vocab_size)
    made = special.of(tokenizer)
    # The tokenizer's own word on a BOS where the converter says nothing, and llama.cpp would put one.
    quiet = _adds_nothing(tokenizer)
    known = pre_tokenizers.known(tokenizer)
    pre = known[0] if len(known) == 1 else _by_comparison(tokenizer, vocab_size, made, known)
    if quiet and pre in _ADDS_BOS:
        made.added.setdefault("bos", False)
    # The converter's, for the small Granite models, and so for SmolLM2, which has a vocabulary of that size, too.
    bos = False if as_llama and vocab_size == 49152 and quiet and made.added.get("bos") is not False else None
    prefix = tokenizer.config.get("add_prefix_space") if as_llama else None
    return Vocabulary(tokens.byte_level(tokenizer, vocab_size, pre), made, prefix, bos)


def _read_spm(tokenizer: FolderTokenizer, vocab_size: int) -> Vocabulary:
    made = special.of(tokenizer, vocab_size)
    if _adds_nothing(tokenizer):
        # Without a word on it llama.cpp puts a BOS before every text.
        made.added.setdefault("bos", False)
    return Vocabulary(spm.tokens(tokenizer, vocab_size), made, spm.prefix(tokenizer))


def _adds_nothing(tokenizer: FolderTokenizer) -> bool:
    """Whether the tokenizer puts nothing around a text."""
    backend = tokenizer.backend
    return bool(backend.encode("a").ids == backend.encode("a", add_special_tokens=False).ids)


def check(base: Path, vocab_size: int, texts: Sequence[str] = (), *, as_llama: bool = True) -> None:
    """Raise ExportError where llama.cpp would read text otherwise than the tokenizer of a folder, or cannot have it.

    `texts` are compared beside those that every tokenizer is tried with, which is done once for a folder as it is.
    """
    tokenizer = folder.of(base)
    key = (tokenizer.state, vocab_size, as_llama)
    if key not in _proved or texts:
        prove(tokenizer, read(base, vocab_size, as_llama=as_llama), texts)
        _proved.add(key)


def prove(tokenizer: FolderTokenizer, made: Vocabulary, texts: Sequence[str] = ()) -> None:
    """Raise ExportError where llama.cpp reads a text otherwise than the tokenizer."""
    compared = proof.texts_for(tokenizer, texts)
    ends = ["Hello, world!"]
    if made.tokens.model == "llama" and spm.begins_only(tokenizer):
        # As conversations are: with a mark first. What stands at the very beginning is then the mark.
        mark = tokenizer.special.get("bos_token") or next(iter(proof.marks(tokenizer)), "")
        compared, ends = [mark + text for text in compared], [mark] if mark else []
    with proof.loaded(made.tokens, made.special, _flags(made)) as ours:
        found = proof.first_difference(tokenizer, ours, compared)
        if found is None:
            found = proof.first_difference(tokenizer, ours, ends, ends=True)
    if found:
        raise ExportError(
            f"{tokenizer.path.as_posix()}: llama.cpp would read text differently from training: as {made.tokens.pre!r} "
            f"{found.right} of {len(compared)} texts came out alike, and {found.described(tokenizer)}",
            "use a base whose tokenizer llama.cpp knows",
        )


def first_that_goes_on(base: Path, vocab_size: int, tokens: Sequence[int], *, as_llama: bool) -> int | None:
    """The first of these tokens after which llama.cpp would go on."""
    made = read(base, max(vocab_size, max(folder.of(base).names) + 1), as_llama=as_llama)
    with proof.loaded(made.tokens, made.special) as ours:
        return next((token for token in tokens if not ours.ends_turn(token)), None)


def _flags(made: Vocabulary) -> dict[str, bool]:
    flags = {"tokenizer.ggml.add_space_prefix": made.prefix, "tokenizer.ggml.add_bos_token": made.bos}
    return {key: value for key, value in flags.items() if value is not None}


def _check_kind(tokenizer: FolderTokenizer) -> None:
    """Raise ExportError for what is no byte-level BPE."""
    model = tokenizer.spec.get("model") or {}
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "BPE":
        raise ExportError(
            f"{tokenizer.path.as_posix()}: its tokenizer is of the kind {kind}, and BPE is what llama.cpp's models of "
            "this family have",
            "use a base with its own tokenizer.json",
        )


def _by_comparison(tokenizer: FolderTokenizer, rows: int, made: Specials, known: Sequence[str]) -> str:
    """The first of the names under which llama.cpp reads every text as this tokenizer; `known` is none or several.

    Raises ExportError where there is none, with how near the best came.
    """
    texts = proof.texts_for(tokenizer)
    nearest: tuple[str, proof.Difference] | None = None
    names = known or pre_tokenizers.names()
    for name in names:
        with proof.loaded(tokens.byte_level(tokenizer, rows, name), made) as ours:
            found = proof.first_difference(tokenizer, ours, texts)
        if found is None:
            return name
        if nearest is None or found.right > nearest[1].right:
            nearest = name, found
    assert nearest
    raise ExportError(
        f"{tokenizer.path.as_posix()}: llama.cpp has no name for this tokenizer, and would split text differently from "
        f"training: of its {len(names)} ways to split text {nearest[0]!r} comes nearest, with "
        f"{nearest[1].right} of {len(texts)} texts before one that differs; {nearest[1].described(tokenizer)}",
        "use a base whose tokenizer llama.cpp knows",
    )


def _add_templates(writer: Any, base: Path) -> None:
    """The chat templates, from where transformers reads them: the default, and others by their names."""
    given = named_templates(base)
    others = {}
    for name, text in given.items():
        if plain := "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in name):
            others[plain] = text
    default = others.pop("default", "")
    for name, text in others.items():
        writer.add_string(f"tokenizer.chat_template.{name}", text)
    if others:
        writer.add_array("tokenizer.chat_templates", list(others))
    if default:
        writer.add_chat_template(default)
