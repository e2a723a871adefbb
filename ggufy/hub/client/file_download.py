"""Download files of a repository: killed downloads are continued, and hashes are compared with the Hub's.

The Hub's client begins a file again after a kill, and takes a corrupt file of the right length for the right one.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from ggufy.errors import HubError, Unverified
from ggufy.hub.client import session
from ggufy.hub.client.upload import Remote, Target
from ggufy.hub.contents.facts import amount
from ggufy.model.download import matches
from ggufy.system.disk import sync

log = logging.getLogger("ggufy")

_ROOM = 50_000_000


def room_for(folder: Path, size: int) -> None:
    """Raises HubError where that much does not fit on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size + _ROOM > free:
        raise HubError(
            f"{amount(size)} must be downloaded to {folder.as_posix()}, and {amount(free)} are free",
            "free some space, or choose another disk",
        )


def fetch(target: Target, remote: Remote, path: str, out: Path) -> Path:
    """Download a file to `out`, which gets its name when its hash is the one that the Hub lists."""
    entry = remote.files.get(path)
    if entry is None:
        raise HubError(
            f"{target.name} has no file {path}", f"see {session.page(target.repo, target.kind, '/tree/main')}"
        )
    if matches(out, entry):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{entry.blob_id[:12]}.partial")
    for attempt in (1, 2):
        session.ask(
            f"download {path} of {target.name}",
            lambda: _stream(target, remote, path, partial),
            name=target.repo,
            kind=target.kind,
            reading=True,
        )
        if matches(partial, entry):
            sync(partial)
            partial.replace(out)
            sync(out.parent)
            return out
        partial.unlink()
        if attempt == 1:
            log.info("%s arrived with different content than the Hub lists; downloading it again", path)
    raise Unverified(
        f"{path} of {target.name} arrives with different content than the Hub lists",
        "try again later, or on another network",
    )


def read(target: Target, remote: Remote, path: str) -> bytes:
    """What a small file holds. Nothing is kept, so that commands that read the same one at once do not meet."""
    with tempfile.TemporaryDirectory(prefix="ggufy-") as folder:
        return fetch(target, remote, path, Path(folder) / "file").read_bytes()


def _stream(target: Target, remote: Remote, path: str, partial: Path) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(target.repo, path, repo_type=target.kind, revision=remote.head)
    size = remote.files[path].size
    headers = build_hf_headers(library_name="ggufy")
    headers["Accept-Encoding"] = "identity"
    location = get_hf_file_metadata(url, headers=headers).location
    if urlsplit(location).netloc != urlsplit(url).netloc:
        # The store of large files gets a signed address, and not the token.
        headers.pop("authorization", None)
    with partial.open("ab") as file:
        if file.tell() > size:
            file.truncate(0)
        if file.tell():
            log.info("continuing %s at %s of %s", path, amount(file.tell()), amount(size))
        start = file.tell()
        http_get(location, file, resume_size=start, headers=headers, expected_size=size, displayed_filename=path)
