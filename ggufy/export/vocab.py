"""Write the tokenizer of a model folder as GGUF keys, as llama.cpp's converter does; prove that it is read alike."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from ggufy.errors import ExportError
from ggufy.export.vocabulary import pre_tokenizers, proof, special, spm, tokens
from ggufy.export.vocabulary.special import Specials
from ggufy.export.vocabulary.tokens import Tokens
from ggufy.model.template import named_templates
from ggufy.model.tokenizer import findings, folder
from ggufy.model.tokenizer.folder import FolderTokenizer
from ggufy.system import digest


class Texts(NamedTuple):
    """Texts to be compared, and what tells them from others."""

    key: str
    read: Callable[[], Sequence[str]]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        return cls(digest.of_values(list(texts)), lambda: texts)


class Rules(Enum):
    """Whose way of writing a tokenizer the converter follows for a family."""

    LLAMA = "Llama's: it says of a space before texts what tokenizer_config.json does, and of some sizes more"
    GEMMA = "Gemma's: as others, and last of all that no space is put before texts"
    PHI3 = "Phi-3's: every added token of a SentencePiece model is a mark or a user's"
    OTHER = "that of all others"


@dataclass(frozen=True)
class Vocabulary:
    """What is written of a tokenizer."""

    tokens: Tokens
    special: Specials
    prefix: bool | None
    """Whether llama.cpp puts a space before a text; None: as it does by itself."""
    bos: bool | None = None
    """What replaces the flag for a BOS."""
    eot: int | None = None
    """The end of a turn, where the converter knows it by the size of the vocabulary."""
    prefix_last: bool = False
    """Whether `prefix` is written after all else."""
    named: str | None = None
    """What has to be in the model's name, for llama.cpp to read the marks as the tokenizer does."""

    def write(self, writer: Any) -> None:
        if not self.prefix_last:
            self._write_prefix(writer)
        self.tokens.write(writer)
        self.special.write(writer)

    def write_rest(self, writer: Any) -> None:
        """What follows the chat templates."""
        if self.eot is not None:
            writer.add_eot_token_id(self.eot)
        if self.bos is not None:
            writer.add_add_bos_token(self.bos)
        if self.prefix_last:
            self._write_prefix(writer)

    def _write_prefix(self, writer: Any) -> None:
        if self.prefix is not None:
            writer.add_add_space_prefix(self.prefix)


def add_vocab(writer: Any, base: Path, vocab_size: int, *, rules: Rules = Rules.LLAMA) -> None:
    """Add every tokenizer key of the folder `base` to a GGUFWriter. Raises ExportError for other tokenizers."""
    made = read(base, vocab_size, rules=rules)
    made.write(writer)
    _add_templates(writer, base)
    made.write_rest(writer)


def read(base: Path, vocab_size: int, *, rules: Rules = Rules.LLAMA) -> Vocabulary:
    """The vocabulary of a folder whose embedding has `vocab_size` rows. Raises ExportError, or ModelError.

    That of the last one is kept until `forget`, and read again where its files have changed.
    """
    tokenizer = folder.of(base)
    key = (tokenizer.state, vocab_size, rules)
    if key not in _made:
        for number, name in tokenizer.padding_beyond(vocab_size).items():
            log.info(
                "%s: token %d (%r) has no row in the embedding and is for padding: it is left out",
                *(tokenizer.path.as_posix(), number, name),
            )
        made = _read(tokenizer.within(vocab_size), vocab_size, rules=rules)
        _made.clear()
        _made[key] = made
    return _made[key]


# Those with which llama.cpp puts a BOS before every text, where the file does not say otherwise.
_ADDS_BOS = ("llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken", "chameleon")
_OTHER = "use a base whose tokenizer llama.cpp knows"
_NORMALIZED = (
    'write "normalized": false at the added tokens in tokenizer.json and tokenizer_config.json, as later versions of '
    "such models have it: with true the tokenizer does not see them within a text"
)
log = logging.getLogger("ggufy")

NAMED = re.compile("phi-?3", re.IGNORECASE)
"""With this in a model's name llama.cpp takes the white space after a mark away, and needs Llama 2's own marks."""
OWN = Texts("", list)
"""None but those that every tokenizer is tried with."""
_made: dict[tuple[object, ...], Vocabulary] = {}
_said: set[object] = set()


def _read(tokenizer: FolderTokenizer, vocab_size: int, *, rules: Rules) -> Vocabulary:
    _check_kind(tokenizer)
    if spm.is_spm(tokenizer):
        return _read_spm(tokenizer, vocab_size, rules)
    made = special.of(tokenizer)
    # The tokenizer's own word on a BOS where the converter says nothing, and llama.cpp would put one.
    quiet = _adds_nothing(tokenizer)
    known = pre_tokenizers.known(tokenizer)
    pre = known[0] if len(known) == 1 else _by_comparison(tokenizer, vocab_size, made, known)
    if quiet and pre in _ADDS_BOS:
        made.added.setdefault("bos", False)
    # The converter's, for the small Granite models, and so for SmolLM2, which has a vocabulary of that size, too.
    as_llama = rules is Rules.LLAMA
    bos = False if as_llama and vocab_size == 49152 and quiet and made.added.get("bos") is not False else None
    prefix = tokenizer.config.get("add_prefix_space") if as_llama else None
    return Vocabulary(tokens.byte_level(tokenizer, vocab_size, pre), made, prefix, bos)


def _read_spm(tokenizer: FolderTokenizer, vocab_size: int, rules: Rules) -> Vocabulary:
    made = special.of(tokenizer, vocab_size)
    if _adds_nothing(tokenizer):
        # Without a word on it llama.cpp puts a BOS before every text.
        made.added.setdefault("bos", False)
    found = spm.tokens(tokenizer, vocab_size, all_added=rules is Rules.PHI3)
    prefix = spm.prefix(tokenizer, told=rules is Rules.LLAMA)
    eot = spm.codellama_eot(tokenizer, vocab_size) if rules is Rules.LLAMA else None
    named = spm.NAMED if spm.strips(tokenizer) else None
    return Vocabulary(found, made, prefix, eot=eot, prefix_last=rules is Rules.GEMMA, named=named)


def forget() -> None:
    """Give the memory of what was read back."""
    _made.clear()
    folder.forget()


def _adds_nothing(tokenizer: FolderTokenizer) -> bool:
    """Whether the tokenizer puts nothing around a text."""

    def find() -> bool:
        backend = tokenizer.backend
        return bool(backend.encode("a").ids == backend.encode("a", add_special_tokens=False).ids)

    return bool(tokenizer.findings.get("nothing is put around a text", find))


def check(base: Path, vocab_size: int, texts: Texts = OWN, *, rules: Rules = Rules.LLAMA) -> None:
    """Raise ExportError where llama.cpp would read text otherwise than the tokenizer of a folder, or cannot have it.

    `texts` are compared beside those that every tokenizer is tried with. What is read alike is so once and for all: it
    is remembered of this tokenizer, this vocabulary, these texts and this llama.cpp.
    """
    tokenizer, made = folder.of(base).within(vocab_size), read(base, vocab_size, rules=rules)
    own, how = proof.texts_for(tokenizer), findings.code(Path(proof.__file__).parent)
    flags = [made.prefix, made.prefix_last, made.bos, made.eot, made.named]
    written = [made.tokens.digest, asdict(made.special), *flags]
    alike = f"read alike: {digest.of_values([written, own, texts.key, how])}"
    differs = tokenizer.findings.get(alike, lambda: prove(tokenizer, made, texts.read()))
    if differs and differs not in _said:
        _said.add(differs)
        log.warning("%s", differs)
    if (greedy := proof.greedy(tokenizer)) and ("marks", tokenizer.state) not in _said:
        _said.add(("marks", tokenizer.state))
        log.info(
            "%s: %s and white space beside it are one token there; llama.cpp reads the white space as text",
            *(tokenizer.path.as_posix(), ", ".join(map(repr, sorted(greedy)[:3]))),
        )
    if made.tokens.model == "llama" and spm.spaces_once(tokenizer) and tokenizer.state not in _said:
        _said.add(tokenizer.state)
        log.info(
            "%s puts a space before a text that begins with none; llama.cpp puts one before every text, so one "
            "that begins with a space is read with one more",
            tokenizer.path.as_posix(),
        )


def prove(tokenizer: FolderTokenizer, made: Vocabulary, texts: Sequence[str] = ()) -> str:
    """Raise ExportError where llama.cpp reads a text otherwise than the tokenizer.

    Of a tokenizer that is in the converter's own table a text in some script may differ, as it then does in everybody's
    GGUF of that model: this is returned, to be said, and empty otherwise.
    """
    compared = proof.texts_for(tokenizer, texts)
    general: list[str] = []
    if made.tokens.model == "gpt2" and pre_tokenizers.by_hash(tokenizer) == made.tokens.pre:
        general = proof.general(tokenizer)
        compared = [text for text in compared if text not in general or text in texts]
    ends = ["Hello, world!"]
    if made.tokens.model == "llama" and spm.begins_only(tokenizer):
        # As conversations are: with a mark first. What stands at the very beginning is then the mark.
        mark = tokenizer.special.get("bos_token") or next(iter(proof.marks(tokenizer)), "")
        compared, ends = [mark + text for text in compared], [mark] if mark else []
    elif made.tokens.model == "llama" and spm.spaces_once(tokenizer):
        plain = (text for text in proof.texts_for(tokenizer) if not spm.begins_with_space(tokenizer, text))
        compared = [*texts, *plain]
    with proof.loaded(made.tokens, made.special, _flags(made)) as ours:
        found = proof.first_difference(tokenizer, ours, compared)
        if found is None:
            found = proof.first_difference(tokenizer, ours, ends, ends=True)
        known = None if found else proof.first_difference(tokenizer, ours, general)
    if found:
        raise ExportError(
            f"{tokenizer.path.as_posix()}: llama.cpp would read text differently from training: as {made.tokens.pre!r} "
            f"{found.right} of {len(compared)} texts came out alike, and {found.described(tokenizer)}",
            _NORMALIZED if spm.misses_marks(tokenizer) else _OTHER,
        )
    if known is None:
        return ""
    return (
        f"{tokenizer.path.as_posix()}: llama.cpp knows this tokenizer, as {made.tokens.pre!r}, and yet reads some text "
        f"otherwise, in every GGUF of this model; {known.described(tokenizer)}"
    )


def those_that_go_on(base: Path, vocab_size: int, tokens: Sequence[int], *, rules: Rules) -> list[int]:
    """Those of these tokens after which llama.cpp would go on, which knows ends by their names, too; remembered."""
    tokenizer = folder.of(base)
    made = read(base, max(vocab_size, max(tokenizer.names) + 1), rules=rules)

    def find() -> list[int]:
        with proof.loaded(made.tokens, made.special) as ours:
            return [token for token in tokens if not ours.ends_turn(token)]

    asked = digest.of_values([made.tokens.digest, asdict(made.special), list(tokens)])
    return list(tokenizer.findings.get(f"goes on after: {asked}", find))


def _flags(made: Vocabulary) -> dict[str, Any]:
    flags = {"tokenizer.ggml.add_space_prefix": made.prefix, "tokenizer.ggml.add_bos_token": made.bos}
    return {key: value for key, value in {**flags, "general.name": made.named}.items() if value is not None}


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
        f"training: of the {len(names)} ways to split text that were tried {nearest[0]!r} comes nearest, with "
        f"{nearest[1].right} of {len(texts)} texts before one that differs; {nearest[1].described(tokenizer)}",
        _OTHER,
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
