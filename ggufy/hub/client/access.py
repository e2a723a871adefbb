"""Check that a push can work, before anything is trained or sent: token, namespace, repository, gated base."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ggufy.errors import HubError
from ggufy.hub.client import session
from ggufy.hub.contents import facts
from ggufy.hub.contents.facts import CardMetadata, Place

log = logging.getLogger("ggufy")

# What the Hub takes for a language: an ISO 639 code, maybe with a script or a country.
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
_KINDS = {"model": "a model", "dataset": "a data set", "space": "a Space"}


@dataclass(frozen=True)
class Access:
    """What the Hub said."""

    user: str
    exists: bool
    private: bool = False
    stated: CardMetadata = field(default_factory=CardMetadata)


def check(api: Any, name: str, base: str | None, kind: str = "model") -> Access:
    """Raises HubError where a push to `name` could not work, with the page to visit."""
    user = check_token(api, name, kind)
    there = _there(api, name, kind)
    if there is not None:
        # A read-only token may "create" a repository that is there, so that is no proof; this is.
        session.ask(f"write to {name}", lambda: api.auth_check(name, repo_type=kind, write=True), name=name, kind=kind)
    else:
        for other in _KINDS.keys() - {kind}:
            if _there(api, name, other) is not None:
                raise HubError(
                    f"{name} is {_KINDS[other]} already ({session.page(name, other)}), not {_KINDS[kind]}",
                    f"choose another {'--push' if kind == 'dataset' else '--repo'}",
                )
    return Access(user, there is not None, bool(there and there.private), check_base(api, base))


def check_private(name: str, may: Access, *, private: bool, kind: str = "model") -> None:
    """Raises HubError where something private would go to a repository that everybody can read."""
    if private and may.exists and not may.private:
        raise HubError(
            f"{name} already exists and is public, but this push is to be private",
            f"make it private at {session.page(name, kind, '/settings')}, or choose another name",
        )


def check_token(api: Any, name: str, kind: str) -> str:
    """The user of the token. Raises HubError if the token cannot write in the namespace of `name`."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise session.no_token()
    me = session.ask("ask the Hub who you are", api.whoami, name=name)
    user, owner = str(me["name"]), name.partition("/")[0]
    token = (me.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise HubError(
            f"the token of {user} can only read",
            f"make one with write access at {session.TOKENS}, then `hf auth login` or HF_TOKEN",
        )
    orgs = [org["name"] for org in me.get("orgs") or () if org.get("roleInOrg") != "read"]
    if owner.lower() not in (known.lower() for known in (user, *orgs)):
        ours = f" or an organization of yours ({', '.join(orgs)})" if orgs else ""
        raise HubError(
            f"the token belongs to {user}, who may not write to {owner}",
            f"{'--push' if kind == 'dataset' else '--repo'} {user}/{name.partition('/')[2]}{ours}",
        )
    return user


def check_base(api: Any, base: str | None) -> CardMetadata:
    """The licence that the card of a base on the Hub names. Raises HubError where the base is gated for this token."""
    if base is None or facts.on_the_hub(base) is None:
        return CardMetadata()
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def look() -> Any:
        try:
            api.auth_check(base)
            return api.model_info(base)
        except GatedRepoError:
            raise HubError(
                f"the base {base} is gated, and this token has no access to it",
                f"accept its licence at {session.page(base)} with the same account",
            ) from None
        except RepositoryNotFoundError:
            return None

    info = session.ask(f"look at the base {base}", look, name=base, reading=True)
    if info is None:
        log.warning("the base %s is not on the Hub, or is private: others cannot use the adapter without it", base)
        return CardMetadata()
    card = info.card_data or {}
    found, link = card.get("license"), card.get("license_link")
    if not isinstance(found, str) or found != "other":
        return CardMetadata(found if isinstance(found, str) else None)
    if link and "://" not in str(link):
        link = session.page(base, rest=f"/blob/main/{link}")
    return CardMetadata("other", str(card.get("license_name") or "") or None, str(link) if link else None)


def of_data(api: Any, places: Iterable[Place]) -> CardMetadata:
    """The languages that the cards of the data sets on the Hub name, and the licence, where it is the same for all.

    A data set that cannot be asked names none.
    """

    def look(name: str) -> Any:
        return api.dataset_info(name).card_data or {}

    languages: list[str] = []
    licenses: set[str | None] = set()
    for place in places:
        card: Any = {}
        if place.on_the_hub:
            try:
                asked = partial(look, place.name)
                card = session.ask(f"look at {place.name}", asked, name=place.name, kind="dataset", reading=True)
            except HubError as error:
                log.info("the card of the data set %s could not be read: %s", place.name, error.message)
        said, found = card.get("language"), card.get("license")
        languages += [said] if isinstance(said, str) else map(str, said or ())
        licenses.add(found if isinstance(found, str) and found != "other" else None)
    known = tuple(dict.fromkeys(name for name in languages if _LANGUAGE.fullmatch(name)))
    return CardMetadata(license=licenses.pop() if len(licenses) == 1 else None, language=known)


def _there(api: Any, name: str, kind: str) -> Any | None:
    """What the Hub says of a repository; None where there is none that this token may see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    def look() -> Any | None:
        try:
            return api.repo_info(name, repo_type=kind)
        except RepositoryNotFoundError as error:
            if session.status_of(error) == 401:
                raise
            return None

    return session.ask(f"look at {name}", look, name=name, kind=kind, reading=True)
