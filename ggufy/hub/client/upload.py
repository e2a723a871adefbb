"""Upload files to a branch: only new ones, in one commit, and never over somebody else's work.

A file that has arrived stays: a large one is stored by its sha256 as soon as it is whole, and a push that was cut short
asks again what is there. A commit names the commit it builds on, so that of two pushes at once one is told to look
again. If the answer to a commit is lost, the next look shows whether it landed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ggufy.errors import HubError, Unverified
from ggufy.hub.client import session
from ggufy.hub.contents.bundle import File
from ggufy.hub.contents.facts import amount
from ggufy.hub.contents.manifest import identities

log = logging.getLogger("ggufy")

_TRIES = 6
# Smaller ones go together, larger ones each on its own, so that a kill costs one of them at most.
_SMALL = 1_000_000
# Answers to a commit that was not even looked at.
_NOT_DONE = (425, 429)
# In the place of a commit whose answer was lost.
_UNKNOWN = "unknown"


class _Moved(Exception):
    """The branch is not where the plan was made."""


@dataclass(frozen=True)
class Target:
    """A branch of a repository."""

    repo: str
    branch: str
    kind: str = "model"

    @property
    def name(self) -> str:
        return f"{self.repo}@{self.branch}"


@dataclass
class Sent:
    """What came of an upload."""

    commit: str
    url: str
    new: list[str] = field(default_factory=list)
    """The files of the commit; none where everything was there."""
    gone: list[str] = field(default_factory=list)
    """What the commit has removed."""
    there: Mapping[str, Any] = field(default_factory=dict)
    """All files of the branch after it."""


@dataclass(frozen=True)
class Remote:
    """A branch as it is now."""

    head: str
    files: dict[str, Any]

    def holds(self, file: File) -> bool:
        there = self.files.get(file.path)
        return there is not None and bool(identities(there) & {file.sha256, file.git})


def look(api: Any, target: Target, revision: str | None = None) -> Remote:
    """The files of a branch, or of a commit."""
    head = revision or session.ask(
        f"look at {target.name}",
        lambda: api.repo_info(target.repo, repo_type=target.kind, revision=target.branch).sha,
        name=target.repo,
        kind=target.kind,
        reading=True,
    )
    listed = session.ask(
        f"list the files of {target.name}",
        lambda: list(api.list_repo_tree(target.repo, repo_type=target.kind, revision=head, recursive=True)),
        name=target.repo,
        kind=target.kind,
        reading=True,
    )
    return Remote(str(head), {entry.path: entry for entry in listed if hasattr(entry, "blob_id")})


def upload(
    api: Any,
    target: Target,
    files: Sequence[File],
    message: str,
    *,
    own: Callable[[], set[str]],
    before: Callable[[], None],
    stale: Callable[[Mapping[str, Any]], list[str]] | None = None,
    force: bool = False,
) -> Sent:
    """Bring the branch to hold these files; returns when the Hub names their hashes. Raises HubError, Unverified.

    `own` are the hashes of files that may be written over, `before` is called before a commit, and `stale` says which
    of the files that are there are to be removed in the same commit.
    """
    operations: dict[str, Any] = {}
    committed: str | None = None
    sent: list[str] = []
    removed: list[str] = []
    for attempt in range(_TRIES):
        remote = look(api, target)
        todo = [file for file in files if not remote.holds(file)]
        gone = stale(remote.files) if stale else []
        if not todo:
            _confirm(target, files, remote)
            if not gone or committed not in (None, _UNKNOWN):
                done = (sent, removed) if committed else ([], [])
                return Sent(remote.head, _url(target, remote.head), *done, there=remote.files)
        _refuse_foreign(target, todo, remote, set() if force else own(), force=force)
        _send(api, target, todo, operations)
        before()
        try:
            committed = _commit(api, target, [operations[file.path] for file in todo], gone, message, remote.head)
        except _Moved:
            log.info("somebody else has changed %s meanwhile; looking again", target.name)
            time.sleep(min(0.25 * 2.0**attempt, 8.0))
            continue
        except Exception as error:  # noqa: BLE001 - the client raises its own, its HTTP library's and built-in errors
            if attempt == _TRIES - 1 or not session.passing(error):
                raise session.explain(error, f"cannot commit to {target.name}", target.repo, target.kind) from None
            committed = _wait(error, attempt) or committed
        sent, removed = [file.path for file in todo], gone
    raise HubError(
        f"{target.name} changes faster than this push can follow",
        "push again later, or to another branch: what has arrived is not sent twice",
    )


def _wait(error: Exception, attempt: int) -> str | None:
    """Wait after a commit that was not confirmed; whether it may have landed all the same."""
    status = session.status_of(error)
    pause = max(min(2.0**attempt, 8.0), session.retry_after(error))
    if status in _NOT_DONE:
        log.info("the Hub answered %d to the commit; trying again in %.0f s", status, pause)
    else:
        said = f"the Hub answered {status} to the commit" if status else "the answer to the commit was lost"
        log.info("%s; checking in %.0f s whether it arrived", said, pause)
    time.sleep(pause)
    return None if status in _NOT_DONE else _UNKNOWN


def _refuse_foreign(target: Target, todo: Iterable[File], remote: Remote, own: set[str], *, force: bool) -> None:
    theirs = [f.path for f in todo if f.path in remote.files and not identities(remote.files[f.path]) & own]
    if theirs and not force:
        more = f" and {len(theirs) - 1} more" if len(theirs) > 1 else ""
        raise HubError(
            f"{target.name} has a {theirs[0]}{more} that this run did not put there",
            "choose another --repo to keep both, or give --force to overwrite it"
            if target.kind == "space"
            else "give --branch NAME to keep both, or --force to overwrite it",
        )


def _send(api: Any, target: Target, todo: Sequence[File], operations: dict[str, Any]) -> None:
    """Send the large files; those that the Hub has already are only named."""
    from huggingface_hub import CommitOperationAdd

    for file in todo:
        if file.path not in operations:
            source = file.source if isinstance(file.source, bytes) else str(file.source)
            operations[file.path] = CommitOperationAdd(file.path, source)
            if not isinstance(source, bytes):
                operations[file.path].upload_info.sha256 = bytes.fromhex(file.sha256)
    groups = [[file for file in todo if file.size < _SMALL], *([file] for file in todo if file.size >= _SMALL)]
    total, done = sum(file.size for file in todo), 0
    for group in filter(None, groups):
        done += sum(file.size for file in group)
        if all(operations[file.path]._is_uploaded for file in group):
            continue  # by an attempt before this one, which has said so
        send = partial(
            api.preupload_lfs_files,
            target.repo,
            [operations[file.path] for file in group],
            repo_type=target.kind,
            revision=target.branch,
            free_memory=False,
        )
        session.ask(
            f"send {group[0].path if len(group) == 1 else f'{len(group)} small files'}",
            send,
            name=target.repo,
            kind=target.kind,
            # The client has tried each of its requests several times already.
            waits=(2.0,),
        )
        if left_out := [file.path for file in group if operations[file.path]._should_ignore]:
            raise HubError(
                f"{left_out[0]}: the .gitignore of {target.name} excludes it",
                f"change that file at {session.page(target.repo, target.kind)}, or choose another name",
            )
        if len(group) == 1:
            # Not "sent": what a push before this one has brought there is only named.
            log.info("%s has arrived: %s of %s are there", group[0].path, amount(done), amount(total))


def _commit(api: Any, target: Target, additions: Sequence[Any], gone: Sequence[str], message: str, parent: str) -> str:
    from huggingface_hub import CommitOperationDelete

    try:
        done = api.create_commit(
            target.repo,
            [*additions, *(CommitOperationDelete(path) for path in gone)],
            repo_type=target.kind,
            revision=target.branch,
            commit_message=message,
            parent_commit=parent,
        )
    except Exception as error:
        if session.status_of(error) in (409, 412):
            raise _Moved from None
        raise
    return str(done.oid)


def _confirm(target: Target, files: Iterable[File], remote: Remote) -> None:
    wrong = [file.path for file in files if not remote.holds(file)]
    if wrong:
        raise Unverified(f"{target.name}: the Hub lists another hash for {wrong[0]}", "push again")


def _url(target: Target, commit: str) -> str:
    return session.page(target.repo, target.kind, f"/commit/{commit}")
