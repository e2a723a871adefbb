"""What the loopback Hub keeps: people, repositories with commits and branches, and objects by their hash."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGE = (".safetensors", ".gguf", ".pt", ".pth", ".bin", ".png", ".parquet")


@dataclass
class Entry:
    """One file of a commit. `oid` is git's for a small file, the sha256 for a large one."""

    oid: str
    size: int
    large: bool

    def listed(self, path: str, xet: str | None) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.large:
            found["oid"] = hashlib.sha1(pointer(self)).hexdigest()
            found["lfs"] = {"oid": self.oid, "size": self.size, "pointerSize": len(pointer(self))}
            if xet:
                found["xetHash"] = xet
        return found


def pointer(entry: Entry) -> bytes:
    """The text that git keeps in the place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.oid}\nsize {entry.size}\n".encode()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Commit:
    oid: str
    parent: str | None
    message: str
    files: dict[str, Entry]


@dataclass
class Repo:
    kind: str
    name: str
    private: bool = False
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.branches:
            self.branches["main"] = self.add(None, "initial commit", {})

    def add(self, parent: str | None, message: str, files: dict[str, Entry]) -> str:
        named = (
            f"{self.kind}{self.name}{parent}{len(self.commits)}{message}{sorted((p, e.oid) for p, e in files.items())}"
        )
        oid = hashlib.sha1(named.encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, message, files)
        return oid

    def at(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)


@dataclass
class Person:
    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()
    admitted: tuple[str, ...] = ()
    """The gated repositories whose licence this person has accepted."""

    def may_write(self, namespace: str) -> bool:
        return self.role == "write" and namespace in (self.name, *self.orgs)


class Store:
    """The whole state, behind one lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "objects").mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.people: dict[str, Person] = {}

    def repo(self, kind: str, name: str) -> Repo | None:
        return self.repos.get((kind, name))

    def create(self, kind: str, name: str, **facts: Any) -> Repo:
        self.repos[(kind, name)] = Repo(kind, name, **facts)
        return self.repos[(kind, name)]

    def object(self, oid: str) -> Path:
        return self.folder / "objects" / oid

    def holds(self, oid: str) -> bool:
        return self.object(oid).is_file() or self.xet_hash(oid) is not None

    def put(self, data: bytes, *, large: bool) -> Entry:
        oid = hashlib.sha256(data).hexdigest() if large else git_oid(data)
        beside = self.object(f".{oid}.{threading.get_ident()}")
        beside.write_bytes(data)
        beside.replace(self.object(oid))
        return Entry(oid, len(data), large)

    def xet_hash(self, sha256: str) -> str | None:
        """The Xet hash of a large file, read from the shards that the Xet client left in its local store.

        A shard is entries of 48 bytes: a file's header (its hash, flags, how many segments), the segments, as many
        verification entries where bit 31 of the flags is set, and the sha256 where bit 30 is.
        """
        wanted = bytes.fromhex(sha256)
        for shard in (self.folder / "xet").rglob("*.mdb"):
            data = shard.read_bytes()
            at = 48
            while at + 48 <= len(data) and data[at : at + 32] != b"\xff" * 32:
                flags = int.from_bytes(data[at + 32 : at + 36], "little")
                count = int.from_bytes(data[at + 36 : at + 40], "little")
                after = at + 48 * (1 + count + (count if flags & 1 << 31 else 0))
                if flags & 1 << 30:
                    if _xet_order(data[after : after + 32]) == wanted or data[after : after + 32] == wanted:
                        return _xet_order(data[at : at + 32]).hex()
                    after += 48
                at = after
        return None

    def assemble(self, oid: str) -> None:
        """Put a file together from the blocks that came through Xet, by Xet's own client, as the Hub's bridge does."""
        from hf_xet import XetFileInfo, XetSession

        beside = self.object(f".{oid}.{threading.get_ident()}")
        sizes = {
            e.size for r in self.repos.values() for c in r.commits.values() for e in c.files.values() if e.oid == oid
        }
        place = f"local://{self.folder / 'xet'}"
        with XetSession().new_file_download_group(endpoint=place) as group:
            group.start_download_file(XetFileInfo(self.xet_hash(oid), sizes.pop()), str(beside))
        beside.replace(self.object(oid))


def _xet_order(raw: bytes) -> bytes:
    """Xet's hashes are four little-endian numbers, written out as numbers."""
    return b"".join(raw[i : i + 8][::-1] for i in range(0, 32, 8))
