"""Hashes: of files, of plain values, of large weight files by sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20
_SAMPLES = 64


def of_values(values: Any) -> str:
    """sha256 of anything JSON can hold, independent of key order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def of_file(path: Path) -> str:
    """sha256 of a whole file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def of_sample(path: Path) -> str:
    """A quick content hash for large weight files: the size, both ends and 64 blocks between, 64 KiB each.

    It does not depend on times or paths, so it holds on another machine; it tells checkpoints apart, and is no
    defence against somebody who forges one.
    """
    size, piece = path.stat().st_size, 1 << 16
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for index in range(_SAMPLES + 1):
            file.seek(max(0, size - piece) * index // _SAMPLES)
            digest.update(file.read(piece))
    return digest.hexdigest()


def of_folder(folder: Path, patterns: Iterable[str], *, whole: bool = False) -> str:
    """One hash over the files of a folder that match; weight files by sample unless `whole`, the others whole."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    large = set() if whole else {".safetensors", ".gguf"}
    return of_values({p.name: of_sample(p) if p.suffix in large else of_file(p) for p in files})


def of_git_blob(path: Path) -> str:
    """Git's hash of a file's content, by which the Hub names small files."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
