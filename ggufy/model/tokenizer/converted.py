"""A tokenizer.json for a model folder that has none: transformers makes one, once, of the files that are there.

Many older repositories have SentencePiece's tokenizer.model alone. What is made is kept in ggufy's cache, in a folder
that links to all else of the model; the folder itself, or the Hub's, is left as it is.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ggufy import installed
from ggufy.errors import MissingExtra, ModelError
from ggufy.model import config_files
from ggufy.model.template import named_specials
from ggufy.model.tokenizer import folder as folders
from ggufy.model.tokenizer import sentencepiece
from ggufy.system import digest, user_folders

log = logging.getLogger("ggufy")

MORE = ("added_tokens.json", "vocab.json", "merges.txt", "tekken.json")
"""What a tokenizer may be made of, beside files that every model folder has."""
_JSON, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_SOURCES = (("tokenizer.model",), ("tekken.json",), ("vocab.json", "merges.txt"))
_READ = ("tokenizer.model", _CONFIG, "special_tokens_map.json", *MORE)
_NEEDED = (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf"))
_BY_HAND = (
    "copy tokenizer.json from the original repository, or make it where transformers can: "
    "python -c \"from transformers import AutoTokenizer as A; A.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
)
_PROBES = ("Hello", "Hello, world! How are you?", "a  b\n\nc", "12345 naïve 你好 🌻")


def source_of(folder: Path) -> str | None:
    """The file that a tokenizer.json is made of; None where there is one already, or nothing to make it of."""
    if (folder / _JSON).is_file():
        return None
    return next((names[0] for names in _SOURCES if all((folder / name).is_file() for name in names)), None)


def folder_of(folder: Path, name: str) -> Path:
    """The folder, or one that has its tokenizer.json made and links to the rest. Raises ModelError or MissingExtra."""
    source = source_of(folder)
    if source is None:
        return folder
    made, place = _made(folder, name, source), folder.resolve()
    own = [path.name for path in made.iterdir()]
    links = sorted(path.name for path in place.iterdir() if path.name not in own)
    key = digest.of_values([made.name, place.as_posix(), links])[:16]
    out = user_folders.cache() / "bases" / f"{place.name}-{key}"
    if not out.is_dir():
        with _new(out) as new:
            for path in made.iterdir():
                shutil.copyfile(path, new / path.name)
            for link in links:
                (new / link).symlink_to(place / link)
    return out


def add(folder: Path, name: str) -> None:
    """Make the tokenizer.json of a folder of ggufy's own, in it. Raises ModelError or MissingExtra."""
    if source := source_of(folder):
        for path in _made(folder, name, source).iterdir():
            shutil.copyfile(path, folder / path.name)


def _made(folder: Path, name: str, source: str) -> Path:
    """A folder in the cache with what was made of these files by these versions."""
    versions = {package: _version(package) for package in ("transformers", "tokenizers")}
    files = {file: digest.of_file(folder / file) for file in _READ if (folder / file).is_file()}
    config = folder / "config.json"
    kind = config_files.read(config).get("model_type") if config.is_file() else None
    out = user_folders.cache() / "tokenizers" / digest.of_values([versions, files, kind])[:16]
    if not out.is_dir():
        log.info("%s: no tokenizer.json there; transformers makes it of %s", name, source)
        spec, names = _convert(folder, name, source)
        settings = config_files.read_whole(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
        known = named_specials(folder, settings)
        more = {key: text for key, text in names.items() if key not in known and key not in settings}
        with _new(out) as new:
            (new / _JSON).write_text(spec, encoding="utf-8")
            if more or not settings:
                text = json.dumps(settings | more, ensure_ascii=False, indent=2)
                (new / _CONFIG).write_text(text + "\n", encoding="utf-8")
            else:
                shutil.copyfile(folder / _CONFIG, new / _CONFIG)
            (new / folders.MADE).write_text(json.dumps({"of": source, "by": versions}) + "\n", encoding="utf-8")
    return out


def _convert(folder: Path, name: str, source: str) -> tuple[str, dict[str, str]]:
    """tokenizer.json, and the names of the special tokens."""
    what = f"making the tokenizer.json of {name}"
    if find_spec("transformers") is None:
        raise MissingExtra(what, "train", "transformers")
    pieces = sentencepiece.read(folder / source) if source == "tokenizer.model" else None
    for module, package in _NEEDED if pieces else ():
        if not _is_there(module):
            raise MissingExtra(what, "train", package)
    if source == "tokenizer.model" and not pieces and find_spec("tiktoken") is None:
        raise ModelError(
            f"{name}: no tokenizer.json there, and its tokenizer.model is none of SentencePiece's: of tiktoken's kind "
            "transformers makes one with the package tiktoken, which is not installed",
            f"{installed.command_for('tiktoken')}; or copy tokenizer.json from the original repository",
        )
    try:
        with _quiet():
            from transformers import AutoTokenizer

            found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            spec = str(found.backend_tokenizer.to_str(pretty=True))
    except Exception as error:  # noqa: BLE001 - whatever its classes, and the Rust library, raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if pieces and (kind := _kind(folder / source)) != "BPE":
            # What it says then is of another kind of file, which it took it for at last.
            reason = f"it is of SentencePiece's kind {kind}, and llama.cpp's models have BPE"
        raise ModelError(
            f"{name}: no tokenizer.json there, and transformers cannot make it of {source}: {reason}", _BY_HAND
        ) from None
    if pieces:
        _compare(folder, name, found.backend_tokenizer)
    return spec, {key: str(text) for key, text in found.special_tokens_map.items() if isinstance(text, str)}


def _compare(folder: Path, name: str, backend: Any) -> None:
    """Say where transformers reads text otherwise than SentencePiece itself does."""
    from sentencepiece import SentencePieceProcessor

    judge = SentencePieceProcessor(model_file=(folder / "tokenizer.model").as_posix())
    for text in _PROBES:
        theirs = [judge.IdToPiece(number) for number in judge.encode(text)]
        ours = backend.encode(text, add_special_tokens=False).tokens
        if ours != theirs:
            log.warning(
                "%s: transformers reads its tokenizer.model otherwise than SentencePiece does: %r begins with %s, not "
                "%s; training and the GGUF follow transformers, or the original's tokenizer.json if you copy it there",
                *(name, text, _first(ours, theirs), _first(theirs, ours)),
            )
            return


def _first(one: Sequence[str], other: Sequence[str]) -> str:
    """Where two lists begin to differ, what the one has there."""
    at = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(other))
    return " ".join(repr(token) for token in one[: at + 2])


def _kind(path: Path) -> str:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2
    given = proto.ModelProto.FromString(path.read_bytes()).trainer_spec
    return str(proto.TrainerSpec.ModelType.Name(given.model_type))


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers says on its way, such as that there is no PyTorch."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _new(out: Path) -> Iterator[Path]:
    """A folder that gets its name when it is whole; another process may have been first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(mkdtemp(prefix="new-", dir=out.parent))
    try:
        yield new
        try:
            new.rename(out)
        except OSError:
            if not out.is_dir():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
