"""ggufy/manifest.json on a branch: where each file of a run belongs, and by which hash it is ggufy's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ggufy.system.version import __version__

MANIFEST = "ggufy/manifest.json"
FORMAT = 1


def of(
    run: str, files: Mapping[str, Any], stamps: Iterable[Mapping[str, Any]], made: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `ggufy pull` reads first. `made` are the files that a run here has none of: the card, the notice."""
    found = {"format": FORMAT, "ggufy": __version__, "run": run, "files": dict(files), "stamps": list(stamps)}
    return {**found, "made": dict(made)} if made else found


def identities(there: Any) -> set[str]:
    """The hashes by which the Hub knows a file's content: the sha256 of a large one, git's of a small one."""
    return {there.lfs.sha256} if there.lfs else {there.blob_id}


def hashes(facts: Mapping[str, Any]) -> set[str]:
    """The hashes that are noted of a file, in a manifest or a receipt."""
    return {facts[key] for key in ("sha256", "git") if facts.get(key)}


def vouched(manifest: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The files on a branch that are still what the manifest there says: ggufy's, and no work of others."""
    listed = {**manifest["files"], **manifest.get("made", {})}
    return {
        path: dict(facts) for path, facts in listed.items() if path in there and identities(there[path]) & hashes(facts)
    }


def earlier(stamps: Iterable[Mapping[str, Any]], adapters: set[str]) -> set[str]:
    """The outputs that were made from none of these adapters, with the Modelfiles that name them."""
    stamps = list(stamps)
    of_adapters = {stamp["output"]: stamp["inputs"].get("adapter") for stamp in stamps}
    old = {output for output, adapter in of_adapters.items() if adapter is not None and str(adapter) not in adapters}
    files = {stamp["output"] for stamp in stamps if "modelfile" in stamp["inputs"]}
    return old | {output for output in files if f"{output.removesuffix('.Modelfile')}.gguf" in old}


def of_earlier_trainings(manifest: Mapping[str, Any], adapters: set[str]) -> set[str]:
    """The files of such outputs, by their path in the repository."""
    old = earlier(manifest["stamps"], adapters)
    names = {name for stamp in manifest["stamps"] if stamp["output"] in old for name in stamp["files"]}
    return {path for path, facts in manifest["files"].items() if facts["path"] in names}
