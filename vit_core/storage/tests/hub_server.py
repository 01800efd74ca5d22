"""A stand-in for the Hugging Face Hub on this machine: as much of its HTTP interface as reading, pushing, timm and
transformers use. As in the Hub, a commit is all of its files or does not exist, and large files are served from
another address than the one that is asked."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import close_session

from vit_core.storage.object_store import _client

TOKEN = "hf_" + "t0ken" * 6
LARGE = 2000
"""Size in bytes from which files are "LFS files", which are uploaded to and served from another address."""


@dataclass
class Request:
    """A request as it came."""

    method: str
    path: str
    """Decoded, without the query."""
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What is sent back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """Content-Length, where it is not the body's."""

    @classmethod
    def of(cls, value: object, status: int = 200, **headers: str) -> "Answer":
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    @classmethod
    def error(cls, status: int, code: str = "", message: str = "") -> "Answer":
        return cls.of({"error": message or code}, status, **({"X-Error-Code": code} if code else {}))


@dataclass
class Repository:
    """A model's repository."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Hash -> files, all of them."""
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        contents = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in files.items())
        number = hashlib.sha1(f"{len(self.commits)} {contents}".encode()).hexdigest()  # readers keep what it names
        self.commits[number] = files
        self.refs[ref] = number
        return number

    def files(self, ref: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs.get(ref, ref)]


class Hub:
    """The state of the server, and how it answers."""

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        """SHA-256 -> large file that was uploaded."""
        self.log: list[Request] = []
        self.instead: Callable[[Request], Answer | None] = lambda request: None
        """Answers in place of the server, for tests of failures."""

    def put(self, repository: str, files: dict[str, bytes], ref: str = "main") -> str:
        """Adds a commit with these files; gives its hash."""
        return self.repositories.setdefault(repository, Repository()).commit(files, ref)

    def fetched(self, name: str) -> list[tuple[int, int]]:
        """The ranges of a file of any repository that were asked for, as (start, end); other requests are (-1, -1)."""
        ranges = []
        for request in self.log:
            if request.method == "GET" and request.path.endswith(f"/{name}") and "/resolve/" in request.path:
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
                ranges.append((int(found[1]), int(found[2]) + 1) if found else (-1, -1))
        return ranges

    def answer(self, request: Request) -> Answer:
        self.log.append(request)
        if instead := self.instead(request):
            return instead
        authorised = request.headers.get("authorization") == f"Bearer {TOKEN}"
        path = request.path
        if path.startswith("/stored/"):
            return self._store(request)
        if request.method == "POST" and not authorised:
            return Answer.error(401, message="Invalid username or password.")
        if path == "/api/validate-yaml":
            return Answer.of({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(request.body))
        found = re.match(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?(?:/([^/]+)(?:/(.*))?)?$", path)
        repository = self.repositories.get(found[1]) if found else None
        if found is None or repository is None or (repository.private and not authorised):
            return Answer.error(404 if authorised else 401, "RepoNotFound", "Repository not found")
        verb, rest = found[2] or "", found[3] or ""
        if verb in ("", "revision"):
            return self._info(found[1], repository, rest or "main")
        if verb in ("tree", "paths-info", "resolve"):
            return self._read(verb, request, found[1], repository, rest, authorised)
        return self._write(verb, request, found[1], repository, rest)

    def _info(self, name: str, repository: Repository, ref: str) -> Answer:
        commit = repository.refs.get(ref, ref)
        if commit not in repository.commits:
            return Answer.error(404, "RevisionNotFound")
        siblings = [{"rfilename": file} for file in repository.commits[commit]]
        return Answer.of(
            {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def _read(
        self, verb: str, request: Request, name: str, repository: Repository, rest: str, authorised: bool
    ) -> Answer:
        refs = sorted([*repository.refs, *repository.commits], key=len, reverse=True)
        ref = next((ref for ref in refs if rest == ref or rest.startswith(f"{ref}/")), None)
        if ref is None:
            return Answer.error(404, "RevisionNotFound")
        inside, files = rest[len(ref) + 1 :], repository.files(ref)
        if verb == "tree":
            recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = _tree(files, inside, recursive)
            return Answer.of(entries) if entries else Answer.error(404, "EntryNotFound")
        if verb == "paths-info":
            wanted = parse_qs(request.body.decode())["paths"]
            return Answer.of([_entry(path, files[path]) for path in wanted if path in files])
        if repository.gated and not authorised:
            return Answer.error(403, "GatedRepo", f"Access to model {name} is restricted.")
        if inside not in files:
            return Answer.error(404, "EntryNotFound")
        content, commit = files[inside], repository.refs.get(ref, ref)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        if len(content) < LARGE:
            return _ranged(request, content, headers)
        self.stored[_oid(content)] = content
        headers |= {"X-Linked-ETag": f'"{_oid(content)}"', "X-Linked-Size": str(len(content))}
        return Answer(302, b"", {**headers, "Location": f"{self.elsewhere}/stored/{_oid(content)}?signature=secret"})

    @property
    def elsewhere(self) -> str:
        """The same server under another name, to which no token must be sent."""
        return self.address.replace("127.0.0.1", "localhost")

    def _store(self, request: Request) -> Answer:
        number = request.path.rpartition("/")[2]
        if request.method == "PUT":
            if _oid(request.body) != number:
                return Answer.error(400, message="another checksum")
            self.stored[number] = request.body
            return Answer()
        return _ranged(request, self.stored[number], {"ETag": f'"{number}"', "Accept-Ranges": "bytes"})

    def _create(self, wish: dict[str, Any]) -> Answer:
        name = f"{wish['organization']}/{wish['name']}"
        if name.startswith("others/"):
            return Answer.error(403, message="You don't have the rights to create a model under others")
        if name in self.repositories:
            return Answer.error(409, message="You already created this model repo")
        private = wish.get("private") is True or wish.get("visibility") == "private"
        self.repositories[name] = Repository(private=private)
        self.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return Answer.of({"url": f"{self.address}/{name}"})

    def _write(self, verb: str, request: Request, name: str, repository: Repository, rest: str) -> Answer:
        if name.startswith("others/"):
            return Answer.error(403, message="Forbidden: you have no right to write here")
        if verb == "branch":
            repository.refs[rest] = repository.refs["main"]
            return Answer.of({})
        if verb == "preupload":
            files = json.loads(request.body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular", "shouldIgnore": False}
                for f in files
            ]
            return Answer.of({"files": modes})
        if verb == "info" and rest == "lfs/objects/batch":
            return Answer.of(
                {"transfer": "basic", "objects": [self._upload(o) for o in json.loads(request.body)["objects"]]}
            )
        if verb == "commit":
            return self._commit(request, name, repository, rest)
        return Answer.error(404)

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.stored:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.elsewhere}/stored/{wanted['oid']}", "header": {}}}}

    def _commit(self, request: Request, name: str, repository: Repository, ref: str) -> Answer:
        if ref not in repository.refs:
            return Answer.error(404, "RevisionNotFound")
        files = dict(repository.files(ref))
        for line in map(json.loads, request.body.decode().splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit", repository.refs[ref]) != repository.refs[ref]:
                        return Answer.error(412, message="A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.stored[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        number = repository.commit(files, ref)
        return Answer.of({"success": True, "commitUrl": f"{self.address}/{name}/commit/{number}", "commitOid": number})


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _oid(content)[:40]}
    if len(content) >= LARGE:
        entry["lfs"] = {"oid": _oid(content), "size": len(content), "pointerSize": 130}
    return entry


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix, entries, folders = f"{folder}/" if folder else "", [], set()
    for path, content in files.items():
        if path.startswith(prefix):
            inner = path[len(prefix) :].split("/")
            folders |= {prefix + "/".join(inner[:depth]) for depth in range(1, len(inner)) if recursive or depth == 1}
            if recursive or len(inner) == 1:
                entries.append(_entry(path, content))
    return [*({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)), *entries]


def _ranged(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if found is None:
        return Answer(200, content, headers)
    start, end = int(found[1]), min(int(found[2] or len(content)) + 1, len(content))
    return Answer(206, content[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})


@contextmanager
def serving() -> Iterator[Hub]:
    """A server on a free port, for as long as the context lasts; `Hub.address` is where."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, unquote(parts.path), parse_qs(parts.query), headers, self._body(headers))
            answer = hub.answer(request)
            self.send_response(answer.status)
            length = len(answer.body) if answer.length is None else answer.length
            for name, value in {"Content-Length": str(length), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
            if length != len(answer.body):
                self.close_connection = True

        def _body(self, headers: dict[str, str]) -> bytes:
            if headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(headers.get("content-length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Ignores closed connections, which are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(address: str, patch: pytest.MonkeyPatch) -> None:
    """Makes huggingface_hub of this process, which reads HF_ENDPOINT as it is imported, use an address."""
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(hf_api.api, "endpoint", address)
    for name, value in {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
        patch.setenv(name, value)
    patch.delenv("HF_TOKEN", raising=False)
    patch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    _client.cache_clear()
    close_session()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub; huggingface_hub finds it, and nobody is logged in."""
    with serving() as server:
        use(server.address, monkeypatch)
        yield server
    _client.cache_clear()
    close_session()
