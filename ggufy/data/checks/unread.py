"""Files of the folders of a recipe that it reads nothing of, each with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggufy.data import folders
from ggufy.data.source import Source


@dataclass(frozen=True)
class Unread:
    """The files of one folder that are left out for one reason."""

    source: str
    why: str
    files: tuple[str, ...]
    """By their names inside the folder."""

    @property
    def by_choice(self) -> bool:
        """Whether the folder or the recipe says so: another split, or what README.md does not list."""
        return not any(self.why.startswith(reason) for reason in folders.BY_ACCIDENT)

    def text(self) -> str:
        return f"{folders.listed(list(self.files))} ({self.why})"


def find(source: Source) -> list[Unread]:
    """What no source of a recipe, nor what it is evaluated on, reads; in the order of the sources."""
    sources = [source, *source.more, *([source.held_out] if source.held_out else [])]
    read = {path.resolve() for one in sources for _, paths in one.parts() for path in paths}
    found: list[Unread] = []
    for one in {one.path: one for one in reversed(sources) if one.path.is_dir()}.values():
        by_reason: dict[str, list[str]] = {}
        for path, why in _left(one):
            if path.resolve() not in read:
                by_reason.setdefault(why, []).append(folders.within(one.path, path))
        found += [Unread(one.name, why, tuple(names)) for why, names in by_reason.items()]
    return found


def _left(source: Source) -> Iterator[tuple[Path, str]]:
    used = _used(source)
    for split, paths in source.folder.splits.items():
        yield from ((path, f"the split {split}") for path in paths if path not in used)
    yield from source.folder.others.items()


def _used(source: Source) -> list[Path]:
    return list(dict.fromkeys(path for _, paths in source.parts() for path in paths))


def lines(source: Source) -> Iterator[tuple[bool, str]]:
    """For people: what each folder's files are taken for where that is not plain, and what is not read of it.

    Each with whether it is by choice.
    """
    found = find(source)
    sources = [source, *source.more]
    for one in sources:
        if one.path.is_dir() and one.folder.assumed and "train" in {part.name for part, _ in one.parts()}:
            names = folders.listed([folders.within(one.path, path) for path in one.folder.splits["train"]])
            yield True, f"{one.name}: the split train is {names}, as no file is named so and these name no other split"
    for name in dict.fromkeys(one.source for one in found):
        of_it = [one for one in found if one.source == name]
        text = f"{name}: not read: {'; '.join(one.text() for one in of_it)}"
        if any(one.why == folders.NO_SPLIT for one in of_it):
            used = [folders.within(this.path, path) for this in sources if this.name == name for path in _used(this)]
            text += f". Read is {folders.listed(used)}; for more name files in data.more, or write train in their names"
        yield all(one.by_choice for one in of_it), text
