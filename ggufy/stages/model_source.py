"""The model source of an export: a run, an adapter from anywhere, or a plain checkpoint."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from ggufy.data import source
from ggufy.errors import ExportError, GgufyError, HubError, ModelError, RunError, Unverified
from ggufy.model import bases, config_files, hub_folder
from ggufy.model.bases import Base
from ggufy.recipe import recipe
from ggufy.runs import run
from ggufy.runs.run import Run
from ggufy.stages import training_tokenizer
from ggufy.stages.training_tokenizer import TrainingTokenizer
from ggufy.system import digest
from ggufy.system.version import __version__

log = logging.getLogger("ggufy")

TOKENIZER = "tokenizer"
"""Among the inputs of an output: which tokenizer it was made with, where that was not the base's."""
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_MARKS = ("adapter_config.json", "config.json")


@dataclass(frozen=True)
class ModelSource:
    """A base, perhaps an adapter, and the folder where the outputs go."""

    name: str
    base: Base
    adapter: Path | None
    adapter_sha256: str | None
    output_folder: Run
    subfolder: str
    """Where in the output folder the outputs are: `export/` in a run."""
    notes: dict[str, str]
    """What is written into the GGUF under `general.`."""
    source: str | None = None
    """Of a folder or a repository: which, said relative to the output folder, so that both can be moved together."""
    named_base: str | None = None
    """The base that somebody named, said in the same way."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What every output depends on."""
        return {**self.content, "general": self.notes}

    @property
    def day(self) -> date:
        """The date in its prompts: the one it was trained with, else the one that Llama 3.2's template has itself."""
        pinned = self.notes.get("ggufy.date")
        return date.fromisoformat(pinned) if pinned else date(2024, 7, 26)

    @property
    def content(self) -> dict[str, Any]:
        """The part of `inputs` that is somebody's, not ggufy's."""
        beside = digest.of_folder(self.base.path, bases.BESIDE)
        found = {"adapter": self.adapter_sha256, "base": self.base.fingerprint, "base_files": beside}
        # Of a tokenizer that is the base's the base's fingerprint speaks.
        return found | ({TOKENIZER: sha256} if (sha256 := self._trained_with.sha256) else {})

    @property
    def _trained_with(self) -> TrainingTokenizer:
        return training_tokenizer.of(self.base.path, self.adapter)

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer and the template of the training, and with the base's config.json."""
        return self._trained_with.path

    def naming_its_tokenizer(self) -> AbstractContextManager[None]:
        """Errors within name the folder where the training's tokenizer was saved, not a copy of it."""
        return self._trained_with.named()

    @property
    def own_tokenizer(self) -> Path | None:
        """The same, where it is not the base's."""
        return self.tokenizer if self._trained_with.sha256 else None

    @property
    def resizes(self) -> bool:
        """Whether the training's tokenizer needs another number of rows than the base has."""
        return self._trained_with.resizes

    def claim(self, *, force: bool = False) -> None:
        """Raise RunError where the output folder holds exports of another source. The caller holds its lock."""
        if self.source is not None:
            self.output_folder.claim(self.source, self.content, base=self.named_base, force=force)


def find(
    what: str | os.PathLike[str] | Run | None, base: str | None, out: Path | None
) -> tuple[Run, Callable[[], ModelSource]]:
    """Where the outputs go, and how to find what is exported once that place is locked."""
    if isinstance(what, Run) or is_run(what):
        this = what if isinstance(what, Run) else run.find(what)
        if base is not None or out is not None:
            raise ExportError("--base and --out are for adapters and checkpoints; a run has its own", "leave them out")
        return this, lambda: of_run(this)
    found = of_folder(what or "", base, out)
    return found.output_folder, lambda: found


def of_run(this: Run) -> ModelSource:
    """A trained run. Raises RunError where it has no finished adapter, ModelError where its base has changed."""
    frozen = this.frozen
    wanted = recipe.from_values(frozen["recipe"])
    adapter = this.valid("adapter")
    if adapter is None:
        raise RunError(f"{this.path.as_posix()} has no finished adapter", "finish it with `ggufy train`")
    revision = wanted.model.revision or frozen["base"]["commit"]
    base = _resolve(wanted.model.base, revision, offline=wanted.hub.offline)
    if base.fingerprint != frozen["base"]["fingerprint"]:
        raise ModelError(
            f"the base {base.name} is not the one this run was trained on: its files have changed",
            "put the original back, or train again with --fresh",
        )
    notes = {**_notes(this.name), "ggufy.date": str(frozen["date"])}
    return ModelSource(this.name, base, adapter.path, adapter.sha256, this, "export/", notes)


def of_folder(what: str | os.PathLike[str], base: str | None, out: Path | None) -> ModelSource:
    """An adapter folder, a model folder, or either on the Hub. Outputs go to `out`, or to exports/NAME."""
    folder, name, what = _local(os.fspath(what))
    if (inner := inner_adapter(folder)) is not None:
        log.info("%s holds its adapter in a folder of its own, %s, which is exported", folder.as_posix(), inner.name)
        folder, what = inner, inner.as_posix()
    output_folder = Run(out or Path("exports") / name)
    output_folder.refuse_foreign_names()
    origin = _said(what, output_folder)
    if (folder / "adapter_config.json").is_file():
        config = config_files.read(folder / "adapter_config.json")
        try:
            found = _base_of(folder, config, base)
        except ModelError as error:
            hint = "name the 16-bit base with --base" if base is None else error.hint
            raise ModelError(f"the base of {name}: {error.message}", hint) from None
        # Whole: between two states of a training little may change.
        content = digest.of_folder(folder, _ADAPTER_FILES, whole=True)
        # A folder that adapter_config.json names may be relative to where the command was run.
        if said := training_tokenizer.of(found.path, folder).said:
            log.info("the adapter's own tokenizer is used, not the base's: %s", said)
        own = Path(found.name).expanduser()
        local = own if base is None and own.is_dir() else None
        named = _said(base or local or "", output_folder) if base or local else None
        return ModelSource(name, found, folder, content, output_folder, "", _notes(name), origin, named)
    if base is not None:
        raise ExportError(f"{folder.as_posix()} is not an adapter, so --base does not apply", "leave out --base")
    found = replace(bases.opened(folder, what, four_bit=True, said="the name"), name=name)
    _warn_of_four_bit(found)
    return ModelSource(name, found, None, None, output_folder, "", _notes(name), origin)


def of_output_folder(this: Run) -> ModelSource | None:
    """The model source of a run or a folder of exports. None if the folder does not say.

    Raises Unverified where that cannot be found any more.
    """
    if this.exists:
        return of_run(this)
    origin = this.origin
    if origin is None:
        return None
    source, base = (_meant(said, this) if said else None for said in (origin["source"], origin.get("base")))
    try:
        for said, folder in ((origin["source"], source), (origin.get("base"), base)):
            if said and folder and not said.startswith("hub:") and not Path(folder).is_dir():
                raise RunError(f"the folder {folder} no longer exists")
        return of_folder(source or "", base, this.path)
    except GgufyError as error:
        raise Unverified(
            f"{this.path.as_posix()} cannot be compared with what it was made from: {error.message}",
            "put it back where it was, or export again into another --out",
        ) from None


def _said(what: str | os.PathLike[str], output_folder: Run) -> str:
    """A folder relative to the output folder, or a repository."""
    return os.path.relpath(Path(what).resolve(), output_folder.path.resolve()) if Path(what).is_dir() else f"hub:{what}"


def _meant(said: str, output_folder: Run) -> str:
    repository = said.removeprefix("hub:")
    return repository if repository != said else os.path.normpath(output_folder.path.resolve() / said)


def inner_adapter(folder: Path) -> Path | None:
    """The adapter in a folder of a folder that is none itself, as peft saves one that has a name.

    Raises ExportError where there are several.
    """
    if not folder.is_dir() or any((folder / name).is_file() for name in (*_MARKS, "run.json", "source.json")):
        return None
    found = sorted(path.parent for path in folder.glob(f"*/{_ADAPTER_FILES[0]}"))
    if len(found) > 1:
        raise ExportError(
            f"{folder.as_posix()} is no adapter, but {len(found)} of its folders are",
            f"name one of them: {', '.join(path.as_posix() for path in found)}",
        )
    return found[0] if found else None


def is_run(what: str | os.PathLike[str] | None) -> bool:
    """Whether this means a run: nothing, a run's name, or a folder that is no adapter and no model."""
    if what is None or (run.runs_folder() / what / "run.json").is_file():
        return True
    folder = Path(what)
    if folder.is_dir():
        return inner_adapter(folder) is None and not any((folder / name).is_file() for name in _MARKS)
    # What lies in a folder that is here is meant to be here too, not on the Hub.
    here = any(parent.is_dir() for parent in folder.parents if parent != Path())
    return here or hub_folder.place(os.fspath(what)) is None


def sixteen_bit(name: str) -> str:
    """The name of the 16-bit original of a base that is named as a bitsandbytes 4-bit copy; else the name itself."""
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", name)


def _base_of(folder: Path, config: dict[str, Any], base: str | None) -> Base:
    """The base that the user names, else the adapter: the 16-bit original of a 4-bit one, where there is one."""
    named = base or str(config.get("base_model_name_or_path") or "")
    if not named:
        raise ExportError(f"{folder.as_posix()}: adapter_config.json names no base", "name the base with --base")
    full = named if base else sixteen_bit(named)
    # Of a 4-bit folder on this disk the original is only looked for beside it.
    if full != named and (Path(full).expanduser().is_dir() or not Path(named).expanduser().is_dir()):
        log.info("the adapter names the 4-bit base %s; its 16-bit original %s is used", named, full)
        try:
            return _resolve(full, None, offline=False, said="--base")
        except HubError as error:
            if not _is_unknown(error):
                raise
            log.info("the Hub has no %s, so the 4-bit base itself is used", full)
    revision = config.get("revision") if base is None else None
    found = _resolve(named, revision, offline=False, four_bit=True, said="--base")
    _warn_of_four_bit(found)
    return found


def _is_unknown(error: HubError) -> bool:
    """Whether the Hub answered that it has no such repository: not that it is gated, or was out of reach."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    cause = error.__context__
    return isinstance(cause, RepositoryNotFoundError) and not isinstance(cause, GatedRepoError)


def _warn_of_four_bit(base: Base) -> None:
    if bases.is_four_bit(base.path):
        log.warning(
            "%s holds its weights in bitsandbytes' 4 bits, which have lost quality already: they are exported as they "
            "are; the 16-bit original gives a better GGUF",
            base.name,
        )


def _local(what: str) -> tuple[Path, str, str]:
    """The folder that is meant, what its outputs are called, and which it is: a path, or a place on the Hub."""
    if Path(what).is_dir():
        return Path(what), Path(what).resolve().name, what
    found = hub_folder.find(what)
    return found.path, found.name, found.said


def _resolve(name: str, revision: str | None, *, offline: bool, **how: Any) -> Base:
    return bases.resolve(name, revision, offline=offline, builtin_texts=source.sample_texts(), **how)


def _notes(name: str) -> dict[str, str]:
    return {"name": name, "ggufy.version": __version__}
