"""The files of a folder: which split each is read for, and which are read for none.

Which file is which split is the datasets library's to say: by what README.md names, else by words in the names of files
and folders. Whatever it leaves out is known by its reason, so that no row is lost in silence.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ggufy.data import files
from ggufy.data.readers import json_rows
from ggufy.errors import DataError, MissingExtra

NO_SPLIT = "named for no split"
"""Why a file is not read beside one that has a split's word, such as train, in its name."""
_PACKED_FILE, _OTHER_KIND, _ONE_KIND = "packed", "of a kind that is not read", "the folder is read for its"
BY_ACCIDENT = (NO_SPLIT, _PACKED_FILE, _OTHER_KIND, _ONE_KIND)
"""Reasons, or how they begin, that neither the folder nor the recipe names."""
# By which datasets is told what files are; they are copied where the others are only named.
_ABOUT = frozenset(("README.md", ".huggingface.yaml", "dataset_infos.json"))
# Beside the rows, and about them.
_NO_DATA = frozenset(
    ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")
)
_NO_DATA_STEMS = frozenset(("readme", "license", "licence", "notice", "citation", "changelog", "requirements"))
_NO_DATA_KINDS = frozenset((".md", ".rst", ".py", ".sh", ".ipynb", ".png", ".jpg", ".svg", ".pdf", ".html", ".lock"))
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
# What fsspec takes for a pattern, or for a chain of places, in the name of a folder.
_MARKS = ("*", "?", "[", "]", "{", "}", "::")
_SHOWN = 6


@dataclass
class Folder:
    """The files of each split, in the order in which they are read, and why each of the others is in none."""

    splits: dict[str, list[Path]]
    others: dict[Path, str] = field(default_factory=dict)
    assumed: bool = False
    """No file's name says train, so those whose names say no split are taken for it."""


def find(name: str, folder: Path, subset: str | None) -> Folder:
    """The splits of a folder. Raises DataError and MissingExtra."""
    folder = folder.expanduser().resolve()
    if by_split := saved(name, folder):
        return Folder(by_split)
    there = {path for path in _walk(folder, also_private=True) if _is_data(path)}
    splits = _by_datasets(name, folder, subset, lambda _: True)
    kinds_read = {path for paths in splits.values() for path in paths if files.is_known(path) or _is_packed(path)}
    if len(kinds_read) < sum(map(len, splits.values())) and any(map(files.is_known, there)):
        # datasets reads the kind of file of which there are most.
        splits = _by_datasets(name, folder, subset, lambda path: files.is_known(path) or _is_packed(path))
    found = Folder(splits)
    for split, paths in splits.items():
        for path in [path for path in paths if path.name == "metadata.json" and len(paths) > 1 and _is_about(path)]:
            splits[split] = [other for other in splits[split] if other != path]
            found.others[path] = "about the rows, not rows"
    named = {path for paths in splits.values() for path in paths}
    kinds = {path.suffix for path in named}
    listed = (folder / "README.md").is_file() and "\nconfigs:" in (folder / "README.md").read_text("utf-8", "replace")
    for path in sorted(there):
        if path not in named and path not in found.others:
            found.others[path] = _why(path, kinds, subset if listed else None, listed=listed)
    if splits and "train" not in splits and not listed:
        rest = [path for path, why in found.others.items() if why == NO_SPLIT]
        if rest:
            splits["train"], found.assumed = rest, True
            found.others = {path: why for path, why in found.others.items() if path not in rest}
    return found


def saved(name: str, folder: Path) -> dict[str, list[Path]] | None:
    """The splits of what the datasets library wrote with save_to_disk; None for another folder. Raises DataError."""
    if (folder / "dataset_dict.json").is_file():
        splits = _facts(name, folder / "dataset_dict.json").get("splits", [])
        return {str(split): _saved_files(name, folder / str(split)) for split in splits}
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return {"train": _saved_files(name, folder)}
    return None


def _saved_files(name: str, folder: Path) -> list[Path]:
    parts = _facts(name, folder / "state.json").get("_data_files", [])
    paths = [folder / str(part.get("filename")) for part in parts if isinstance(part, dict)]
    if not paths or (lost := [path for path in paths if not path.is_file()]):
        missing = lost[0].name if paths else "its files"
        raise DataError(
            f"{name}: was written by save_to_disk of the datasets library, and {missing} is not there",
            "copy it again, or write it with to_parquet('rows.parquet')",
        )
    return paths


def _facts(name: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {path.name} cannot be read: {error}", "copy the folder again") from None
    return found if isinstance(found, dict) else {}


def listed(paths: list[str]) -> str:
    """Some names, for people."""
    more = len(paths) - _SHOWN
    return ", ".join(paths) if more <= 1 else f"{', '.join(paths[:_SHOWN])} and {more:,} more"


def what_else(folder: Path) -> str:
    """What a folder without rows holds instead."""
    names = [path.relative_to(folder).as_posix() for path in _walk(folder)]
    return f", but {listed(names)}" if names else ""


def within(folder: Path, path: Path) -> str:
    """The name of a file inside a folder."""
    return path.relative_to(folder.expanduser().resolve()).as_posix()


def check_kind(name: str, folder: Path, path: Path) -> None:
    """Raise DataError for a file of a split that cannot be read."""
    if files.is_known(path):
        return
    inside = within(folder, path)
    known = ", ".join(files.SUFFIXES)
    if _is_packed(path):
        raise DataError(f"{name}/{inside}: is packed", f"unpack it beside the others, then remove it; read are {known}")
    raise DataError(
        f"{name}/{inside}: is of a kind that is not read", f"known are {known}; convert it, or move it away"
    )


def _walk(folder: Path, *, also_private: bool = False) -> Iterator[Path]:
    """All files but hidden ones, as datasets sees them; with `also_private` those of folders such as __old too."""
    for place, inner, names in os.walk(folder, followlinks=True):
        hidden = (".", "__pycache__", "__MACOSX") if also_private else (".", "__")
        inner[:] = sorted(one for one in inner if not one.startswith(hidden))
        yield from (Path(place) / one for one in sorted(names) if not one.startswith("."))


def _is_data(path: Path) -> bool:
    """Whether a file may hold rows: of the kinds that are read all but JSON about the rows, whatever their names."""
    stem = path.name.partition(".")[0].lower()
    if path.suffix == ".json" and (path.name in _NO_DATA or stem in _NO_DATA_STEMS):
        return not _is_about(path)
    return files.is_known(path) or not (stem in _NO_DATA_STEMS or path.suffix.lower() in _NO_DATA_KINDS)


def _is_packed(path: Path) -> bool:
    return path.suffix in _PACKED and files.is_known(path.with_suffix(""))


def _is_about(path: Path) -> bool:
    """Whether a JSON file holds one object that is no table of rows."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and json_rows.rows_within(found) is None


def _kind(suffix: str) -> str:
    return ".json" if suffix == ".jsonl" else suffix


def _why(path: Path, kinds: set[str], subset: str | None, *, listed: bool) -> str:
    if _is_packed(path):
        return _PACKED_FILE
    if not files.is_known(path):
        return _OTHER_KIND
    if listed:
        return f"README.md does not list them for {f'the subset {subset}' if subset else 'this subset'}"
    if kinds and _kind(path.suffix) not in map(_kind, kinds):
        return f"{_ONE_KIND} {' and '.join(sorted(kinds))} files"
    return NO_SPLIT


def _by_datasets(name: str, folder: Path, subset: str | None, keep: Callable[[Path], bool]) -> dict[str, list[Path]]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingExtra("reading a folder", "train", "datasets") from None
    if all(map(keep, _walk(folder))) and not any(mark in folder.as_posix() for mark in _MARKS):
        return _splits(datasets, name, folder, folder, subset)
    with _names_alone(folder, keep) as twin:
        return _splits(datasets, name, folder, twin, subset)


def _splits(datasets: Any, name: str, folder: Path, twin: Path, subset: str | None) -> dict[str, list[Path]]:
    """The splits of a folder, told from one that has its names."""
    try:
        found = datasets.load_dataset_builder(twin.as_posix(), name=subset).config.data_files
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()).replace(twin.as_posix(), folder.as_posix())[:200]
        raise DataError(f"{name}: cannot be read: {reason}", "check data.source and data.subset") from None
    splits = {str(split): [Path(path) for path in paths] for split, paths in (found or {}).items()}
    if twin is folder:
        return splits
    return {split: [folder / path.relative_to(twin.resolve()) for path in paths] for split, paths in splits.items()}


@contextmanager
def _names_alone(folder: Path, keep: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder with the names of another's files and nothing in them: splits are told from no more than that."""
    with TemporaryDirectory(prefix="ggufy-") as scratch:
        twin = Path(scratch) / "rows"
        twin.mkdir()
        for about in _ABOUT:
            if (folder / about).is_file():
                shutil.copyfile(folder / about, twin / about)
        for path in _walk(folder):
            beside = twin / path.relative_to(folder)
            if keep(path) and not beside.exists():
                beside.parent.mkdir(parents=True, exist_ok=True)
                beside.touch()
        yield twin
