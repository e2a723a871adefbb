"""Find and read the sources of rows: built-in samples, local files or folders, Hub data sets, held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files as resources
from itertools import islice
from pathlib import Path
from typing import Any

from ggufy.data import files, folders, splits
from ggufy.data.files import BadRow
from ggufy.data.folders import Folder
from ggufy.data.splits import Slice
from ggufy.errors import DataError
from ggufy.model import download
from ggufy.recipe.schema import Data, Part
from ggufy.system import digest

BUILTIN = "builtin:samples"
TOOLS = "builtin:tools"
"""Conversations of an assistant that may call functions: calls, what came of them, and answers without one."""
REPHRASED = "builtin:rephrased"
"""The first twenty sample questions in other words: what the demonstration holds out."""

# The number of a row of a folder is its number in its file, and this many times which file that is.
_ROWS = 1 << 40


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
        for part, paths in self.parts():
            start, stop = part.bounds(lambda paths=paths: sum(map(files.count, paths)))  # type: ignore[misc]
            yield from islice(self._numbered(paths), start, stop)

    def parts(self) -> Iterator[tuple[Slice, list[Path]]]:
        """The parts of the split, and the files that each is of. Raises DataError."""
        for part in splits.parse(self.split):
            if part.name not in self.folder.splits:
                raise self._no_split(part.name)
            paths = self.folder.splits[part.name]
            if self.path.is_dir():
                for path in paths:
                    folders.check_kind(self.name, self.path, path)
            yield part, paths

    def count(self) -> int:
        """How many rows the split has, without reading more than that takes."""
        total = 0
        for part in splits.parse(self.split):
            there = sum(map(files.count, self.folder.splits.get(part.name, [])))
            start, stop = part.bounds(lambda there=there: there)  # type: ignore[misc]
            total += max(0, min(there, there if stop is None else stop) - start)
        return total

    def where(self) -> Callable[[int], str]:
        """From the number of a row to its place, for people: the file, and the line or the row in it."""
        if not self.path.is_dir():
            before = f"{self.path.as_posix()}{':' if files.by_line(self.path) else ': row '}"
            return lambda number: f"{before}{number}"
        paths = self._paths
        before_row: dict[int, str] = {}

        def place(number: int) -> str:
            which, row = divmod(number, _ROWS)
            if which not in before_row:
                mark = ":" if files.by_line(paths[which]) else ": row "
                before_row[which] = f"{self.name}/{folders.within(self.path, paths[which])}{mark}"
            return f"{before_row[which]}{row}"

        return place

    @cached_property
    def folder(self) -> Folder:
        """The files of each split, as they were when this was first asked. Raises DataError."""
        if not self.path.is_dir():
            return Folder({"train": [self.path]})
        return folders.find(self.name, self.path, self.subset)

    @cached_property
    def _paths(self) -> list[Path]:
        return list(dict.fromkeys(path for paths in self.folder.splits.values() for path in paths))

    def _numbered(self, paths: list[Path]) -> Iterator[tuple[int, Any]]:
        """The rows of files, each with its number in its file; in a folder which file that is is in the number too."""
        for path in paths:
            before = _ROWS * self._paths.index(path)
            for number, item in files.read(path):
                yield before + number, item

    def _no_split(self, asked: str) -> DataError:
        named = self.folder.splits
        if not self.path.is_dir():
            hint = "one file is the split train; data.eval_source names another file"
            return DataError(f"{self.name}: there is no split {asked!r}", hint)
        from datasets.data_files import SPLIT_KEYWORDS

        meant = next((str(split) for split, words in SPLIT_KEYWORDS.items() if asked in words), "")
        called = f", and files called {asked}-* are the split {meant}, unless README.md names them"
        hint = f"it has {', '.join(named)}{called if meant in named else ''}; set data.split or data.eval_split"
        held = [f"the split {split} is {self._listed(paths)}" for split, paths in named.items()]
        if self.folder.others:
            held.append(f"no split is {self._listed(self.folder.others)}")
        return DataError(f"{self.name}: there is no split {asked!r}: {', '.join(held)}", hint)

    def empty(self) -> DataError:
        """The error for one without rows."""
        if not self.path.is_dir():
            return DataError(f"{self.name}: the data set is empty", "check data.source and data.split")
        read = self._listed(dict.fromkeys(path for _, paths in self.parts() for path in paths))
        left = self._listed(self.folder.others)
        beside = f"; no split is {left}" if left else ""
        return DataError(
            f"{self.name}: the data set is empty: {read} of the split {self.split} holds no row{beside}",
            "remove the empty file, or check data.source and data.split",
        )

    def _listed(self, paths: Iterable[Path]) -> str:
        return folders.listed([folders.within(self.path, path) for path in paths])


def locate(data: Data, *, offline: bool) -> Source:
    """Find a recipe's data, downloading what is on the Hub. Raises DataError or HubError."""
    source = _locate(data, offline=offline)
    more = tuple(_locate(part, offline=offline) for part in data.more)
    held_out = None
    if data.eval_split:
        splits.parse(data.eval_split)
        held_out = replace(source, split=data.eval_split)
    elif data.eval_source:
        held_out = _apart(_locate(Part(source=data.eval_source), offline=offline))
    if not more and not held_out:
        return source
    all_of_it = [source.fingerprint, *(part.fingerprint for part in more), held_out and held_out.fingerprint]
    return replace(source, fingerprint=digest.of_values(all_of_it), more=more, held_out=held_out)


def _apart(source: Source) -> Source:
    """What is held out of a source of its own: of a folder without train the split that is meant for that."""
    if not source.path.is_dir() or source.split in (there := source.folder.splits):
        return source
    meant = next((split for split in ("validation", "test", *there) if split in there), source.split)
    if len(there) > 1 and meant not in ("validation", "test"):
        raise DataError(
            f"{source.name}: which split is to be held out is not plain: it has {', '.join(there)}",
            "name one of its files as data.eval_source",
        )
    return replace(source, split=meant)


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
            raise DataError(f"unknown built-in data {name!r}", f"choose one of {', '.join(_SAMPLES)}")
        path = samples_file(name)
        return Source(name, digest.of_file(path), path, part.split)
    path = Path(name).expanduser()
    if path.is_file():
        if not files.is_known(path):
            raise DataError(f"{name}: only {', '.join(files.SUFFIXES)} files can be read", "convert it to JSON lines")
        return Source(name, digest.of_file(path), path, part.split)
    patterns = ("README.md", *(f"**/*{suffix}" for suffix in files.SUFFIXES))
    if path.is_dir():
        if folders.saved(name, path):
            patterns = (*patterns, "**/*.arrow")
        contents = sorted({p for pattern in patterns for p in path.glob(pattern) if p.is_file()})
        if not contents:
            kinds = ", ".join(files.SUFFIXES)
            raise DataError(
                f"{name}: the folder holds no {kinds}{folders.what_else(path)}", "check data.source in the recipe"
            )
        held = {p.relative_to(path).as_posix(): digest.of_file(p) for p in contents}
        return Source(name, digest.of_values(held), path, part.split, None, part.subset)
    if not _can_be_on_the_hub(name):
        raise DataError(f"data file {name} does not exist", "check data.source in the recipe")
    patterns = (*patterns, *(f"*{suffix}" for suffix in files.SUFFIXES))
    folder, commit = download.snapshot(name, part.revision, "dataset", patterns, offline=offline)
    return Source(name, digest.of_values([name, commit, part.split]), folder, part.split, commit, part.subset)
