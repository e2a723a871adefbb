"""Find the run on a branch of a repository, and check its manifest, which is not trusted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ggufy.errors import HubError
from ggufy.hub.client import file_download, session, upload
from ggufy.hub.client.upload import Remote, Target
from ggufy.hub.contents import bundle, names
from ggufy.hub.contents import manifest as manifests
from ggufy.hub.contents.manifest import FORMAT, MANIFEST, vouched
from ggufy.runs import run

_FOLDERS = ("adapter", "export", "checkpoints")
_FILES = ("run.json", "metrics.jsonl", "summary.json", "loss.png", "data/report.json")
# Pickles of whole objects, which no run needs.
_NEVER = ("training_args.bin",)


@dataclass(frozen=True)
class Found:
    """A run on a branch."""

    target: Target
    remote: Remote
    manifest: dict[str, Any]
    sha256: str
    """Of the manifest's file."""


def find(target: Target) -> Found | None:
    """The run on a branch; None where that holds none. Raises HubError, and NoRevision where there is no branch."""
    return of(target, upload.look(session.client(), target))


def of(target: Target, remote: Remote) -> Found | None:
    """The run in a branch's files."""
    if MANIFEST not in remote.files:
        return None
    data = file_download.read(target, remote, MANIFEST)
    try:
        manifest = json.loads(data)
    except ValueError:
        raise _not_ours(target, "is not JSON") from None
    _check(target, remote, manifest)
    return Found(target, remote, manifest, hashlib.sha256(data).hexdigest())


def of_earlier_trainings(target: Target, remote: Remote, adapters: set[str]) -> dict[str, dict[str, Any]]:
    """The files that ggufy put there, that are as it left them, and that were made from none of these adapters."""
    if MANIFEST not in remote.files:
        return {}
    try:
        manifest = json.loads(file_download.read(target, remote, MANIFEST))
        old = manifests.of_earlier_trainings(manifest, adapters)
        return {path: facts for path, facts in vouched(manifest, remote.files).items() if path in old}
    except (ValueError, LookupError, TypeError, AttributeError):
        # Somebody's own file of that name vouches for nothing.
        return {}


def _check(target: Target, remote: Remote, manifest: Any) -> None:
    """Raises HubError for a manifest that does not describe a run, or names files outside one."""
    try:
        if manifest["format"] != FORMAT:
            raise _not_ours(target, f"has format {manifest['format']}, but this version of ggufy reads format {FORMAT}")
        for path, facts in manifest["files"].items():
            parts = names.check_path(facts["path"]).split("/")
            if not (facts["path"] in _FILES or (parts[0] in _FOLDERS and len(parts) > 1)) or parts[-1] in _NEVER:
                raise _not_ours(target, f"names {facts['path']}, which is not a file of a run")
            if path not in remote.files or remote.files[path].size != facts["size"]:
                raise _not_ours(target, f"lists {path}, which is missing or has another size")
        listed = {facts["path"]: facts for facts in manifest["files"].values()}
        for stamp in manifest["stamps"]:
            if bundle.kind_of(stamp) is None:
                raise _not_ours(target, f"has a stamp of {stamp['output']}")
            names.check_path(stamp["output"])
            for name, facts in stamp["files"].items():
                if listed[name]["sha256"] != facts["sha256"]:
                    raise _not_ours(target, f"has a stamp of another {name}")
        if "run.json" not in listed:
            raise _not_ours(target, "has no run.json")
        run.named(manifest["run"])
        vouched(manifest, remote.files)
    except (LookupError, TypeError, AttributeError) as error:
        raise _not_ours(target, f"is not complete ({type(error).__name__}: {error})") from None


def _not_ours(target: Target, why: str) -> HubError:
    return HubError(
        f"{target.name}: its {MANIFEST} {why}; nothing was written",
        "see what has changed in the repository: ggufy did not leave it like this",
    )
