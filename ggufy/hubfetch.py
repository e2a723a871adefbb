"""Reading from the Hugging Face Hub, with its errors said in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ggufy.errors import HubError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return _REPOSITORY.fullmatch(name) is not None


def snapshot(name: str, revision: str | None, kind: str, files: Iterable[str], *, offline: bool) -> tuple[Path, str]:
    """Download (or find in the local cache) the files of a repository: its folder and its commit."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=list(files), local_files_only=offline
            )
        )
    except Exception as error:  # noqa: BLE001 - the client raises its own, its HTTP library's and built-in errors
        raise explain(error, name, revision, kind) from None
    return folder, folder.name


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
