"""Where rows come from: the built-in samples, a local JSON or JSONL file, or a Hub data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ggufy import digest, hubfetch
from ggufy.errors import DataError, MissingExtra
from ggufy.recipe import Data

BUILTIN = "builtin:samples"
_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class Source:
    """A data set on this disk: `rows` yields (where, row); `fingerprint` changes whenever its content does."""

    name: str
    fingerprint: str
    path: Path
    split: str = "train"
    commit: str | None = None

    def rows(self) -> Iterator[tuple[str, Any]]:
        if self.path.is_dir():
            return _hub_rows(self.name, self.path, self.split)
        return _json_rows(self.path) if self.path.suffix == ".json" else _jsonl_rows(self.path)


def locate(data: Data, *, offline: bool) -> Source:
    """Find a recipe's data, downloading it if it is on the Hub. Raises DataError or HubError."""
    name = data.source
    if name.startswith("builtin:"):
        if name != BUILTIN:
            raise DataError(f"unknown built-in data {name!r}", f"the one there is: {BUILTIN}")
        path = samples_file()
        return Source(name, digest.of_file(path), path)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise DataError(f"{name}: files are read as {' or '.join(_SUFFIXES)}", "convert it to JSON lines")
        return Source(name, digest.of_file(path), path)
    if path.suffix in _SUFFIXES or not hubfetch.is_repository(name):
        raise DataError(f"data file {name} does not exist", "check data.source in the recipe")
    patterns = ("*.parquet", "*.json", "*.jsonl", "README.md", "**/*.parquet", "**/*.json", "**/*.jsonl")
    folder, commit = hubfetch.snapshot(name, data.revision, "dataset", patterns, offline=offline)
    return Source(name, digest.of_values([name, commit, data.split]), folder, data.split, commit)


def samples_file() -> Path:
    """ggufy's own sample conversations."""
    return Path(str(files("ggufy") / "data" / "samples" / "conversations.jsonl"))


def sample_texts() -> list[str]:
    """Every text of the sample conversations: what the built-in tokenizer is learnt from."""
    return [turn["value"] for _, row in _jsonl_rows(samples_file()) for turn in row["conversations"]]


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path.as_posix()}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 text: {error.reason}", "save the file as UTF-8") from None
            if line.strip():
                try:
                    yield where, json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where}: not JSON: {error}", "each line is one JSON object") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path.as_posix()}: not UTF-8 text: {error.reason}", "save the file as UTF-8") from None
    except ValueError as error:
        hint = "a .json file holds one list of rows; for one row a line name it .jsonl"
        raise DataError(f"{path.as_posix()}: not JSON: {error}", hint) from None
    if not isinstance(rows, list):
        raise DataError(
            f"{path.as_posix()}: holds {type(rows).__name__}, not a list of rows", "make it a list of objects"
        )
    for number, row in enumerate(rows, 1):
        yield f"{path.as_posix()}: row {number}", row


def _hub_rows(name: str, folder: Path, split: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingExtra("reading a Hub data set", "train", "datasets") from None
    try:
        rows = datasets.load_dataset(folder.as_posix(), split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{name} ({split}): row {number}", row
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name}: split {split!r} cannot be read: {reason}", "check data.source and data.split"
        ) from None
