"""`ggufy pull`: bring a pushed run, or its checkpoints, back into `runs/`; also downloads single GGUF files for chat.

What a repository says of itself is somebody else's word: only files that a run has are taken, only to where a run has
them, and only with the hash that is listed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from ggufy.errors import HubError, RunError
from ggufy.hub import branches
from ggufy.hub.branches import Found
from ggufy.hub.client import file_download, session, upload
from ggufy.hub.client.upload import Target
from ggufy.hub.contents import bundle, names, places, receipt
from ggufy.hub.contents.facts import amount
from ggufy.hub.contents.manifest import MANIFEST, vouched
from ggufy.model import download
from ggufy.recipe.schema import LATE_SECTIONS
from ggufy.runs import run
from ggufy.runs.run import Run
from ggufy.system import user_folders
from ggufy.system.disk import held, sync, write_json

log = logging.getLogger("ggufy")


def checkpoint_branch(branch: str) -> str:
    """Where the checkpoints of a run lie whose results go to `branch`."""
    return "checkpoints" if branch == "main" else f"{branch}-checkpoints"


def pull(repo: str, branch: str | None = None, run_name: str | None = None) -> Run:
    """Bring a run back, with everything that was pushed of it. Raises HubError, RunError, Unverified."""
    names.check_repository(repo)
    first = names.check_ref(branch or "main", "branch")
    found = _first(Target(repo, first), Target(repo, checkpoint_branch(first)))
    if found is None:
        raise HubError(
            f"{repo}@{first} holds no run that ggufy pushed",
            f"`ggufy chat {repo}` talks to a GGUF file of any repository; {session.page(repo, rest='/tree/main')}",
        )
    return _restore(found, run_name)


def checkpoints(repo: str, branch: str | None = None, run_name: str | None = None) -> Run:
    """Bring back what a training needs to go on."""
    names.check_repository(repo)
    wanted = names.check_ref(branch or "main", "branch")
    found = _first(Target(repo, checkpoint_branch(wanted)), Target(repo, wanted))
    if found is None:
        raise HubError(
            f"{repo}@{checkpoint_branch(wanted)} holds no checkpoints of a run",
            "to have checkpoints there, train with hub.checkpoints=every_save",
        )
    this = run.named(run_name or found.manifest["run"])
    if not this.exists:
        return _restore(found, run_name)
    if not _is_same(this, found):
        raise RunError(
            f"{this.path.as_posix()} already exists, and is a different run than that of {found.target.name}",
            "give --run NAME to pull it under another name",
        )
    here, there = (
        newest_step(path.parent.name for path in this.path.glob("checkpoints/*/manifest.json")),
        newest_step(
            facts["path"].split("/")[1] for facts in found.manifest["files"].values() if facts["path"].count("/") > 1
        ),
    )
    if here >= there or this.stamp("adapter"):
        state = "and its training has ended" if this.stamp("adapter") else f"at step {here}"
        log.info("%s is here already, %s", this.path.as_posix(), state)
        return this
    return _restore(found, run_name, going_on=True)


def _first(*targets: Target) -> Found | None:
    """The run on the first of these branches that holds one. Raises HubError where there is none of these branches."""
    missing: dict[str, session.NoRevision] = {}
    for target in targets:
        try:
            found = branches.find(target)
        except session.NoRevision as error:
            missing[target.branch] = error
            continue
        if found is not None:
            return found
    if len(missing) == len(targets):
        # Of a branch and that of its checkpoints the name that somebody gave.
        raise missing[min(missing, key=len)]
    return None


def newest_step(folders: Iterable[str]) -> int:
    """The highest number of checkpoints' folders."""
    return max((int(name[11:]) for name in folders if re.fullmatch(r"checkpoint-\d+", name)), default=0)


def _is_same(this: Run, found: Found) -> bool:
    """Whether the run here is the one there, maybe at another step."""
    theirs = json.loads(file_download.read(found.target, found.remote, "ggufy/run.json"))
    ours = places.without_places(this.frozen)
    return all(ours.get(key) == theirs.get(key) for key in ("base", "data", "seed", "date")) and _without_late(
        ours
    ) == _without_late(theirs)


def _without_late(frozen: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in frozen["recipe"].items() if key not in (*LATE_SECTIONS, "name")}


def gguf(repo: str, branch: str | None = None, quant: str | None = None) -> Path:
    """A GGUF file of a repository: of that quant, else q4_k_m, else the smallest. Downloaded once, and verified."""
    names.check_repository(repo)
    target = Target(repo, names.check_ref(branch or "main", "branch"))
    place = user_folders.cache() / "hub" / repo.replace("/", "--") / target.branch.replace("/", "--")
    try:
        remote = upload.look(session.client(), target)
    except session.Unreachable as error:
        return _cached(place, quant, error)
    models = {path: entry.size for path, entry in remote.files.items() if _is_model(path)}
    chosen = choose(models, quant)
    if chosen is None:
        kinds = f"; there are {', '.join(sorted(models))}" if models else ""
        raise HubError(
            f"{target.name} has no GGUF file{f' in {quant}' if quant else ''}{kinds}",
            f"see {session.page(repo, rest=f'/tree/{target.branch}')}",
        )
    parts = [path for path in sorted(models) if _group(path) == _group(chosen)]
    place.mkdir(parents=True, exist_ok=True)
    # Two commands that want the same file at once: the second waits, and finds it.
    with held(place, f"waiting for another ggufy that downloads from {target.name}"):
        missing = [part for part in parts if not _verified(place / part, remote.files[part])]
        if missing:
            size = sum(models[part] for part in missing)
            file_download.room_for(place, size)
            log.info("downloading %s of %s, %s", chosen, target.name, amount(size))
        for part in missing:
            file_download.fetch(target, remote, names.check_path(part), place / part)
            _note_verified(place / part, remote.files[part])
    return place / parts[0]


def choose(models: dict[str, int], quant: str | None) -> str | None:
    """Which of the files (path -> size) is meant; of a model in several files, the first of them."""
    sizes: dict[str, int] = {}
    for path, size in models.items():
        sizes[_group(path)] = sizes.get(_group(path), 0) + size
    for wanted in (quant,) if quant else ("q4_k_m", None):
        pattern = re.compile(rf"(^|[-._/]){re.escape(wanted or '')}([-._]|$)", re.IGNORECASE)
        fitting = [path for path in models if wanted is None or pattern.search(path.removesuffix(".gguf"))]
        if fitting:
            return min(fitting, key=lambda path: (sizes[_group(path)], path))
    return None


def _is_model(path: str) -> bool:
    stem = PurePosixPath(path).name.lower()
    return stem.endswith(".gguf") and not re.search(r"(-adapter|-imatrix|^imatrix)\.gguf$|mmproj", stem)


def _group(path: str) -> str:
    """The name that the parts of a split file share."""
    return re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-of-\1", path)


def _cached(place: Path, quant: str | None, error: HubError) -> Path:
    """What was downloaded before, where the Hub cannot be asked."""
    held = {
        path.relative_to(place).as_posix(): path.stat().st_size
        for path in place.rglob("*.gguf")
        if _mark(path).is_file()
    }
    chosen = choose(held, quant)
    if chosen is None:
        raise error
    log.info("%s; using what was downloaded before", error.message)
    return place / min(path for path in held if _group(path) == _group(chosen))


def _mark(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _note_verified(path: Path, entry: Any) -> None:
    write_json(_mark(path), {"oid": entry.blob_id, "size": entry.size, "mtime_ns": path.stat().st_mtime_ns})


def _verified(path: Path, entry: Any) -> bool:
    """Whether a file was verified when it came, and was not changed since: gigabytes are not hashed at every start."""
    try:
        noted = json.loads(_mark(path).read_text(encoding="utf-8"))
        state = path.stat()
    except (OSError, ValueError):
        return False
    now = {"oid": entry.blob_id, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    return bool(noted == now and state.st_size == entry.size)


def _restore(found: Found, run_name: str | None, *, going_on: bool = False) -> Run:
    target, remote, manifest = found.target, found.remote, found.manifest
    this = run.named(run_name or manifest["run"])
    this.refuse_foreign()
    # Last the record, and before it a checkpoint's own manifest: what is half there is no run, and no checkpoint.
    last = {"manifest.json": 1, "run.json": 2}
    files = sorted(
        manifest["files"].items(), key=lambda item: (last.get(item[1]["path"].rpartition("/")[2], 0), item[1]["size"])
    )
    with this.lock("--run"):
        missing = []
        for path, facts in files:
            local = this.path / facts["path"]
            if download.matches(local, remote.files[path]):
                continue
            if going_on and facts["path"] == "run.json":
                continue
            if os.path.lexists(local) and not (going_on and facts["path"] == "metrics.jsonl"):
                raise RunError(
                    f"{local.as_posix()} already exists, and is not the file of {target.name}",
                    "give --run NAME to pull it under another name",
                )
            missing.append((path, facts))
        size = sum(facts["size"] for _, facts in missing)
        file_download.room_for(this.path, size)
        if missing:
            log.info("downloading %d files of %s, %s", len(missing), target.name, amount(size))
        place = this.path / "partial" / "pull"
        for path, facts in missing:
            fetched = file_download.fetch(target, remote, path, place / facts["path"])
            final = this.path / facts["path"]
            if final.parent.resolve() != (this.path.resolve() / facts["path"]).parent:
                raise HubError(
                    f"{final.parent.as_posix()} is a link to a place outside the run", "remove it, and pull again"
                )
            if facts["path"] == "run.json":
                _stamp(this, manifest["stamps"])
            final.parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(final)
            sync(final.parent)
        if not missing:
            _stamp(this, manifest["stamps"])
        if place.is_dir():
            shutil.rmtree(place)
            if not any(place.parent.iterdir()):
                place.parent.rmdir()
        _note(this, found)
    log.info("%s %s", this.path.as_posix(), "is up to date" if not missing else f"is as it was pushed to {target.name}")
    return this


def _stamp(this: Run, stamps: list[dict[str, Any]]) -> None:
    """The stamps of outputs that are there, with the times their files have here."""
    for stamp in stamps:
        files = {}
        for name, facts in stamp["files"].items():
            state = (this.path / name).stat()
            files[name] = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": facts["sha256"]}
        path = this.path / "stamps" / f"{stamp['output'].replace('/', '--')}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, {**stamp, "files": files})


def _note(this: Run, found: Found) -> None:
    """A receipt, so that a push from here knows the files for the run's own, but not what others have done there."""
    target, there = found.target, found.remote.files
    own = vouched(found.manifest, there)
    files = [bundle.File(path, b"", facts["size"], facts["sha256"], facts.get("git")) for path, facts in own.items()]
    # It was read, and it is of the run.
    listed = there[MANIFEST]
    files.append(bundle.File(MANIFEST, b"", listed.size, found.sha256, None if listed.lfs else listed.blob_id))
    head = found.remote.head
    facts = {
        "repo": target.repo,
        "branch": target.branch,
        "run": found.manifest["run"],
        "commit": head,
        "url": session.page(target.repo, rest=f"/commit/{head}"),
        "tag": None,
        "finished": None,
        "file_url": session.page(target.repo, rest=f"/resolve/{head}"),
    }
    receipt.finish(this, target.name, files, facts)


def is_meant(what: object) -> bool:
    """Whether somebody names a repository: not a run, not a file, and of the form user/name."""
    text = os.fspath(what) if isinstance(what, str | os.PathLike) else ""
    here = not text or Path(text).exists() or (run.runs_folder() / text).exists() or text.endswith(".gguf")
    return not here and download.is_repository(text) and not Path(text).parent.is_dir()
