"""Check a recipe's hub section before the training, so that no training is made that cannot be pushed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ggufy.errors import HubError
from ggufy.hub.client import access, session
from ggufy.hub.contents import bundle, leaks, names, places
from ggufy.recipe.schema import Recipe
from ggufy.runs.run import Run

log = logging.getLogger("ggufy")


def check(wanted: Recipe, run: Run) -> None:
    """Whether a push of this run, and its checkpoints, could work, as far as that is known before the data is prepared.

    Raises HubError.
    """
    hub = wanted.hub
    _check_checkpoints(wanted)
    leaks.look_in_names(hub.repo, hub.branch, hub.tag, hub.message)
    for key in ("repo", "branch", "tag"):
        names.check_one(wanted, key, run.name)
    if hub.repo is None or hub.offline:
        return
    if not _waits_for_the_count(wanted):
        _ask(wanted, run, None)
    elif not names.counts(hub.repo.partition("/")[0]):
        # The name is known when the conversations were counted; whose it is, and whether the token may write, is now.
        repo = hub.repo
        _asked(repo, lambda: access.check_token(session.client(), repo, "model"))


def check_counted(wanted: Recipe, run: Run) -> None:
    """The same of a name with {n} where that is known only now, with the data prepared. Raises HubError."""
    if wanted.hub.repo and not wanted.hub.offline and _waits_for_the_count(wanted):
        _ask(wanted, run, bundle.conversations(run))


def _check_checkpoints(wanted: Recipe) -> None:
    """Raises HubError where the checkpoints of a training are to be sent, and would be of no use there."""
    hub = wanted.hub
    if hub.checkpoints == "off":
        return
    if hub.repo is None:
        raise HubError(f"hub.checkpoints is {hub.checkpoints}, and no repository is named", "set hub.repo=user/name")
    data = wanted.data
    named = [("model.base", wanted.model.base), ("data.source", data.source), ("data.eval_source", data.eval_source)]
    for key, value in (*named, *(("data.more", part.source) for part in data.more)):
        if value and places.last_part(value) != value:
            raise HubError(
                f"hub.checkpoints: {key} is {value}, which is on this machine only",
                f"name {key} by its repository, or relative to the folder ggufy is started in",
            )


def _waits_for_the_count(wanted: Recipe) -> bool:
    return names.counts(wanted.hub.repo) and wanted.data.train_size is None


def _ask(wanted: Recipe, run: Run, rows: int | None) -> None:
    frozen = {"recipe": wanted.model_dump(mode="json")}
    repo = names.check_repository(names.fill(str(wanted.hub.repo), run.name, frozen, rows))

    def ask() -> None:
        may = access.check(session.client(), repo, wanted.model.base)
        access.check_private(repo, may, private=wanted.hub.private)

    _asked(repo, ask)


def _asked(name: str, ask: Callable[[], object]) -> None:
    try:
        ask()
    except session.Unreachable as error:
        log.warning("could not check whether %s may be written to: %s", name, error.message)
