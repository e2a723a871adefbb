"""Write files safely: synced to the disk, and whole or not at all."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufy.system import digest

log = logging.getLogger("ggufy")


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON so that after a crash there is the old file or the new one, never a part of either."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync(path.parent)


def settle(files: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Force files to the disk and hash them, several at a time: what a stamp says of each."""
    with ThreadPoolExecutor(4) as pool:
        hashes = [pool.submit(digest.of_file, file) for file in files]
        for _ in pool.map(sync, files):
            pass
        states = [file.stat() for file in files]
        return {
            file: {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": hashed.result()}
            for file, state, hashed in zip(files, states, hashes, strict=True)
        }


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 1e6:,.1f} MB" if count < 2e9 else f"{count / 1e9:,.2f} GB"


@contextmanager
def held(folder: Path, waiting: str = "") -> Iterator[None]:
    """Wait until no other process of ggufy holds the folder, and hold it. Where it has to wait, `waiting` is said."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                log.info("%s", waiting)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems lock no folders; there two processes at once may both write.
            pass
        yield
    finally:
        os.close(handle)
