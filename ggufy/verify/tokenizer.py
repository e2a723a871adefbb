"""Compare a file's tokenizer with that of the model folder it was made from.

The folder is read in another way than the export reads it: through transformers where that is loaded already, as it is
for the logits, or where tokenizer.json does not hold all; else through `tokenizers` alone. So what one overlooks the
other sees.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ggufy.errors import Unverified
from ggufy.export.vocabulary import pre_tokenizers
from ggufy.llamacpp.evaluate_gguf import Forward
from ggufy.model.template import ChatTemplate
from ggufy.model.tokenizer import folder
from ggufy.verify.probes import PROBES, after_answer, leading

log = logging.getLogger("ggufy")

# <|im_start|>, and with the wide bars of DeepSeek: what users type never becomes one of these.
_MARK = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)


class BaseTokenizer:
    """The tokenizer of a model folder."""

    def __init__(self, base: Path) -> None:
        self.base, self.rust = base, _open(base)
        self.special = ChatTemplate.specials(base)
        plain = self.rust.encode("a", add_special_tokens=False).tokens
        self.spaced = bool(plain) and plain[0].startswith("\u2581")
        """Whether it puts a space before a text, as those of SentencePiece do."""
        self.once = self.spaced and self.encode("a") == self.encode(" a")
        """Whether it does not where there is one already, which llama.cpp does not know."""

    def encode(self, text: str, *, ends: bool = False) -> list[int]:
        return list(self.rust.encode(text, add_special_tokens=ends).ids)


def _open(base: Path) -> Any:
    from tokenizers import Tokenizer

    alone = Tokenizer.from_file((base / "tokenizer.json").as_posix())
    theirs, whole = sys.modules.get("transformers"), _is_whole(base, alone)
    if theirs is None and not whole and find_spec("transformers"):
        theirs = importlib.import_module("transformers")
    if theirs:
        try:
            # The class that takes tokenizer.json as it is: that which the folder names may build its rules anew.
            return _as_files_are(theirs.PreTrainedTokenizerFast.from_pretrained(base.as_posix()).backend_tokenizer)
        except Exception as error:  # noqa: BLE001 - a TypeError, too, is what it says of a file it cannot read
            log.info("%s: transformers cannot load the tokenizer: %s", base.as_posix(), " ".join(str(error).split()))
    return _as_files_are(alone if whole else folder.open_backend(base))


def _is_whole(base: Path, alone: Any) -> bool:
    """Whether tokenizer.json, opened alone, has all added tokens: some are listed in the files beside it only."""
    held = {number: (t.content, t.special) for number, t in alone.get_added_tokens_decoder().items()}
    return held == {number: (t.content, t.special) for number, t in folder.of(base).added.items()}


def _as_files_are(tokenizer: Any) -> Any:
    """Without what a trainer set for its batches and saved with it: a length, padding, special tokens as plain text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = False
    return tokenizer


def compare(model: Forward, base: BaseTokenizer, shown: Sequence[str], texts: Mapping[str, str], path: Path) -> None:
    """Raise Unverified for the first text, or token, that llama.cpp reads otherwise.

    `shown` are conversations by the chat template, `texts` are values of the file's header.
    """
    # Where the file puts no space before a text, and the tokenizer does, it is only read alike after a mark.
    unlike = base.spaced and texts.get("tokenizer.ggml.model") == "llama" and _starts_bare(model)
    before = base.special.get("bos_token", "") if unlike else ""
    bare = base.once and not unlike
    for text in (*(before + (probe.lstrip(" ") if bare else probe) for probe in PROBES), *shown):
        theirs, ours = base.encode(text), model.tokenize(text, special=True)
        if ours != theirs:
            if text not in shown and _is_known(base, texts.get("tokenizer.ggml.pre", "")):
                # In everybody's file of this model; the export has said so, and has compared the run's data.
                log.info("llama.cpp reads %r otherwise than the base's tokenizer, as in every GGUF of it", text[:30])
                continue
            at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
            raise Unverified(
                f"{path.as_posix()}: llama.cpp splits {text[:30]!r} differently from the base's tokenizer, "
                f"at token {at}",
                "the tokenizer is not one that llama.cpp knows under this name",
            )
    for text in shown:
        if (count := leading(model.tokenize(text, special=True), model.bos)) > 1:
            raise Unverified(
                f"{path.as_posix()}: its chat template writes {count} BOS tokens at the start", "it must be one"
            )
    _compare_marks(model, base, before, path)
    _compare_ends(model, base, path, plain="" if unlike else PROBES[0], closing=after_answer(shown))


def lost_end(ends: Mapping[int, str], over: Sequence[int], closing: str) -> int | None:
    """The first of the tokens after which llama.cpp would go on, `over`, that answers end with; None where they stop.

    `ends` are the tokens that end an answer by generation_config.json. A model may list more of them than its template
    writes after an answer, which is `closing`.
    """
    return next((number for number in over if ends[number] in closing or len(over) == len(ends)), None)


def _is_known(base: BaseTokenizer, name: str) -> bool:
    """Whether the converter's table has this tokenizer under the name that the file says."""
    return bool(name) and pre_tokenizers.by_ids(lambda text: base.encode(text, ends=True)) == name


def _starts_bare(model: Forward) -> bool:
    return not model.piece(model.tokenize("a", special=False)[0]).startswith(b" ")


def _compare_marks(model: Forward, base: BaseTokenizer, before: str, path: Path) -> None:
    """Every added token is found in a text, and is none that a person can type where it is a mark."""
    beyond = folder.of(base.base).padding_beyond(model.width)
    for number, token in base.rust.get_added_tokens_decoder().items():
        if number in beyond:
            continue
        mark = token.special or _MARK.fullmatch(token.content)
        # Runs of spaces, of which Gemma has many, stand there as in a text.
        text = before + (token.content if mark else token.content.replace("\u2581", " "))
        if (ours := model.tokenize(text, special=True)) != (theirs := base.encode(text)):
            raise Unverified(
                f"{path.as_posix()}: llama.cpp reads the token {token.content!r} as {ours}, and the base's tokenizer "
                f"as {theirs}",
                "the tokenizer of the file is not the base's",
            )
        if mark and not model.is_control(number):
            raise Unverified(
                f"{path.as_posix()}: the token {token.content!r} is no control token there, so what a person types "
                "could become one",
                "the tokenizer of the file is not the base's",
            )


def _compare_ends(model: Forward, base: BaseTokenizer, path: Path, plain: str, closing: str) -> None:
    """How texts begin and answers end: BOS, EOS, what is put around a text, and every token that ends a turn."""
    for kind, number in (("bos", model.bos), ("eos", model.eos)):
        expected = base.rust.token_to_id(base.special.get(f"{kind}_token", ""))
        if expected is not None and expected != number:
            raise Unverified(
                f"{path.as_posix()}: its {kind.upper()} is token {number}, and the base's is {expected}",
                "the tokenizer of the file is not the base's",
            )
    if (ours := model.tokenize(plain, special=False, ends=True)) != (theirs := base.encode(plain, ends=True)):
        raise Unverified(
            f"{path.as_posix()}: llama.cpp reads a text as {len(ours)} tokens, the base's tokenizer as {len(theirs)}",
            "one of them puts a BOS or an EOS around it, and the other does not",
        )
    generation = base.base / "generation_config.json"
    ids = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.is_file() else None
    ends = {}
    for number in ids if isinstance(ids, list) else [ids]:
        # Some write -1 for a model that never ends by itself.
        if type(number) is int and number >= 0 and (name := base.rust.id_to_token(number)) is not None:
            ends[number] = name
    lost = lost_end(ends, [number for number in ends if not model.ends_turn(number)], closing)
    if lost is not None:
        raise Unverified(
            f"{path.as_posix()}: token {lost} ends an answer of the base, and llama.cpp would go on after it",
            "generation_config.json and the tokenizer do not match",
        )
