"""Where rows come from: the built-in samples, local files or folders, Hub data sets, and what is held out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files as resources
from itertools import islice
from pathlib import Path
from typing import Any

from ggufy.data import files, splits
from ggufy.data.files import BadRow
from ggufy.errors import DataError, MissingExtra
from ggufy.model import download
from ggufy.recipe.schema import Data, Part
from ggufy.system import digest

BUILTIN = "builtin:samples"
TOOLS = "builtin:tools"
"""Conversations of an assistant that may call functions: calls, what came of them, and answers without one."""
REPHRASED = "builtin:rephrased"
"""The first twenty sample questions in other words: what the demonstration holds out."""


@dataclass(frozen=True)
class Source:
    """A data set on this disk: `rows` yields (where, row); `fingerprint` changes whenever its content does.

    `more` are the other sources of a recipe's mix and `held_out` what it is evaluated on, where that is apart; the
    fingerprint is of all of them.
    """

    name: str
    fingerprint: str
    path: Path
    split: str = "train"
    commit: str | None = None
    subset: str | None = None
    more: tuple[Source, ...] = ()
    held_out: Source | None = None

    def rows(self) -> Iterator[tuple[str, Any]]:
        where = self.where()
        for number, item in self.raw():
            try:
                yield where(number), files.parse(item)
            except BadRow as problem:
                raise DataError(f"{where(number)}: {problem}", "each line is one JSON object") from None

    def raw(self) -> Iterator[tuple[int, Any]]:
        """The rows of the split, unparsed, each with its number (see `where`). Raises DataError."""
        named = self._splits()
        for part in splits.parse(self.split):
            if part.name not in named:
                raise self._no_split(part.name, list(named))
            paths = named[part.name]
            start, stop = part.bounds(lambda paths=paths: sum(map(files.count, paths)))  # type: ignore[misc]
            yield from islice(self._numbered(paths), start, stop)

    def count(self) -> int:
        """How many rows the split has, without reading more than that takes."""
        named, total = self._splits(), 0
        for part in splits.parse(self.split):
            there = sum(map(files.count, named.get(part.name, [])))
            start, stop = part.bounds(lambda there=there: there)  # type: ignore[misc]
            total += max(0, min(there, there if stop is None else stop) - start)
        return total

    def where(self) -> Callable[[int], str]:
        """From the number of a row to its place, for people."""
        if self.path.is_dir():
            before = f"{self.name} ({self.split}): row "
        else:
            before = f"{self.path.as_posix()}{':' if files.by_line(self.path) else ': row '}"
        return lambda number: f"{before}{number}"

    def _no_split(self, asked: str, named: list[str]) -> DataError:
        if not self.path.is_dir():
            hint = "one file is the split train; data.eval_source names another file"
        else:
            from datasets.data_files import SPLIT_KEYWORDS

            meant = next((str(split) for split, words in SPLIT_KEYWORDS.items() if asked in words), "")
            called = f", and files called {asked}-* are the split {meant}, unless README.md names them"
            hint = f"it has {', '.join(named)}{called if meant in named else ''}; set data.split or data.eval_split"
        return DataError(f"{self.name}: there is no split {asked!r}", hint)

    def _numbered(self, paths: list[Path]) -> Iterator[tuple[int, Any]]:
        if not self.path.is_dir():
            return files.read(self.path)
        return ((number, item) for number, (_, item) in enumerate((r for p in paths for r in files.read(p)), 1))

    def _splits(self) -> dict[str, list[Path]]:
        if not self.path.is_dir():
            return {"train": [self.path]}
        return _splits_of(self.name, self.path, self.subset)


def locate(data: Data, *, offline: bool) -> Source:
    """Find a recipe's data, downloading what is on the Hub. Raises DataError or HubError."""
    source = _locate(data, offline=offline)
    more = tuple(_locate(part, offline=offline) for part in data.more)
    held_out = None
    if data.eval_split:
        splits.parse(data.eval_split)
        held_out = replace(source, split=data.eval_split)
    elif data.eval_source:
        held_out = _locate(Part(source=data.eval_source), offline=offline)
    if not more and not held_out:
        return source
    all_of_it = [source.fingerprint, *(part.fingerprint for part in more), held_out and held_out.fingerprint]
    return replace(source, fingerprint=digest.of_values(all_of_it), more=more, held_out=held_out)


def check_local(data: Data) -> None:
    """Raise DataError where a file that a recipe names is not there. What is on the Hub is not asked for."""
    for name in [data.source, *(part.source for part in data.more), *([data.eval_source] if data.eval_source else [])]:
        if Path(name).expanduser().exists() or not _can_be_on_the_hub(name):
            _locate(Part(source=name), offline=True)


def _can_be_on_the_hub(name: str) -> bool:
    return download.is_repository(name) and Path(name).suffix not in files.SUFFIXES


def samples_file(name: str = BUILTIN) -> Path:
    """ggufy's own sample conversations."""
    return Path(str(resources("ggufy") / "data" / "samples" / _SAMPLES[name]))


_SAMPLES = {BUILTIN: "conversations.jsonl", TOOLS: "tools.jsonl", REPHRASED: "rephrased.jsonl"}


def sample_texts() -> list[str]:
    """Every text of the sample conversations: what the built-in tokenizer is learnt from."""
    rows = Source(BUILTIN, "", samples_file()).rows()
    return [turn["value"] for _, row in rows for turn in row["conversations"]]


def _locate(part: Part, *, offline: bool) -> Source:
    name = part.source
    splits.parse(part.split)
    if name.startswith("builtin:"):
        if name not in _SAMPLES:
            raise DataError(f"unknown built-in data {name!r}", f"there are {', '.join(_SAMPLES)}")
        path = samples_file(name)
        return Source(name, digest.of_file(path), path, part.split)
    path = Path(name).expanduser()
    if path.is_file():
        if not files.is_known(path):
            raise DataError(f"{name}: files are read as {', '.join(files.SUFFIXES)}", "convert it to JSON lines")
        return Source(name, digest.of_file(path), path, part.split)
    patterns = ("README.md", *(f"**/*{suffix}" for suffix in files.SUFFIXES))
    if path.is_dir():
        contents = sorted({p for pattern in patterns for p in path.glob(pattern) if p.is_file()})
        if not contents:
            kinds = ", ".join(files.SUFFIXES)
            raise DataError(f"{name}: the folder holds no {kinds}", "check data.source in the recipe")
        held = {p.relative_to(path).as_posix(): digest.of_file(p) for p in contents}
        return Source(name, digest.of_values(held), path, part.split, None, part.subset)
    if not _can_be_on_the_hub(name):
        raise DataError(f"data file {name} does not exist", "check data.source in the recipe")
    patterns = (*patterns, *(f"*{suffix}" for suffix in files.SUFFIXES))
    folder, commit = download.snapshot(name, part.revision, "dataset", patterns, offline=offline)
    return Source(name, digest.of_values([name, commit, part.split]), folder, part.split, commit, part.subset)


def _splits_of(name: str, folder: Path, subset: str | None) -> dict[str, list[Path]]:
    """The files of each split, by the rules of the datasets library: the names of files, or what README.md says."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingExtra("reading a Hub data set", "train", "datasets") from None
    try:
        found = datasets.load_dataset_builder(folder.as_posix(), name=subset).config.data_files
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: cannot be read: {reason}", "check data.source and data.subset") from None
    named = {str(split): [Path(path) for path in paths] for split, paths in (found or {}).items()}
    for paths in named.values():
        for path in paths:
            if not files.is_known(path):
                raise DataError(
                    f"{name}: {path.name} is of a kind that is not read", f"known are {', '.join(files.SUFFIXES)}"
                )
    return named
