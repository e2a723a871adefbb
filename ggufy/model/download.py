"""Download from the Hugging Face Hub: files are compared with what the Hub lists, errors explained in one line."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ggufy.errors import HubError
from ggufy.system import digest, user_folders

log = logging.getLogger("ggufy")

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return _REPOSITORY.fullmatch(name) is not None


def snapshot(name: str, revision: str | None, kind: str, files: Iterable[str], *, offline: bool) -> tuple[Path, str]:
    """Download (or find in the local cache) the files of a repository: its folder and its commit."""
    folder = _download(name, revision, kind, files, offline=offline)
    if not offline:
        if wrong := _wrong(name, folder, kind):
            log.info(
                "%s of %s arrived with different content than the Hub lists; downloading again", wrong[0].name, name
            )
            for path in wrong:
                path.resolve().unlink()
                path.unlink(missing_ok=True)
            folder = _download(name, revision, kind, files, offline=False)
        if wrong := _wrong(name, folder, kind):
            raise HubError(
                f"{wrong[0].name} of {name} arrives with different content than the Hub lists",
                "try again later, or on another network",
            )
    return folder, folder.name


def files(name: str, commit: str) -> list[str]:
    """The paths of all files of a model's repository at a commit. Raises HubError."""
    try:
        from huggingface_hub import HfApi

        return HfApi().list_repo_files(name, revision=commit)
    except Exception as error:  # noqa: BLE001 - as below
        raise explain(error, name, commit, "model") from None


def _download(name: str, revision: str | None, kind: str, files: Iterable[str], *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=list(files), local_files_only=offline
            )
        )
    except Exception as error:  # noqa: BLE001 - the client raises its own, its HTTP library's and built-in errors
        raise explain(error, name, revision, kind) from None


def _wrong(name: str, folder: Path, kind: str) -> list[Path]:
    """The files of a snapshot that are not what the Hub lists: the client takes any content of the right length.

    What was compared once is noted in ggufy's cache, and not hashed again until it changes.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return []  # no snapshot of a commit: nothing is listed for it
    noted = user_folders.cache() / "verified" / f"{kind}--{name.replace('/', '--')}--{folder.name}.json"
    try:
        known = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    states = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    now = {path.relative_to(folder).as_posix(): [s.st_size, s.st_mtime_ns] for path, s in states.items()}
    if all(known.get(path) == state for path, state in now.items()):
        return []
    try:
        from huggingface_hub import HfApi

        tree = HfApi().list_repo_tree(name, repo_type=kind, revision=folder.name, recursive=True)
        listed = {entry.path: entry for entry in tree}
    except Exception as error:  # noqa: BLE001 - as above
        raise explain(error, name, folder.name, kind) from None
    wrong = [path for path in now if known.get(path) != now[path] and not matches(folder / path, listed.get(path))]
    noted.parent.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps({path: state for path, state in now.items() if path not in wrong}), encoding="utf-8")
    return [folder / path for path in wrong]


def matches(path: Path, entry: Any) -> bool:
    """Whether a file on this disk is the one that the Hub lists."""
    if entry is None or not path.is_file() or path.stat().st_size != entry.size:
        return False
    if entry.lfs:
        return bool(digest.of_file(path) == entry.lfs.sha256)
    return bool(digest.of_git_blob(path) == entry.blob_id)


def explain(error: Exception, name: str, revision: str | None, kind: str) -> HubError:
    """The HubError for what the Hub's client raised while reading a repository."""
    from huggingface_hub import errors

    what = f"{'data set ' if kind == 'dataset' else ''}{name}" + (f" at {revision}" if revision else "")
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    known: tuple[tuple[Any, str, str], ...] = (
        (errors.GatedRepoError, "access is gated", f"accept the licence at {page} and run `hf auth login`"),
        (errors.RevisionNotFoundError, "no such revision", f"see the branches and tags at {page}/tree/main"),
        (
            errors.RepositoryNotFoundError,
            "no such repository, or it is private",
            "check the name; `hf auth login` for private ones",
        ),
    )
    for kinds, text, hint in known:
        if isinstance(error, kinds):
            return HubError(f"{what}: {text}", hint)
    return HubError(
        f"{what} is not in the local cache and the Hub cannot be reached: {deepest(error)}",
        "check the network, or name a local folder or file instead",
    )


def deepest(error: BaseException) -> str:
    """The first cause of an error, in a line: the client wraps what the network said several times."""
    seen = {id(error)}
    while (cause := error.__cause__ or error.__context__) is not None and id(cause) not in seen:
        seen.add(id(cause))
        error = cause
    return " ".join(str(error).split())[:160] or type(error).__name__
