"""Requests to the Hub: temporary failures are tried again, and every error is explained in one line."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ggufy.errors import HubError
from ggufy.model import download
from ggufy.system.version import __version__

log = logging.getLogger("ggufy")

Answer = TypeVar("Answer")

_PASSING = (408, 425, 429, 500, 502, 503, 504)
_WAITS = (1.0, 2.0, 4.0, 8.0)
TOKENS = "https://huggingface.co/settings/tokens"
OFFLINE = (
    "run the same command again later to continue with what has not arrived yet; "
    "export, verify and chat work without the Hub"
)


class Unreachable(HubError):
    """Nobody has refused anything: there was no answer, or none that says so."""


class NoRevision(HubError):
    """The repository is there, and has no such branch, tag or commit."""


def client() -> Any:
    """The Hub's client. Its own bars are shown on terminals only, and its talk of retries is not ours."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    if constants.HF_HUB_OFFLINE:
        raise Unreachable(
            "HF_HUB_OFFLINE is set, so the Hub is not asked", "unset it; export, verify and chat work without the Hub"
        )
    return HfApi(library_name="ggufy", library_version=__version__)


def page(name: str, kind: str = "model", rest: str = "") -> str:
    """The address of a repository for people."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'' if kind == 'model' else kind + 's/'}{name}{rest}"


def ask(
    what: str,
    function: Callable[[], Answer],
    *,
    name: str,
    kind: str = "model",
    waits: Sequence[float] = _WAITS,
    reading: bool = False,
) -> Answer:
    """Call the Hub, again after a while where the failure may pass. Raises HubError.

    `reading` is what needs no right to write, and of what is public no token either.
    """
    for wait in (*waits, None):
        try:
            return function()
        except HubError:
            raise
        except Exception as error:  # noqa: BLE001 - the client raises its own, its HTTP library's and built-in errors
            status = status_of(error)
            if wait is None or not passing(error):
                raise explain(error, f"cannot {what}", name, kind, reading=reading) from None
            said = f"the Hub answered {status}" if status else "the connection to the Hub broke"
            pause = max(wait, retry_after(error))
            log.info("%s: %s; trying again in %.0f s", what, said, pause)
            time.sleep(pause)
    raise AssertionError


def passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    import httpx

    status = status_of(error)
    if status is not None:
        return status in _PASSING
    # A first connection that is refused means no network; one that breaks is worth another try.
    return isinstance(root(error), httpx.TransportError) and not isinstance(root(error), httpx.ConnectError)


def root(error: BaseException) -> BaseException:
    """The error of the HTTP library inside the client's, or the error itself."""
    import httpx

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, httpx.HTTPError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, however deep the client has wrapped it."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if response is not None:
            return int(response.status_code)
        seen = seen.__cause__ or seen.__context__
    return None


def retry_after(error: BaseException) -> float:
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if response is not None:
            text = response.headers.get("Retry-After", "")
            return min(float(text), 300.0) if text.isdecimal() else 0.0
        seen = seen.__cause__ or seen.__context__
    return 0.0


def explain(error: Exception, what: str, name: str, kind: str, *, reading: bool = False) -> HubError:
    """The HubError for what the client raised while doing `what`."""
    import httpx
    from huggingface_hub import errors, get_token

    status = status_of(error)
    at = page(name, kind)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return no_token()
    if isinstance(error, UnicodeEncodeError):
        return HubError(
            "the token for the Hub holds characters that a token cannot have", "check HF_TOKEN, or `hf auth login`"
        )
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{name}: access is gated", f"accept the licence at {at} with the account of your token")
    if isinstance(error, errors.RevisionNotFoundError):
        return NoRevision(f"{what}: no such branch, tag or commit", f"see {at}/tree/main")
    # Who shows no token is told 401 of what there is not, and of what is private.
    if isinstance(error, errors.RepositoryNotFoundError) and (status != 401 or (reading and get_token() is None)):
        return HubError(f"{name}: no such repository, or it is private", f"check the name at {at}, and `hf auth login`")
    by_status = {
        401: ("the Hub does not accept this token", f"make a new one at {TOKENS}, then `hf auth login` or HF_TOKEN"),
        403: (f"this token may not read {name}", f"give it access at {TOKENS}, or ask for it at {at}")
        if reading
        else (f"this token may not write to {name}", f"give it write access at {TOKENS}, or choose another --repo"),
        404: ("the Hub does not have it", f"check {at}"),
        409: ("that name is taken, or is being created right now", f"see {at}, and try again"),
        413: (
            "the Hub does not accept a file of that size",
            "make smaller ones with `ggufy export --split-max-size 20G`",
        ),
    }
    if status in by_status:
        message, hint = by_status[status]
        return HubError(f"{what}: {message}", hint)
    if status is not None and status not in _PASSING:
        return HubError(f"{what}: the Hub refuses it ({status}): {_first_line(error)}", f"see {at}")
    if status is not None:
        return Unreachable(
            f"{what}: the Hub still answers {status} after several tries",
            "run the same command again later to continue with what has not arrived yet",
        )
    if isinstance(root(error), httpx.TransportError | OSError | errors.OfflineModeIsEnabled):
        return Unreachable(f"{what}: the Hub cannot be reached: {download.deepest(error)}", OFFLINE)
    return HubError(
        f"{what}: {download.deepest(error)}", f"see {at}; run it with `ggufy --debug` to see where it happened"
    )


def no_token() -> HubError:
    return HubError("no token for the Hub", f"make one with write access at {TOKENS}, then `hf auth login` or HF_TOKEN")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__
