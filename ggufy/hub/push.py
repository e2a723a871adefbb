"""`ggufy push`: send a run to a repository, and check by hash that the Hub holds what the run holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ggufy.errors import HubError
from ggufy.hub import branches
from ggufy.hub.client import access, session, upload
from ggufy.hub.client.upload import Remote, Target
from ggufy.hub.contents import bundle, card, facts, leaks, names, receipt
from ggufy.hub.contents.bundle import File
from ggufy.hub.contents.facts import CardMetadata
from ggufy.hub.contents.manifest import hashes, identities
from ggufy.recipe import recipe
from ggufy.runs.run import Run

log = logging.getLogger("ggufy")


@dataclass(frozen=True)
class PushOptions:
    """The options of `ggufy push`; those that are None are taken from the recipe's `hub` section."""

    repo: str | None = None
    what: tuple[str, ...] | None = None
    branch: str | None = None
    private: bool | None = None
    tag: str | None = None
    message: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Pushed:
    """A finished push."""

    target: Target
    commit: str
    url: str
    files: list[File]
    new: list[str]
    gone: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What came of it, for people."""
        if not self.new and not self.gone:
            return [f"{self.target.name} holds all {len(self.files)} files already; nothing was sent", self.url]
        size = facts.amount(sum(file.size for file in self.files if file.path in self.new))
        there = len(self.files) - len(self.new)
        rest = f", {there} were there already" if there else ""
        return [f"{self.target.name} holds {len(self.files)} files: {len(self.new)} new ({size}){rest}", self.url]


@dataclass(frozen=True)
class _Plan:
    target: Target
    bundle: bundle.Bundle
    private: bool
    tag: str | None
    message: str


def push(run: Run, options: PushOptions) -> Pushed:
    """Send a run. It ends when the hashes on the Hub are those on this disk. Raises HubError, RunError, Unverified."""
    first = _plan(run, options, None)
    target = first.target
    api = session.client()
    may = access.check(api, target.repo, str(first.bundle.frozen["base"]["name"]))
    access.check_private(target.repo, may, private=first.private)
    remote = _look(api, target) if may.exists else None
    # What was sent before is a part of this push where it lies there still.
    plan = _plan(run, options, remote.files if remote else {})
    _say_missing(plan.bundle)
    of_data = access.of_data(api, facts.trained_on(plan.bundle.frozen))
    files = _files(plan, replace(may.stated, language=of_data.language))
    if not may.exists:
        create(api, target, private=plan.private)
    make_branch(api, target)
    _check_tag(api, plan, files)
    stale = _stale(run, plan, remote, files, force=options.force)
    done = upload.upload(
        api,
        target,
        files,
        plan.message,
        own=lambda: receipt.own(run, target.name),
        before=lambda: receipt.begin(run, target.name, files),
        stale=stale,
        force=options.force,
    )
    _say_others(target, files, done)
    if plan.tag:
        _tag(api, plan, done.commit)
    noted = {"run": plan.bundle.name, **receipt_of(target, plan.tag, done)}
    receipt.finish(run, target.name, files, noted, done.there)
    return Pushed(target, done.commit, done.url, files, done.new, done.gone)


def _look(api: Any, target: Target) -> Remote | None:
    try:
        return upload.look(api, target)
    except session.NoRevision:
        return None


def _stale(
    run: Run, plan: _Plan, remote: Remote | None, files: list[File], *, force: bool
) -> Callable[[Mapping[str, Any]], list[str]]:
    """Which files of a branch are exports of an earlier training, of this run's or, with `force`, of one before it."""
    target = plan.target
    adapters = {str(stamp["inputs"].get("adapter")) for stamp in plan.bundle.stamps}
    adapters |= {str(stamp["sha256"]) for stamp in [run.stamp("adapter")] if stamp}
    # Where all of it is there, so is its manifest, which lists nothing else.
    changed = remote is not None and not all(map(remote.holds, files))
    found = branches.of_earlier_trainings(target, remote, adapters) if remote and changed else {}
    kept, own = {file.path for file in files}, receipt.own(run, target.name)
    old = {path: hashes(facts) for path, facts in found.items() if path not in kept and (force or hashes(facts) & own)}
    return lambda there: [path for path, known in old.items() if path in there and identities(there[path]) & known]


def _say_others(target: Target, files: list[File], done: upload.Sent) -> None:
    """What was removed, and what else lies there that somebody could take for a part of the run."""
    for path in done.gone:
        log.info("removed %s, which came from an earlier training", path)
    ours = {file.path for file in files}
    for path in done.there:
        if path.endswith(".gguf") and path not in ours:
            log.info("%s also has %s, which is not part of this push", target.name, path)


def _say_missing(parts: bundle.Bundle) -> None:
    for output in (output for output in parts.earlier if not output.endswith(".Modelfile")):
        log.info("%s comes from an earlier training, so it is not sent; export it again", output)
    name = parts.run.name
    makers = {
        "adapter": "the end of the training",
        "gguf": f"`ggufy export {name}`",
        "merged": f"`ggufy export {name} --merged`",
    }
    for kind in parts.what:
        if not parts.paths(kind):
            log.info("no %s files yet, so none are sent; %s makes them", kind, makers[kind])


def dry_run(run: Run, options: PushOptions) -> tuple[str, list[str]]:
    """The card, and what would be sent, without asking the Hub anything."""
    plan = _plan(run, options, None)
    _say_missing(plan.bundle)
    files = _files(plan, CardMetadata())
    listed = [f"{facts.amount(file.size):>10}  {file.sha256[:12]}  {file.path}" for file in files]
    total = facts.amount(sum(file.size for file in files))
    return _source(files, "README.md").decode(), [*listed, f"{total:>10}  in all, to {plan.target.name}"]


def target_of(run: Run, repo: str | None, branch: str | None) -> Target:
    """Where a run goes, as said, else as its recipe says."""
    frozen = run.frozen
    hub = recipe.from_values(frozen["recipe"]).hub
    rows = bundle.conversations(run)
    wanted = repo or hub.repo
    if wanted is None:
        raise HubError(f"{run.name}: no repository to push to", "give --repo user/name, or set hub.repo in the recipe")
    filled = [names.fill(text, run.name, frozen, rows) for text in (wanted, branch or hub.branch)]
    return Target(names.check_repository(filled[0]), names.check_ref(filled[1], "branch"))


def _plan(run: Run, options: PushOptions, there: Mapping[str, Any] | None) -> _Plan:
    """What is to be sent; `there` are the files of the branch, where it was looked at."""
    hub = recipe.from_values(run.frozen["recipe"]).hub
    leaks.look_in_names(*((getattr(options, key) or getattr(hub, key)) for key in ("repo", "branch", "tag", "message")))
    target = target_of(run, options.repo, options.branch)
    parts = bundle.collect(
        run,
        options.what or hub.what,
        insist=options.what is not None,
        sent=receipt.sent(run, target.name, there),
        name=receipt.name(run, target.name),
    )
    rows, private = bundle.conversations(run), hub.private if options.private is None else options.private
    tag, message = (
        names.fill(text, run.name, run.frozen, rows) if text else None
        for text in (options.tag or hub.tag, options.message or hub.message)
    )
    if tag:
        names.check_ref(tag, "tag")
    kinds = [kind for kind in parts.what if parts.paths(kind)]
    return _Plan(target, parts, private, tag, message or f"{parts.name}: {', '.join(kinds)}")


def _files(plan: _Plan, stated: CardMetadata) -> list[File]:
    text = card.render(plan.bundle, plan.target.repo, plan.target.branch, stated)
    card.check(text)
    if rule := card.naming_rule(plan.bundle, plan.target.repo, stated):
        log.warning("%s; %s does not", rule, plan.target.repo)
    notice = card.notice(plan.bundle, stated)
    return bundle.finish(plan.bundle, {"README.md": text, **({"NOTICE": notice} if notice else {})})


def _source(files: Iterable[File], path: str) -> bytes:
    source = next(file.source for file in files if file.path == path)
    return source if isinstance(source, bytes) else source.read_bytes()


def create(api: Any, target: Target, *, private: bool, **how: Any) -> None:
    """Make a repository."""

    def make() -> bool:
        try:
            api.create_repo(target.repo, repo_type=target.kind, private=private, exist_ok=True, **how)
        except KeyError:
            # An answer that the name is taken, without the address it should have.
            if not api.repo_exists(target.repo, repo_type=target.kind):
                raise HubError(
                    f"cannot make the repository {target.repo}: "
                    "the Hub says that the name is taken, but does not show it",
                    "somebody may be creating or removing it: try again in a minute, or choose another name",
                ) from None
            return False
        return True

    if session.ask(f"make the repository {target.repo}", make, name=target.repo, kind=target.kind):
        log.info("made %s%s", session.page(target.repo, target.kind), ", private" if private else "")


def make_branch(api: Any, target: Target) -> None:
    """Make the branch where it is not there, from the first commit: another experiment's files are not in it."""
    from huggingface_hub.errors import RevisionNotFoundError

    def make() -> bool:
        try:
            api.repo_info(target.repo, repo_type=target.kind, revision=target.branch)
        except RevisionNotFoundError:
            first = api.list_repo_commits(target.repo, repo_type=target.kind)[-1].commit_id
            api.create_branch(target.repo, branch=target.branch, revision=first, repo_type=target.kind, exist_ok=True)
            return True
        return False

    if session.ask(f"make the branch {target.branch}", make, name=target.repo, kind=target.kind):
        log.info("made the branch %s", target.branch)


def _tags(api: Any, target: Target) -> dict[str, str]:
    refs = session.ask(
        f"list the tags of {target.repo}",
        lambda: api.list_repo_refs(target.repo, repo_type=target.kind),
        name=target.repo,
        kind=target.kind,
    )
    return {tag.name: tag.target_commit for tag in refs.tags}


def _check_tag(api: Any, plan: _Plan, files: list[File]) -> None:
    """A tag that is somewhere else stays there, so it is refused before anything is sent."""
    if plan.tag is None or (at := _tags(api, plan.target).get(plan.tag)) is None:
        return
    remote = upload.look(api, plan.target)
    if at != remote.head or not all(remote.holds(file) for file in files):
        raise HubError(
            f"the tag {plan.tag} of {plan.target.repo} is at another commit already ({at[:12]})", "choose another --tag"
        )


def _tag(api: Any, plan: _Plan, commit: str) -> None:
    target, tag = plan.target, str(plan.tag)

    def set_tag() -> None:
        api.create_tag(target.repo, tag=tag, revision=commit, repo_type=target.kind, exist_ok=True)

    session.ask(f"set the tag {tag}", set_tag, name=target.repo, kind=target.kind)
    log.info("the tag %s is at %s", tag, commit[:12])


def receipt_of(target: Target, tag: str | None, done: upload.Sent) -> dict[str, Any]:
    """What hub.json says of a push, beside its files."""
    return {
        "repo": target.repo,
        "branch": target.branch,
        "commit": done.commit,
        "url": done.url,
        "tag": tag,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "file_url": session.page(target.repo, target.kind, f"/resolve/{done.commit}"),
    }
