"""Whether a push can work, asked before anything is trained or sent: token, namespace, repository, gated base."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ggufy.errors import HubError
from ggufy.hub import facts, session

log = logging.getLogger("ggufy")

_KINDS = {"model": "a model", "dataset": "a data set", "space": "a Space"}


@dataclass(frozen=True)
class Access:
    """What the Hub said."""

    user: str
    exists: bool
    license: str | None = None
    """Of the base, as its own card says."""


def check(api: Any, name: str, base: str | None, kind: str = "model") -> Access:
    """Raises HubError where a push to `name` could not work, with the page to visit."""
    user = check_token(api, name)
    exists = _exists(api, name, kind)
    if exists:
        # A read-only token may "create" a repository that is there, so that is no proof; this is.
        session.ask(f"write to {name}", lambda: api.auth_check(name, repo_type=kind, write=True), name=name, kind=kind)
    else:
        for other in _KINDS.keys() - {kind}:
            if _exists(api, name, other):
                raise HubError(
                    f"{name} is {_KINDS[other]} already ({session.page(name, other)}), not {_KINDS[kind]}",
                    "choose another --repo",
                )
    return Access(user, exists, check_base(api, base))


def check_token(api: Any, name: str) -> str:
    """The user of the token. Raises HubError where it cannot write in the namespace of `name`."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise session.no_token()
    me = session.ask("ask the Hub who you are", api.whoami, name=name)
    user, owner = str(me["name"]), name.partition("/")[0]
    token = (me.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise HubError(
            f"the token of {user} may only read",
            f"make one with write access at {session.TOKENS}, then `hf auth login` or HF_TOKEN",
        )
    orgs = [org["name"] for org in me.get("orgs") or () if org.get("roleInOrg") != "read"]
    if owner.lower() not in (known.lower() for known in (user, *orgs)):
        ours = f" or an organization of yours ({', '.join(orgs)})" if orgs else ""
        raise HubError(
            f"{owner} is not you: the token is of {user}, who may not write there",
            f"--repo {user}/{name.partition('/')[2]}{ours}",
        )
    return user


def check_base(api: Any, base: str | None) -> str | None:
    """The licence that the card of a base on the Hub names. Raises HubError where the base is gated for this token."""
    if base is None or facts.on_the_hub(base) is None:
        return None
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

    info = session.ask(f"look at the base {base}", look, name=base)
    if info is None:
        log.warning("the base %s is not on the Hub, or is private: others cannot use the adapter without it", base)
        return None
    card = info.card_data or {}
    found = card.get("license")
    return str(found) if isinstance(found, str) and found != "other" else str(card.get("license_name") or "") or None


def _exists(api: Any, name: str, kind: str) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError

    def there() -> bool:
        try:
            api.repo_info(name, repo_type=kind)
        except RepositoryNotFoundError as error:
            if session.status_of(error) == 401:
                raise
            return False
        return True

    return session.ask(f"look at {name}", there, name=name, kind=kind)
