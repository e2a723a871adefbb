"""Search every file of a push for what must not leave this machine: API keys, and paths of this disk."""

from __future__ import annotations

import hashlib
import netrc
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ggufy.errors import HubError
from ggufy.system import keys, user_folders

_BLOCK = 1 << 22
_OVERLAP = 1 << 10
# Beginning -> how a key goes on. Searched for by the beginning, which is what makes gigabytes quick.
_KEYS = (
    (b"hf_", re.compile(rb"hf_[A-Za-z0-9]{30,}"), "a Hugging Face token"),
    # At the beginning of a word, and with capitals and digits in it: addresses of pages have long words with hyphens.
    (
        b"sk-",
        re.compile(rb"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z_-]*[0-9])(?=[a-z0-9_-]*[A-Z])[A-Za-z0-9_-]{32,}"),
        "an OpenAI key",
    ),
    (b"wandb_v1_", re.compile(rb"wandb_v1_[A-Za-z0-9_]{20,}"), "a W&B key"),
    (b"WANDB_API_KEY", re.compile(rb"WANDB_API_KEY[\"']?\s*[=:]\s*[\"']?[0-9a-f]{40}"), "a W&B key"),
)


def known_keys() -> list[bytes]:
    """The keys of this process and of the logins that the libraries keep."""
    from huggingface_hub import get_token

    found = [*keys.values(), get_token() or ""]
    try:
        login = netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai")
        found.append(login[2] or "" if login else "")
    except (OSError, netrc.NetrcParseError):
        pass
    return [key.encode() for key in dict.fromkeys(found) if len(key) >= 8]


def places(folder: Path) -> list[bytes]:
    """Absolute paths that say where on this disk a run was made."""
    from huggingface_hub import constants

    here = {
        folder.resolve(),
        folder.resolve().parent,
        Path.cwd(),
        Path.home(),
        user_folders.cache(),
        Path(constants.HF_HOME),
    }
    return [f"{path.as_posix()}/".encode() for path in here if path != Path(path.anchor)]


def sha256(path: str, source: Path | bytes, known: Sequence[bytes], paths: Sequence[bytes]) -> str:
    """The sha256 of what is to be sent as `path`. Raises HubError where a key or a path of this disk is in it.

    The vocabulary of a tokenizer may hold any word, so in its files no paths are looked for.
    """
    digest = hashlib.sha256()
    tokenizer = Path(path).name.startswith("tokenizer")
    tail = b""
    where = source.as_posix() if isinstance(source, Path) else path
    for block in _blocks(source):
        digest.update(block)
        window = tail + block
        look(where, window, known, () if tokenizer else paths)
        tail = window[-_OVERLAP:]
    return digest.hexdigest()


def look(where: str, content: bytes, known: Sequence[bytes], paths: Sequence[bytes]) -> None:
    """Raises HubError, which names the place and never the key, where a key or a path of this disk is in a content."""
    found = next((what for start, pattern, what in _KEYS if _matches(content, start, pattern)), None)
    if found or any(key in content for key in known):
        raise HubError(
            f"{where} holds {found or 'a key that this environment holds'}; nothing was sent",
            "remove it, and make a new key if somebody may have seen this one",
        )
    if place := next((place for place in paths if place in content), None):
        raise HubError(
            f"{where} names a folder of this machine ({place.decode()}); nothing was sent",
            "name files relative to the folder ggufy is started in",
        )


def look_in_names(*texts: str | None) -> None:
    """Raises HubError where a name of a repository, branch or tag, or a commit's message, holds a key."""
    known = known_keys()
    for text in texts:
        look("a name or the commit's message", (text or "").encode(), known, ())


def _blocks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _matches(window: bytes, start: bytes, pattern: re.Pattern[bytes]) -> bool:
    at = window.find(start)
    while at >= 0:
        if pattern.match(window, at):
            return True
        at = window.find(start, at + 1)
    return False
