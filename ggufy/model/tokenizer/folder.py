"""The tokenizer of a model folder: everything that transformers makes one from, not tokenizer.json alone.

tokenizer.json has the model, its rules and tokens; tokenizer_config.json names the special tokens and may list added
ones with other flags than tokenizer.json, which then count (`added_tokens_decoder`). Without that list
special_tokens_map.json has the last word on names, and added_tokens.json may add tokens. The order and the flags are
those of `TokenizersBackend` in transformers 5.17 (`tokenization_utils_base.py`, `tokenization_utils_tokenizers.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ggufy.errors import ModelError
from ggufy.model.config_files import read_whole
from ggufy.model.template import content_of, named_specials, named_templates, with_special_tokens_map
from ggufy.model.tokenizer.findings import Findings

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""The special tokens that transformers has names for."""
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MADE = "converted.json"
"""Stands beside a tokenizer.json that ggufy had made."""
_PAD = re.compile(r"[<\[]\|?pad\|?[>\]]", re.IGNORECASE)
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True)
class Added:
    """A token that is found in a text before anything is split."""

    id: int
    content: str
    special: bool
    normalized: bool
    lstrip: bool
    rstrip: bool
    """Whether it takes white space before it, and after it, along."""


@dataclass(frozen=True, eq=False)
class FolderTokenizer:
    """Of one model folder. Each file is read once, when it is needed."""

    folder: Path
    state: tuple[object, ...] = ()
    """Tells its files from what they may become."""

    @property
    def path(self) -> Path:
        return self.folder / "tokenizer.json"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """tokenizer.json."""
        return read_whole(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json; empty where there is none."""
        path = self.folder / "tokenizer_config.json"
        return read_whole(path) if path.is_file() else {}

    @property
    def made(self) -> bool:
        """Whether tokenizer.json is not the folder's own, but was made of its other files."""
        return (self.folder / MADE).is_file()

    @cached_property
    def special(self) -> dict[str, str]:
        """The special tokens by name: {"bos_token": "<s>", ...}."""
        named = named_specials(self.folder, self.config)
        return {key: text for key, value in named.items() if (text := content_of(value))}

    @cached_property
    def backend(self) -> Any:
        """The tokenizer as `tokenizers.Tokenizer`. It is shared: whoever changes it takes `open_backend`."""
        return open_backend(self.folder, self.config)

    @cached_property
    def findings(self) -> Findings:
        """What earlier commands found out about it with `backend`."""
        return Findings(self.folder / name for name in (*_FILES, "tokenizer.model"))

    @cached_property
    def added(self) -> dict[int, Added]:
        """The added tokens by their numbers."""
        found = self.findings.get(
            "added tokens",
            lambda: [
                [int(number), token.content, token.special, token.normalized, token.lstrip, token.rstrip]
                for number, token in sorted(self.backend.get_added_tokens_decoder().items())
            ],
        )
        return {number: Added(number, *flags) for number, *flags in found}

    @cached_property
    def names(self) -> dict[int, str]:
        """Every token by its number."""
        vocab = (self.spec.get("model") or {}).get("vocab") or {}
        # Of a Unigram model: pairs of a token and its score, in the order of the numbers.
        entries = vocab.items() if isinstance(vocab, dict) else ((pair[0], n) for n, pair in enumerate(vocab))
        names = {number: name for name, number in entries}
        return names | {number: token.content for number, token in self.added.items()}

    def padding_beyond(self, rows: int) -> dict[int, str]:
        """The tokens without a row in an embedding of so many, where they are for padding alone; else none.

        Some trainers add one and leave the embedding as it is: no text is written with it.
        """
        if max(self.names, default=0) < rows:
            return {}
        beyond = {number: name for number, name in self.names.items() if number >= rows}
        written = "".join(named_templates(self.folder).values())
        used = {text for key, text in self.special.items() if key != "pad_token"}
        pads = (name == self.special.get("pad_token") or _PAD.fullmatch(name) for name in beyond.values())
        return beyond if all(pads) and not any(n in used or n in written for n in beyond.values()) else {}

    def within(self, rows: int) -> FolderTokenizer:
        """Without the tokens of `padding_beyond`."""
        beyond = self.padding_beyond(rows)
        if not beyond:
            return self
        made = FolderTokenizer(self.folder, (*self.state, rows))
        # What the properties of these names would find out.
        made.__dict__.update(
            names={number: name for number, name in self.names.items() if number not in beyond},
            added={number: token for number, token in self.added.items() if number not in beyond},
            special={key: text for key, text in self.special.items() if text not in beyond.values()},
            findings=self.findings,
        )
        return made


def of(folder: Path) -> FolderTokenizer:
    """The tokenizer of a folder; of the last one, what was read is kept until `forget`."""
    stats = [(folder / name).stat() if (folder / name).is_file() else None for name in _FILES]
    times = ((found.st_mtime_ns, found.st_size) if found else None for found in stats)
    return _of(folder, (folder.resolve(), *times))


@lru_cache(maxsize=1)
def _of(folder: Path, state: tuple[object, ...]) -> FolderTokenizer:
    return FolderTokenizer(folder, state)


def forget() -> None:
    """Give the memory of what was read back: of a large vocabulary a hundred megabytes."""
    _of.cache_clear()


def open_backend(folder: Path, config: dict[str, Any] | None = None) -> Any:
    """A new `tokenizers.Tokenizer` of a folder, with the tokens and flags that transformers adds. No truncation.

    Raises ModelError where there is none, or where it cannot be read.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        backend = Tokenizer.from_file(path.as_posix())
    except Exception as error:  # noqa: BLE001 - the Rust library raises bare Exception
        raise ModelError(f"{path.as_posix()} cannot be read: {error}", "copy it again") from None
    backend.no_truncation()
    backend.no_padding()
    if config is None:
        place = folder / "tokenizer_config.json"
        config = read_whole(place) if place.is_file() else {}
    if more := _to_add(folder, config, backend):
        backend.add_tokens(more)
    return backend


def _to_add(folder: Path, config: dict[str, Any], backend: Any) -> list[Any]:
    """The tokens that tokenizer.json has not, or with other flags."""
    from tokenizers import AddedToken

    have = backend.get_added_tokens_decoder()
    known = {repr(token) for token in have.values()}
    named = named_specials(folder, config)
    said = with_special_tokens_map(folder, config)
    more = said.get("extra_special_tokens") or said.get("additional_special_tokens") or []
    extra = list(more.values() if isinstance(more, dict) else more)
    listed = _listed(folder, config, {text for text in map(content_of, [*named.values(), *extra]) if text})
    found = [token for _, token in sorted(listed.items()) if repr(token) not in known]
    there = {token.content for token in have.values()} | {token.content for token in found}
    for value in (*named.values(), *extra):
        text = content_of(value)
        if text and text not in there:
            flags = {key: bool(value[key]) for key in _FLAGS if isinstance(value, dict) and key in value}
            found.append(AddedToken(text, **{**flags, "special": True}))
            there.add(text)
    names = {text for text in map(content_of, named.values()) if text}
    for token in found:
        token.special = token.special or token.content in names
    return found


def _listed(folder: Path, config: dict[str, Any], special: set[str]) -> dict[int, Any]:
    """The added tokens that a folder lists outside tokenizer.json, by their numbers there."""
    from tokenizers import AddedToken

    place = folder / "tokenizer_config.json"
    try:
        if "added_tokens_decoder" in config:
            return {
                int(number): AddedToken(
                    str(token["content"]), **{key: bool(token[key]) for key in _FLAGS if key in token}
                )
                for number, token in config["added_tokens_decoder"].items()
            }
        place = folder / "added_tokens.json"
        if not place.is_file():
            return {}
        return {
            int(number): AddedToken(text, normalized=text not in special, special=text in special)
            for text, number in read_whole(place).items()
        }
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{place.as_posix()}: its added tokens cannot be read: {error!r}", "copy it again") from None
