"""A folder with an adapter or a model on the Hub: a repository, or a folder in it, as trainers push checkpoints."""

from __future__ import annotations

import glob
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ggufy.errors import ExportError, HubError, ModelError
from ggufy.model import bases, download
from ggufy.model.tokenizer import converted

log = logging.getLogger("ggufy")

ADAPTER, MODEL = "adapter_config.json", "config.json"
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.jinja")
# peft saves an adapter that has a name in a folder of its own, beside which the tokenizer then lies.
_ABOVE = (
    *(MODEL, "tokenizer_config.json", "tokenizer.json", "chat_template.jinja", "additional_chat_templates/*.jinja"),
    *bases.BESIDE,
)
_FILES = {
    ADAPTER: (ADAPTER, "adapter_model.safetensors", "vocab.json", "merges.txt", *_TOKENIZER),
    MODEL: (MODEL, "generation_config.json", "*.safetensors", "*.index.json", *_TOKENIZER),
}
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)((?:/[^/.][^/]*)*)/?")
_SHOWN = 8


@dataclass(frozen=True)
class HubFolder:
    """Such a folder, downloaded."""

    path: Path
    name: str
    """What is made of it is called so."""
    said: str
    """owner/name, or owner/name/folder."""


def place(what: str) -> tuple[str, str] | None:
    """The repository and the folder in it that are meant by owner/name or owner/name/folder; None: it is neither."""
    found = _NAME.fullmatch(what)
    return (found[1], found[2].strip("/")) if found else None


def find(what: str) -> HubFolder:
    """Download the adapter or the model that is meant. In a repository that is neither the one folder that is.

    Raises HubError, ModelError where neither is there, ExportError where there are several.
    """
    repository, inside = place(what) or (what, "")
    name = repository.rpartition("/")[2] + "".join(f"-{part}" for part in inside.split("/") if part)
    # First only what says which it is: a repository may hold the weights of many checkpoints.
    folder, commit = _fetch(repository, None, inside, (ADAPTER, MODEL))
    kind = _kind(folder / inside)
    if kind is None:
        found = _adapters(repository, commit, folder)
        hint = _hint(repository, found) if found else "check the name"
        if inside:
            raise ModelError(f"{what}: there is no {ADAPTER} and no {MODEL}", hint)
        if len(found) > 1:
            raise ExportError(f"{what} is no adapter, but {len(found)} of its folders are", hint)
        if found:
            [inside], kind = found, ADAPTER
            log.info("%s holds its adapter in a folder of its own, %s, which is exported", what, inside)
    if kind:
        folder, _ = _fetch(repository, commit, inside, _FILES[kind])
        if kind == ADAPTER and inside:
            _fetch(repository, commit, inside.rpartition("/")[0], _ABOVE)
        if kind == MODEL and not (folder / inside / "tokenizer.json").is_file():
            folder, _ = _fetch(repository, commit, inside, (*_FILES[kind], *converted.MORE))
    return HubFolder(folder / inside, name, f"{repository}/{inside}" if inside else repository)


def _kind(folder: Path) -> str | None:
    return next((name for name in (ADAPTER, MODEL) if (folder / name).is_file()), None)


def _fetch(repository: str, commit: str | None, inside: str, names: tuple[str, ...]) -> tuple[Path, str]:
    files = [f"{glob.escape(inside)}/{name}" if inside else name for name in names]
    return download.snapshot(repository, commit, "model", files, offline=False)


def _adapters(repository: str, commit: str, folder: Path) -> list[str]:
    """The folders of a repository with an adapter; where the Hub cannot be asked, those that were downloaded before."""
    try:
        files = download.files(repository, commit)
    except HubError:
        files = [path.relative_to(folder).as_posix() for path in folder.rglob(ADAPTER)]
        if not files:
            raise
    return sorted({path.rpartition("/")[0] for path in files if path.endswith(f"/{ADAPTER}")})


def _hint(repository: str, folders: list[str]) -> str:
    more = f", and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    commands = ", ".join(f"`ggufy export {repository}/{folder}`" for folder in folders[:_SHOWN])
    return f"name {'one of its adapters' if len(folders) > 1 else 'its adapter'}: {commands}{more}"
