"""A Hub on this machine, for tests: `python -m tests.hub.server FOLDER` prints its address and serves until killed.

It speaks what huggingface_hub asks of a Hub: accounts, repositories, branches, tags, trees, LFS, Xet by a local store,
commits, downloads. Whatever is sent is recorded in FOLDER/requests.jsonl, bodies in FOLDER/bodies. `POST /_/state`
makes people and repositories, `POST /_/faults` orders the next requests of a kind to go wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.store import LARGE, Entry, Person, Repo, Store

_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
_BLOCK = 1 << 14


class Gone(Exception):
    """The connection is cut here."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, *, xet: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.xet, self.resets = folder, xet, 0
        self.released = threading.Event()
        self.reset()
        self.numbers = iter(range(1, 1_000_000))
        self.lock = threading.Lock()

    def reset(self) -> None:
        """An empty Hub, with a folder of its own."""
        self.released.set()
        self.released = threading.Event()
        self.resets += 1
        self.folder = self.root / str(self.resets)
        self.store = Store(self.folder)
        self.faults: list[dict[str, Any]] = []
        (self.folder / "bodies").mkdir(exist_ok=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], Gone | ConnectionError):
            super().handle_error(request, client_address)

    def fault(self, method: str, target: str) -> dict[str, Any]:
        """The fault that is due for this request; each is used up after `times`."""
        with self.lock:
            for fault in self.faults:
                if fault["times"] > 0 and fault["method"] in (method, "*") and re.search(fault["path"], target):
                    if fault.get("after", 0) > 0:
                        fault["after"] -= 1
                        continue
                    fault["times"] -= 1
                    return fault
        return {}


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        if self.route.startswith("/_/"):
            return self._control()
        self.number = next(self.server.numbers)
        self.fault = self.server.fault(self.command, self.route)
        self.recorded = False
        body = self._body()
        self.received = len(body)
        if self.fault.get("hold") == "before":
            self._hold()
        if "status" in self.fault:
            return self._answer(
                self.fault["status"], {"error": f"ordered {self.fault['status']}"}, self.fault.get("headers", {})
            )
        try:
            return self._route(body)
        finally:
            self._record(len(body))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _body(self) -> bytes:
        length, data = int(self.headers.get("Content-Length") or 0), bytearray()
        chunked = "chunked" in (self.headers.get("Transfer-Encoding") or "")
        drop, slow = self.fault.get("drop"), self.fault.get("slow")
        with (self.server.folder / "bodies" / f"{self.number:05d}").open("wb") as copy:
            while True:
                if chunked:
                    size = int(self.rfile.readline().strip() or b"0", 16)
                    piece = self.rfile.read(size)
                    self.rfile.readline()
                else:
                    piece = self.rfile.read(min(_BLOCK, length - len(data)))
                if not piece:
                    break
                data += piece
                copy.write(piece)
                copy.flush()
                if drop is not None and len(data) >= drop:
                    self._record(len(data), cut=True)
                    self._cut()
                share = self.fault.get("hold")
                if isinstance(share, float) and len(data) >= share * length:
                    self._record(len(data), cut=True)
                    self._hold()
                if slow:
                    time.sleep(len(piece) / slow)
        if drop is not None:
            self._cut()
        if not chunked and len(data) < length:
            self._record(len(data), cut=True)
            self._cut()
        return bytes(data)

    def _hold(self) -> None:
        """Say that this request is held, and leave its client waiting: it is about to be killed."""
        (self.server.folder / "held").touch()
        self.server.released.wait()
        self._cut()

    def _record(self, received: int, *, cut: bool = False) -> None:
        if self.recorded:
            return
        self.recorded = True
        span = self.headers.get("Range")
        line = {
            "n": self.number,
            "method": self.command,
            "path": self.route,
            "bytes": received,
            "cut": cut,
            "range": span,
        }
        with self.server.lock, (self.server.folder / "requests.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()
        raise Gone

    def _answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        if self.fault.get("lost"):
            self._cut()
        if self.fault.get("hold") == "after":
            self._record(self.received)
            self._hold()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def _person(self) -> Person | None:
        return self.server.store.people.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _route(self, body: bytes) -> None:
        if "Authorization" in self.headers and self._person() is None and not self.route.startswith(("/lfs/", "/cdn/")):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, self.route)
            if found and self.command in method.split():
                with self.server.store.lock if name not in ("_resolve", "_cdn", "_put") else threading.Lock():
                    getattr(self, name)(body, **found.groupdict())
                return None
        return self._refuse(404, "NotFound", f"no such endpoint {self.command} {self.route}")

    def _whoami(self, body: bytes) -> None:
        del body
        person = self._person()
        if person is None:
            return self._refuse(401, "", "Invalid username or password.")
        orgs = [{"name": org, "roleInOrg": "write", "type": "org"} for org in person.orgs]
        token = {"displayName": "test", "role": person.role}
        auth = {"type": "access_token", "accessToken": token}
        return self._answer(200, {"type": "user", "name": person.name, "orgs": orgs, "auth": auth})

    def _create(self, body: bytes) -> None:
        wanted, person, store = json.loads(body), self._person(), self.server.store
        if person is None:
            return self._refuse(401, "", "Invalid username or password.")
        namespace = wanted.get("organization") or person.name
        kind, name = wanted.get("type") or "model", f"{namespace}/{wanted['name']}"
        if not person.may_write(namespace):
            return self._refuse(
                403, "", f"You don't have the rights to create a {kind} under the namespace {namespace}"
            )
        url = f"{self._here()}/{name}"
        if store.repo(kind, name):
            return self._answer(409, {"error": "You already created this repo", "url": url})
        store.create(kind, name, private=bool(wanted.get("private") or wanted.get("visibility") == "private"))
        return self._answer(200, {"url": url, "name": name})

    def _here(self) -> str:
        return f"http://{self.headers['Host']}"

    def _find(self, kind: str, name: str, *, write: bool = False) -> Repo | None:
        """The repository, if this person may see it (or write to it); answers otherwise."""
        repo, person = self.server.store.repo(_KINDS[kind], name), self._person()
        own = person is not None and name.partition("/")[0] in (person.name, *person.orgs)
        if repo is None or (repo.private and not own):
            self._refuse(404 if person else 401, "RepoNotFound", "Repository not found")
        elif write and not (person and person.may_write(name.partition("/")[0])):
            self._refuse(403, "", "you do not have the rights to write to this repository")
        else:
            return repo
        return None

    def _admit(self, repo: Repo, name: str) -> bool:
        person = self._person()
        if repo.gated and not (person and (name in person.admitted or name.partition("/")[0] == person.name)):
            self._refuse(403, "GatedRepo", f"Access to {name} is restricted")
            return False
        return True

    def _info(self, body: bytes, kind: str, name: str, rev: str | None = None) -> None:
        del body
        if (repo := self._find(kind, name)) is None:
            return None
        if (commit := repo.at(rev or "main")) is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        files = [{"rfilename": path} for path in commit.files]
        facts = {"id": name, "sha": commit.oid, "private": repo.private, "cardData": repo.card, "siblings": files}
        return self._answer(200, {**facts, "gated": "manual" if repo.gated else False, "tags": [], "downloads": 0})

    def _auth(self, body: bytes, kind: str, name: str, write: str | None = None) -> None:
        del body
        repo = self._find(kind, name, write=bool(write))
        if repo is not None and self._admit(repo, name):
            self._answer(200, {})

    def _tree(self, body: bytes, kind: str, name: str, rev: str) -> None:
        del body
        if (repo := self._find(kind, name)) is None:
            return None
        if (commit := repo.at(rev)) is None:
            if repo.at(rev.partition("/")[0]):
                return self._refuse(404, "EntryNotFound", "no client that is tested lists a folder that is there")
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        xet = self.server.store.xet_hash
        return self._answer(
            200, [e.listed(p, xet(e.oid) if e.large and self.server.xet else None) for p, e in commit.files.items()]
        )

    def _history(self, body: bytes, kind: str, name: str, rev: str) -> None:
        del body
        if (repo := self._find(kind, name)) is None:
            return None
        if (commit := repo.at(rev)) is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        found, at = [], commit
        while True:
            facts = {"id": at.oid, "title": at.message, "message": "", "authors": []}
            found.append({**facts, "date": "2026-01-02T00:00:00.000Z"})
            if at.parent is None:
                return self._answer(200, found)
            at = repo.commits[at.parent]

    def _refs(self, body: bytes, kind: str, name: str) -> None:
        del body
        if (repo := self._find(kind, name)) is not None:
            listed = {
                key: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": oid} for n, oid in refs.items()]
                for key, where, refs in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
            }
            self._answer(200, {**listed, "converts": []})

    def _branch(self, body: bytes, kind: str, name: str, ref: str) -> None:
        if (repo := self._find(kind, name, write=True)) is None:
            return None
        if ref in repo.branches:
            return self._refuse(409, "", "Reference already exists")
        start = repo.at(json.loads(body or b"{}").get("startingPoint") or "main")
        if start is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        repo.branches[ref] = start.oid
        return self._answer(200, {})

    def _tag(self, body: bytes, kind: str, name: str, rev: str) -> None:
        if (repo := self._find(kind, name, write=True)) is None:
            return None
        tag, commit = json.loads(body)["tag"], repo.at(rev)
        if tag in repo.tags:
            return self._refuse(409, "", "Tag reference exists already")
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        repo.tags[tag] = commit.oid
        return self._answer(200, {})

    def _yaml(self, body: bytes) -> None:
        del body
        self._answer(200, {"errors": [], "warnings": []})

    def _preupload(self, body: bytes, kind: str, name: str, rev: str) -> None:
        if (repo := self._find(kind, name, write=True)) is None:
            return None
        if (commit := repo.at(rev)) is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        files = []
        rules = commit.files.get(".gitignore")
        ignored = self.server.store.object(rules.oid).read_text().split() if rules else []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(LARGE) or file["size"] > 10_000_000
            known = commit.files.get(file["path"])
            mode = {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": file["path"] in ignored,
            }
            files.append({**mode, "oid": known.oid if known else None})
        return self._answer(200, {"files": files})

    def _batch(self, body: bytes, kind: str | None, name: str) -> None:
        if self._find(kind or "models", name, write=True) is None:
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.server.store.object(wanted["oid"]).is_file():
                upload = {"href": f"{self._here()}/lfs/{wanted['oid']}", "header": {}}
                found["actions"] = {"upload": upload, "verify": {"href": f"{self._here()}/lfs-verify"}}
            objects.append(found)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(400, "", "the content does not have this sha256")
        self.server.store.put(body, large=True)
        return self._answer(200)

    def _verify(self, body: bytes) -> None:
        wanted = json.loads(body)
        held = self.server.store.object(wanted["oid"])
        good = held.is_file() and held.stat().st_size == wanted["size"]
        self._answer(200 if good else 404, {})

    def _xet(self, body: bytes, kind: str, name: str, what: str) -> None:
        del body
        if self._find(kind, name, write=what == "write") is None:
            return
        place = self.server.folder / "xet"
        place.mkdir(exist_ok=True)
        url, expires = f"local://{place}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(expires)}
        self._answer(200, {"casUrl": url, "accessToken": "x", "exp": expires}, headers)

    def _commit(self, body: bytes, kind: str, name: str, rev: str) -> None:
        if (repo := self._find(kind, name, write=True)) is None:
            return None
        if rev not in repo.branches:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        head, files = repo.branches[rev], dict(repo.commits[repo.branches[rev]].files)
        message = ""
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", head) != head:
                    return self._refuse(412, "", "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = self.server.store.put(base64.b64decode(value["content"]), large=False)
            elif key == "lfsFile":
                if not self.server.store.holds(value["oid"]):
                    return self._refuse(400, "", f"the large file {value['path']} was not uploaded")
                files[value["path"]] = Entry(value["oid"], value["size"], large=True)
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                files = {p: e for p, e in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
        oid = repo.branches[rev] = repo.add(head, message, files)
        return self._answer(200, {"commitUrl": f"{self._here()}/{name}/commit/{oid}", "commitOid": oid})

    def _resolve(self, body: bytes, kind: str | None, name: str, rev: str, path: str) -> None:
        del body
        repo = self._find(kind or "models", name)
        if repo is None or not self._admit(repo, name):
            return None
        if (commit := repo.at(rev)) is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        headers = {"X-Repo-Commit": commit.oid}
        if (entry := commit.files.get(path)) is None:
            return self._answer(404, {}, {**headers, "X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{entry.oid}"'
        if not entry.large:
            return self._send(self.server.store.object(entry.oid), headers)
        # Another host name than the one that was asked: the client must not take its token there.
        host = self.headers["Host"].replace("127.0.0.1", "localhost")
        headers |= {"X-Linked-Etag": f'"{entry.oid}"', "X-Linked-Size": str(entry.size)}
        if self.server.xet and (found := self.server.store.xet_hash(entry.oid)):
            route = f"{self._here()}/api/{kind or 'models'}/{name}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": found, "X-Xet-Refresh-Route": route}
        return self._answer(302, b"", {**headers, "Location": f"http://{host}/cdn/{entry.oid}"})

    def _cdn(self, body: bytes, oid: str) -> None:
        del body
        if "Authorization" in self.headers:
            return self._refuse(400, "", "a token was sent to the file store")
        path = self.server.store.object(oid)
        if not path.is_file():
            self.server.store.assemble(oid)
        return self._send(path, {"ETag": f'"{oid}"'})

    def _send(self, path: Path, headers: dict[str, str]) -> None:
        data = path.read_bytes()
        status, start, fault = 200, 0, self.fault if self.command == "GET" else {}
        if fault.get("corrupt"):
            data = bytes([data[0] ^ 1]) + data[1:]
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, start = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        part = data[start:]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(part)), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for at in range(0, len(part), _BLOCK):
            piece = part[at : at + _BLOCK]
            if (cut := fault.get("cut")) is not None and at + len(piece) > cut:
                self.wfile.write(piece[: cut - at])
                self.wfile.flush()
                self._cut()
            self.wfile.write(piece)
            if fault.get("hold") == "sending" and 2 * at >= len(part):
                self.wfile.flush()
                self._record(0, cut=True)
                self._hold()
            if slow := fault.get("slow"):
                time.sleep(len(piece) / slow)

    def _control(self) -> None:
        """The tests' own side."""
        self.fault = {}
        wanted = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        store = self.server.store
        if self.route == "/_/reset":
            self.server.reset()
            store = self.server.store
        elif self.route == "/_/faults":
            self.server.released.set()
            (self.server.folder / "held").unlink(missing_ok=True)
            self.server.released = threading.Event()
            self.server.faults = [{"times": 1, **fault} for fault in wanted]
        elif self.route == "/_/state":
            for token, facts in wanted.get("people", {}).items():
                store.people[token] = Person(**facts)
            for facts in wanted.get("repos", []):
                files = {p: t.encode() for p, t in facts.pop("files", {}).items()}
                if place := facts.pop("folder", None):
                    held = (p for p in Path(place).rglob("*") if p.is_file())
                    files |= {p.relative_to(place).as_posix(): p.read_bytes() for p in held}
                repo = store.create(**facts)
                entries = {p: store.put(data, large=p.endswith(LARGE)) for p, data in files.items()}
                repo.branches["main"] = repo.add(repo.branches["main"], "files", entries)
        elif self.route == "/_/edit":
            repo = store.repos[(wanted["kind"], wanted["name"])]
            head = repo.branches[wanted["branch"]]
            files = dict(repo.commits[head].files)
            if wanted["text"] is None:
                del files[wanted["path"]]
            else:
                files[wanted["path"]] = store.put(wanted["text"].encode(), large=wanted["path"].endswith(LARGE))
            repo.branches[wanted["branch"]] = repo.add(head, "somebody else's", files)
        seen = {
            f"{repo.kind}:{repo.name}": {
                "private": repo.private,
                "branches": repo.branches,
                "tags": repo.tags,
                "commits": len(repo.commits),
                "files": {
                    b: {p: [e.oid, e.size] for p, e in repo.commits[o].files.items()} for b, o in repo.branches.items()
                },
            }
            for repo in store.repos.values()
        }
        left = [fault for fault in self.server.faults if fault["times"]]
        self._answer(200, {"repos": seen, "faults_left": left, "folder": str(self.server.folder)})


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
_ROUTES = (
    ("GET", r"/api/whoami-v2", "_whoami"),
    ("POST", r"/api/repos/create", "_create"),
    ("POST", r"/api/validate-yaml", "_yaml"),
    ("GET HEAD", _API, "_info"),
    ("GET HEAD", _API + r"/revision/(?P<rev>.+)", "_info"),
    ("GET", _API + r"/auth-check(?P<write>/write)?", "_auth"),
    ("GET", _API + r"/tree/(?P<rev>.+)", "_tree"),
    ("GET", _API + r"/commits/(?P<rev>.+)", "_history"),
    ("GET", _API + r"/refs", "_refs"),
    ("POST", _API + r"/branch/(?P<ref>.+)", "_branch"),
    ("POST", _API + r"/tag/(?P<rev>.+)", "_tag"),
    ("POST", _API + r"/preupload/(?P<rev>.+)", "_preupload"),
    ("POST", _API + r"/commit/(?P<rev>.+)", "_commit"),
    ("GET", _API + r"/xet-(?P<what>read|write)-token/.+", "_xet"),
    ("POST", r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "_put"),
    ("POST", r"/lfs-verify", "_verify"),
    ("GET HEAD", r"/cdn/(?P<oid>[0-9a-f]+)", "_cdn"),
    (
        "GET HEAD",
        r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
        "_resolve",
    ),
)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder, xet="--xet" in sys.argv[2:])
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
