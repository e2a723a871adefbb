"""The tokenizer and the chat template that an adapter was trained with: those saved beside it, else the base's.

PEFT's trainers, Unsloth, LLaMA-Factory and Axolotl save the tokenizer beside the adapter. Where it is whole
(tokenizer_config.json, and tokenizer.json or what it is made of) it is the one that transformers loads from there, and
the GGUF, its Modelfile and its checks take it; a lone chat_template.jinja, or the template in a lone
tokenizer_config.json, is that for the base's tokenizer. ggufy's own trainings save a copy of the base's, which is then
simply the base's.
"""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from ggufy.errors import ExportError, GgufyError
from ggufy.export.adapter import names
from ggufy.model import config_files
from ggufy.model.safetensors import Checkpoint
from ggufy.model.template import text_of
from ggufy.model.tokenizer import converted
from ggufy.model.tokenizer import folder as tokenizers
from ggufy.model.tokenizer.folder import FolderTokenizer
from ggufy.system import digest

log = logging.getLogger("ggufy")

_JSON, _SETTINGS, _MODEL = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
_NEEDED = (_JSON, _SETTINGS)
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_FILES = (
    *_NEEDED,
    "special_tokens_map.json",
    "added_tokens.json",
    _MODEL,
    "vocab.json",
    "merges.txt",
    _TEMPLATE,
)
# What is read of a model folder beside its tokenizer.
_OF_THE_MODEL = ("config.json", "generation_config.json")


class _Scratch:
    """A folder that is there as long as this is."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="ggufy-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class TrainingTokenizer:
    """Where the tokenizer of a training is read: a folder like a model's, without weights."""

    path: Path
    sha256: str | None = None
    """Of its files, where they are not the base's."""
    said: str | None = None
    """What is other than in the base, for people."""
    resizes: bool = False
    """Whether it has tokens for which the base has no rows."""
    saved: Path | None = None
    """Where its files were saved, of which `path` has copies."""
    scratch: _Scratch | None = None
    """Holds `path` while this is in use."""

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors name the folder where the tokenizer was saved."""
        try:
            yield
        except GgufyError as error:
            if self.saved:
                error.message = error.message.replace(self.path.as_posix(), self.saved.as_posix())
                error.args = (error.message,)
            raise


def of(base: Path, adapter: Path | None) -> TrainingTokenizer:
    """The tokenizer of a base and an adapter folder. Raises ExportError where it does not fit the embedding."""
    if adapter is None:
        return TrainingTokenizer(base)
    beside = _beside(adapter)
    files = [folder / name for folder in (base, beside) for name in _FILES]
    state = tuple(map(_state, [*files, *_more(base), *_more(beside)]))
    return _of(base, beside, adapter / "adapter_model.safetensors", state)


def _beside(adapter: Path) -> Path:
    """The folder that the tokenizer was saved in: the adapter's, or the one above it.

    peft saves an adapter that has a name in a folder of its own, where the tokenizer is saved beside that.
    """
    above = adapter.resolve().parent
    own, theirs = (any((folder / name).is_file() for name in (*_NEEDED, _TEMPLATE)) for folder in (adapter, above))
    # That of a model is the base's, or another one's.
    return above if theirs and not own and not (above / "config.json").is_file() else adapter


@lru_cache(maxsize=32)
def _of(base: Path, adapter: Path, weights: Path, state: tuple[object, ...]) -> TrainingTokenizer:
    del state
    made = converted.source_of(adapter)
    whole = (adapter / _SETTINGS).is_file() and (made is not None or (adapter / _JSON).is_file())
    held = [name for name in _FILES if (adapter / name).is_file()]
    if not whole:
        if lone := [name for name in held if name in _NEEDED and not _same(adapter / name, base / name)]:
            lacking = next(name for name in _NEEDED if not (adapter / name).is_file())
            log.info("%s: %s is there without %s, so the base's tokenizer is used", adapter, lone[0], lacking)
        held = [name for name in held if name == _TEMPLATE]
    own = "" if whole else _lone_template(adapter)
    others = bool(own) and own != text_of(base)
    if whole:
        others = _lacks_template(base, adapter) or not _same_templates(base, adapter)
    if all(_same(adapter / name, base / name) for name in held) and not others:
        return TrainingTokenizer(base)
    scratch = _Scratch()
    folder = scratch.path
    _copy(base, _OF_THE_MODEL, folder)
    tokenizer, template = (adapter, adapter) if whole else (base, adapter)
    _copy(tokenizer, [name for name in _FILES if name != _TEMPLATE], folder)
    if whole and made is not None:
        _make_json(base, adapter, folder)
    elif not whole:
        _copy(base, [tokenizers.MADE], folder)
    _copy(template, [_TEMPLATE], folder)
    if own:
        (folder / _TEMPLATE).write_text(own, "utf-8")
    if (tokenizer / _MORE_TEMPLATES).is_dir():
        shutil.copytree(tokenizer / _MORE_TEMPLATES, folder / _MORE_TEMPLATES)
    sha256 = digest.of_folder(folder, (*_FILES, f"{_MORE_TEMPLATES}/*.jinja"))
    found = TrainingTokenizer(folder, sha256, saved=adapter, scratch=scratch)
    with found.named():
        resizes = whole and _resizes(base, tokenizers.FolderTokenizer(folder), weights, adapter)
        return replace(found, resizes=resizes, said=_differences(base, folder, whole=whole))


def _lone_template(adapter: Path) -> str:
    """The template in a tokenizer_config.json that is there without its tokenizer.json, which is large."""
    path = adapter / "tokenizer_config.json"
    return text_of(adapter) if path.is_file() and config_files.read_whole(path) else ""


def _more(folder: Path) -> list[Path]:
    return sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))


def _same_templates(base: Path, adapter: Path) -> bool:
    """Whether both have the same templates beside the default one."""
    ours, theirs = ({path.name: path.read_bytes() for path in _more(folder)} for folder in (adapter, base))
    return ours == theirs or not ours


def _make_json(base: Path, adapter: Path, folder: Path) -> None:
    """The tokenizer.json that was not saved: the base's, where it is of the same model file; else it is made."""
    if _same(adapter / _MODEL, base / _MODEL):
        _copy(base, (_JSON, tokenizers.MADE), folder)
    else:
        converted.add(folder, adapter.as_posix())


def _lacks_template(base: Path, adapter: Path) -> bool:
    """Whether the base has a template in a file, and a tokenizer that is otherwise its own was saved without."""
    return (base / _TEMPLATE).is_file() and not (adapter / _TEMPLATE).is_file()


def _differences(base: Path, folder: Path, *, whole: bool) -> str | None:
    found = []
    before, after = text_of(base), text_of(folder)
    if before != after:
        found.append(
            "another chat template" if before and after else "a chat template" if after else "no chat template"
        )
    if whole:
        theirs, ours = tokenizers.FolderTokenizer(base), tokenizers.FolderTokenizer(folder)
        count = len(ours.names) - len(theirs.names)
        if count:
            found.append(f"{abs(count):,} tokens {'more' if count > 0 else 'fewer'} than the base's")
        renamed = [n for n, name in ours.names.items() if theirs.names.get(n, name) != name]
        if renamed:
            found.append(f"{len(renamed):,} tokens with other names")
        for kind in ("bos", "eos", "pad"):
            if ours.special.get(f"{kind}_token") != theirs.special.get(f"{kind}_token"):
                found.append(f"{kind.upper()} {ours.special.get(f'{kind}_token', 'none')}")
    return "; ".join(found) or None


def _resizes(base: Path, tokenizer: FolderTokenizer, file: Path, adapter: Path) -> bool:
    """Whether the base has too few rows for the tokenizer. Raises ExportError where the adapter brings no others."""
    brought = names.embedding(names.open_weights(file)) if file.is_file() else None
    own = names.embedding(Checkpoint.open(base))
    held = brought or own
    if brought is None:
        _refuse_stranger(base, tokenizer, adapter)
    highest = max(tokenizer.within(held.shape[0]).names if held else tokenizer.names, default=0)
    if held is None or highest < held.shape[0]:
        return own is not None and highest >= own.shape[0]
    whose = "the adapter's embedding" if brought else "the base's embedding, as the adapter brings none"
    raise ExportError(
        f"{(adapter / _JSON).as_posix()}: token {highest} ({tokenizer.names[highest]!r}) has no row in {whose}, which "
        f"has {held.shape[0]:,}",
        "save the adapter again with the embedding that it was trained with (save_embedding_layers=True in peft), or "
        "remove the added tokens from its tokenizer if they were not trained",
    )


def _refuse_stranger(base: Path, tokenizer: FolderTokenizer, adapter: Path) -> None:
    """Raise ExportError where most tokens of the base are others in a tokenizer that comes without an embedding."""
    theirs = tokenizers.FolderTokenizer(base).names
    other = sum(tokenizer.names.get(number) != name for number, name in theirs.items())
    if 2 * other > len(theirs):
        raise ExportError(
            f"{(adapter / _JSON).as_posix()}: {other:,} of the base's {len(theirs):,} tokens are others there, and the "
            "adapter brings no embedding for them: it is the tokenizer of another model",
            "name the base that the adapter was trained on with --base, or remove the tokenizer's files there to use "
            "the base's",
        )


def _copy(source: Path, names: list[str] | tuple[str, ...], folder: Path) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _state(path: Path) -> object:
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
