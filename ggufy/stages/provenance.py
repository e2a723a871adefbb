"""The provenance of a run: run.json, frozen when it begins, and what may differ when it is continued."""

from __future__ import annotations

import logging
import os
import platform
from datetime import date, datetime, timezone
from importlib import metadata
from typing import Any

from ggufy.data import source
from ggufy.data.source import Source
from ggufy.errors import RunError
from ggufy.model import bases
from ggufy.model.bases import Base
from ggufy.recipe import recipe
from ggufy.recipe.schema import LATE_SECTIONS, Recipe
from ggufy.runs.run import Run
from ggufy.system.version import __version__

log = logging.getLogger("ggufy")

_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "tokenizers",
    "llama-cpp-python",
)
# What may change in a run without making its adapter another one, beside the late sections.
_HARMLESS = frozenset({"train.backend", "train.gpus", "train.save_steps", "train.keep_checkpoints"})
# How long it trains: more of it goes on where the run stopped.
_LENGTH = ("train.max_steps", "train.epochs")


def base(wanted: Recipe, old: dict[str, Any] | None) -> Base:
    """The base of a recipe; of a run that exists, at the commit it began with."""
    revision = wanted.model.revision
    if old and revision is None and old["base"]["name"] == wanted.model.base:
        revision = old["base"]["commit"]
    texts = source.sample_texts()
    return bases.resolve(wanted.model.base, revision, offline=wanted.hub.offline, builtin_texts=texts)


def rows(wanted: Recipe, old: dict[str, Any] | None) -> Source:
    """The data of a recipe; of a run that exists, at the commit it began with."""
    data = wanted.data
    if old and data.revision is None and old["data"]["name"] == data.source:
        data = data.model_copy(update={"revision": old["data"]["commit"]})
    if old and data.more:
        commits = dict(old["data"].get("more", []))
        pinned = (part.model_copy(update={"revision": part.revision or commits.get(part.source)}) for part in data.more)
        data = data.model_copy(update={"more": tuple(pinned)})
    return source.locate(data, offline=wanted.hub.offline)


def identity(wanted: Recipe) -> dict[str, Any]:
    """The inputs that determine an adapter. Without defaults, so that a new key of a later version changes nothing."""
    return _identity(wanted, _HARMLESS)


def training(wanted: Recipe) -> dict[str, Any]:
    """The inputs that determine the checkpoints of a training, whatever its length."""
    return _identity(wanted, _HARMLESS.union(_LENGTH))


def _identity(wanted: Recipe, without: frozenset[str]) -> dict[str, Any]:
    values = wanted.model_dump(mode="json", exclude={"name", *LATE_SECTIONS}, exclude_defaults=True)
    for key in without:
        section, _, name = key.partition(".")
        values.get(section, {}).pop(name, None)
    return {section: keys for section, keys in values.items() if keys}


def frozen(this: Run, wanted: Recipe, found: Base, data: Source, *, fresh: bool) -> dict[str, Any]:
    """The content for run.json. Raises RunError if the existing run was made with another recipe, base or data."""
    new: dict[str, Any] = {
        "ggufy": __version__,
        "recipe": wanted.model_dump(mode="json"),
        "base": {"name": found.name, "commit": found.commit, "fingerprint": found.fingerprint},
        "data": {**places(wanted, data), "fingerprint": data.fingerprint},
        "seed": wanted.train.seed,
        "date": today().isoformat(),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    if fresh or not this.exists:
        return new
    old = this.frozen
    changes: list[str] = []
    taken: list[str] = []
    for key, (before, after) in recipe.from_values(old["recipe"]).differences(wanted).items():
        safe = key.partition(".")[0] in LATE_SECTIONS or key in _HARMLESS or _is_longer(key, before, after, wanted)
        (taken if safe else changes).append(f"{key} was {before!r} and is {after!r}")
    if old["base"]["fingerprint"] != found.fingerprint:
        changes.append(f"the files of the base {found.name} have changed")
    if old["data"]["fingerprint"] != data.fingerprint:
        changes.append(f"the data {data.name} has changed")
    if changes:
        raise RunError(
            f"{this.path.as_posix()} was made with another recipe, base or data: {'; '.join(changes)}",
            "give --fresh to start it over, or --run NAME to make another run",
        )
    if taken:
        log.info("continuing the run, with settings that may change: %s", "; ".join(taken))
    return {**old, "recipe": new["recipe"], **_other_versions(this, old, new["versions"])}


def places(wanted: Recipe, data: Source) -> dict[str, Any]:
    """Where a recipe's rows come from: names, and the commits of what is on the Hub."""
    found: dict[str, Any] = {"name": data.name, "commit": data.commit}
    if data.more:
        found["more"] = [[part.name, part.commit] for part in data.more]
    if wanted.data.eval_source and data.held_out:
        found["held_out"] = [data.held_out.name, data.held_out.commit]
    return found


def _other_versions(this: Run, old: dict[str, Any], now: dict[str, str]) -> dict[str, Any]:
    """Say so, and record it, where a training goes on with other libraries than it began with."""
    before = old.get("continued_with") or old["versions"]
    changed = [f"{name} {before.get(name, 'none')} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if not changed or this.valid("adapter"):
        return {}
    log.info("continuing with other versions than before: %s", ", ".join(changed))
    return {"continued_with": now}


def _is_longer(key: str, before: Any, after: Any, wanted: Recipe) -> bool:
    """Whether a change is to more steps or epochs, of those that count."""
    counts = "train.max_steps" if wanted.train.max_steps else "train.epochs"
    return key == counts and before is not None and after is not None and after > before


def refuse_other_adapter(this: Run, identity: dict[str, Any]) -> None:
    """Raise RunError if the adapter was not made from this recipe, base and data; fewer steps are allowed."""
    stamp = this.stamp("adapter")
    if stamp is not None and _without_length(stamp["inputs"]) != _without_length(identity):
        raise RunError(
            f"{this.path.as_posix()} holds an adapter that was not made from what its run.json says",
            "give --fresh to start it over, or --run NAME to make another run",
        )


def _without_length(identity: dict[str, Any]) -> dict[str, Any]:
    sections = {
        section: {name: value for name, value in keys.items() if f"{section}.{name}" not in _LENGTH}
        for section, keys in identity["recipe"].items()
    }
    return {**identity, "recipe": {section: keys for section, keys in sections.items() if keys}}


def today() -> date:
    """Today, or the day of SOURCE_DATE_EPOCH, by which builds are made reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), timezone.utc).date() if epoch and epoch.isdecimal() else date.today()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
