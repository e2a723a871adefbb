"""`ggufy data --push`: the prepared rows of a recipe as a data set on the Hub, with a card.

It is written to a folder first, which then holds what the Hub holds, and hub.json, the receipt.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ggufy.errors import HubError
from ggufy.hub import push
from ggufy.hub.client import access, session, upload
from ggufy.hub.client.upload import Target
from ggufy.hub.contents import bundle, facts, leaks, manifest, names, places, receipt
from ggufy.hub.contents.bundle import File
from ggufy.hub.contents.facts import CardMetadata, Place
from ggufy.recipe import recipe
from ggufy.runs.run import Run
from ggufy.system import digest
from ggufy.system.disk import sync
from ggufy.system.version import __version__

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_MANY = "1M<n<10M"


@dataclass(frozen=True)
class DatasetOptions:
    """The options of `ggufy data --push`."""

    repo: str
    out: Path | None = None
    branch: str = "main"
    private: bool = False
    message: str | None = None
    force: bool = False

    @property
    def target(self) -> Target:
        return Target(names.check_repository(self.repo), names.check_ref(self.branch, "branch"), "dataset")

    @property
    def folder(self) -> Path:
        return self.out or Path("datasets") / self.repo.partition("/")[2]


@dataclass(frozen=True)
class Contents:
    """What a card says of the rows that were written."""

    columns: str
    rows: Mapping[str, int]
    places: Sequence[Place]
    """Where the rows came from."""
    held_out: Sequence[Place]
    language: tuple[str, ...]
    settings: str
    """The recipe's data section, as YAML."""
    notes: Sequence[str]
    """What became of the rows, a line a split."""
    ggufy: str


def checker() -> Callable[[str, str], None]:
    """Looks for keys in a row. Raises HubError, which says where it is.

    Not for folders of this machine: what rows say of /root or /content is said of somebody's, mostly not of this one.
    """
    known = leaks.known_keys()
    return lambda where, text: leaks.look(where, text.encode(), known, ())


def check(options: DatasetOptions) -> access.Access:
    """Whether a push could work, asked before the rows are prepared. Raises HubError."""
    target = options.target
    leaks.look_in_names(target.repo, target.branch, options.message)
    may = access.check(session.client(), target.repo, None, target.kind)
    access.check_private(target.repo, may, private=options.private, kind=target.kind)
    return may


def send(options: DatasetOptions, may: access.Access, scratch: Path, made: Contents) -> push.Pushed:
    """Move what was written below `scratch` to the folder asked for, and bring the branch to hold it."""
    target, api = options.target, session.client()
    output_folder = Run(options.folder)
    text = card(target, made, access.of_data(api, made.places))
    (scratch / "README.md").write_text(text, encoding="utf-8")
    with output_folder.lock("--out"):
        files = _settle(output_folder, target, scratch, force=options.force)
        if not may.exists:
            push.create(api, target, private=options.private)
        push.make_branch(api, target)
        paths = {file.path for file in files}

        def stale(there: Mapping[str, Any]) -> list[str]:
            # Files of an earlier push from this folder, as they were sent.
            own = receipt.own(output_folder, target.name)
            gone = [path for path in there if path.startswith("data/") and path not in paths]
            return [path for path in gone if manifest.identities(there[path]) & own]

        done = upload.upload(
            api,
            target,
            files,
            options.message or f"{', '.join(f'{rows:,} {split}' for split, rows in made.rows.items())} rows by ggufy",
            own=lambda: receipt.own(output_folder, target.name),
            before=lambda: receipt.begin(output_folder, target.name, files),
            stale=stale,
            force=options.force,
        )
        receipt.finish(output_folder, target.name, files, push.receipt_of(target, None, done))
    at = "" if target.branch == "main" else f"/tree/{target.branch}"
    return push.Pushed(target, done.commit, session.page(target.repo, target.kind, at), files, done.new, done.gone)


def _settle(output_folder: Run, target: Target, scratch: Path, *, force: bool) -> list[File]:
    """Move the files to their folder, never over somebody else's; and note them as ours before they are sent."""
    written = {path.relative_to(scratch).as_posix(): path for path in sorted(scratch.rglob("*")) if path.is_file()}
    files = _files(output_folder, written)
    # Whatever was written here before, for whichever branch.
    noted = receipt.read(output_folder)
    own = set().union(*(receipt.own(output_folder, name) for name in (*noted["pushes"], *noted["pending"])))
    for file in files:
        there = output_folder.path / file.path
        if there.exists() and not force and not {digest.of_file(there)} & (own | {file.sha256}):
            raise HubError(
                f"{there.as_posix()} already exists, and is not the file that ggufy wrote",
                "choose another --out, or give --force to overwrite it",
            )
    for path in sorted(output_folder.path.glob("data/*.parquet")):
        if path.relative_to(output_folder.path).as_posix() not in written and digest.of_file(path) in own:
            path.unlink()
    receipt.begin(output_folder, target.name, files)
    for name, path in written.items():
        final = output_folder.path / name
        final.parent.mkdir(parents=True, exist_ok=True)
        beside = final.with_name(f".{final.name}.partial")
        shutil.move(path, beside)
        sync(beside)
        beside.replace(final)
    return _files(output_folder, {name: output_folder.path / name for name in written})


def _files(output_folder: Run, paths: Mapping[str, Path]) -> list[File]:
    rows = {name: path for name, path in paths.items() if name.startswith("data/")}
    rest = {name: path for name, path in paths.items() if name not in rows}
    return [*bundle.from_sources(rest, output_folder.path), *bundle.from_sources(rows, None)]


def card(target: Target, made: Contents, stated: CardMetadata) -> str:
    """README.md. Raises HubError where the header would not be one that the Hub takes."""
    import yaml
    from huggingface_hub import DatasetCard, DatasetCardData
    from jinja2 import Environment, StrictUndefined

    total = sum(made.rows.values())
    configs = [
        {
            "config_name": "default",
            "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in made.rows],
        }
    ]
    sources = [place.name for place in made.places if place.on_the_hub]
    known: dict[str, Any] = {
        "language": list(made.language or stated.language) or None,
        "license": stated.license,
        "task_categories": ["text-generation"],
        "size_categories": [next((name for limit, name in _SIZES if total < limit), _MANY)],
        "source_datasets": sources or None,
        "tags": ["ggufy", made.columns],
        "configs": configs,
    }
    header = DatasetCardData(**{key: value for key, value in known.items() if value is not None}).to_yaml()
    template = resources.files("ggufy.hub").joinpath("dataset.md.jinja").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    body = environment.from_string(template).render(
        title=target.repo.partition("/")[2],
        repo=target.repo,
        branch=None if target.branch == "main" else target.branch,
        made=made,
        first=next(iter(made.rows)),
        license=stated.license,
        said=f"rows of {_joined(made.places)}",
        held_out=f"of {_joined(made.held_out)}" if "validation" in made.rows else None,
    )
    text = f"---\n{header}\n---\n\n{body}"
    try:
        DatasetCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise HubError(f"the card is not valid: {error}", "this is a bug in ggufy") from None
    return text


def _joined(places: Sequence[Place]) -> str:
    return " and of ".join(place.said() for place in places)


def contents(frozen: Mapping[str, Any], columns: str, rows: Mapping[str, int], counts: Mapping[str, Any]) -> Contents:
    """What a card says, of a recipe and what became of its rows; of what is on this disk only the name."""
    import yaml

    public = places.without_places(frozen)
    settings = recipe.from_values(public["recipe"]).data.model_dump(mode="json", exclude_defaults=True)
    return Contents(
        columns,
        dict(rows),
        facts.trained_on(public),
        facts.held_out(public),
        tuple(public["recipe"]["hub"]["language"]),
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000),
        [f"{split}: {counted.text(places=False)}" for split, counted in counts.items()],
        __version__,
    )
