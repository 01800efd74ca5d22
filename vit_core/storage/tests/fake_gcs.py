"""A stand-in for Google Cloud Storage: its JSON API in memory, as far as gcsfs, TensorStore and Orbax use it."""

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
from urllib.parse import parse_qsl, unquote, urlsplit

Before = Callable[[str, str], None]
"""Called with a verb ("put", "get", "delete") and an object's name before it is done; what it raises (but Refused)
breaks the connection."""


class Refused(Exception):
    """To be answered with a status."""


@dataclass
class Store:
    """Buckets of objects: name -> (content, generation). Every write is atomic and seen by all at once, as there."""

    address: str = ""
    buckets: dict[str, dict[str, tuple[bytes, int]]] = field(default_factory=lambda: {"bucket": {}})
    before: Before = lambda verb, name: None
    refuse: int = 0
    """The status that everything is answered with, where it is not 0."""
    generation: int = 0
    uploads: dict[str, tuple[str, str, dict[str, str], bytes]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    log: list[tuple[str, str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What points clients here."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "abc",
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask for the kind of bucket, by gRPC
        }

    def names(self, prefix: str = "", bucket: str = "bucket") -> list[str]:
        with self.lock:
            return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

    def does(self, verb: str, name: str) -> None:
        self.log.append((verb, name))
        self.before(verb, name)

    def put(self, bucket: str, name: str, content: bytes, conditions: dict[str, str]) -> tuple[int, Any]:
        self.does("put", name)
        with self.lock:
            if refused := self.refused(bucket, name, conditions):
                return refused
            self.generation += 1
            self.buckets[bucket][name] = content, self.generation
            return 200, self.described(bucket, name)

    def refused(self, bucket: str, name: str, conditions: dict[str, str]) -> tuple[int, Any] | None:
        """The answer where a bucket is not there or generations are not as the conditions have it."""
        if bucket not in self.buckets:
            return 404, "The specified bucket does not exist."
        _, now = self.buckets[bucket].get(name, (b"", 0))
        if "ifGenerationMatch" in conditions and int(conditions["ifGenerationMatch"]) != now:
            return 412, "conditionNotMet"
        if "ifGenerationNotMatch" in conditions and int(conditions["ifGenerationNotMatch"]) == now:
            return 304, None
        return None

    def described(self, bucket: str, name: str) -> dict[str, str]:
        content, generation = self.buckets[bucket][name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def listed(self, bucket: str, query: dict[str, str]) -> tuple[int, Any]:
        with self.lock:
            if bucket not in self.buckets:
                return 404, "The specified bucket does not exist."
            prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
            first, end = query.get("startOffset", ""), query.get("endOffset") or "\U0010ffff"
            entries: dict[str, Any] = {}
            for name in self.names(prefix, bucket):
                inside = name[len(prefix) :]
                if first <= name < end:
                    if delimiter and delimiter in inside:
                        entries[prefix + inside.partition(delimiter)[0] + delimiter] = None
                    else:
                        entries[name] = self.described(bucket, name)
            after = query.get("pageToken", "")
            left = [name for name in sorted(entries) if name > after]
            page = left[: int(query.get("maxResults", 1000))]
            answer = {
                "kind": "storage#objects",
                "items": [entries[name] for name in page if entries[name]],
                "prefixes": [name for name in page if not entries[name]],
            }
            return 200, answer | ({"nextPageToken": page[-1]} if len(page) < len(left) else {})

    def delete(self, bucket: str, name: str, conditions: dict[str, str]) -> tuple[int, Any]:
        self.does("delete", name)
        with self.lock:
            if refused := self.refused(bucket, name, conditions):
                return refused
            return (204, None) if self.buckets[bucket].pop(name, None) else (404, f"No such object: {name}")

    def copied(self, bucket: str, name: str, to: tuple[str, str], move: bool) -> tuple[int, Any]:
        if name not in self.buckets.get(bucket, {}):
            return 404, f"No such object: {name}"
        status, described = self.put(*to, self.buckets[bucket][name][0], {})
        if move:
            self.delete(bucket, name, {})
        return status, {"done": True, "resource": described, **(described if move else {})}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignores broken connections, because tests kill clients."""


class Handler(BaseHTTPRequestHandler):
    protocol_version, store = "HTTP/1.1", Store()
    wbufsize, disable_nagle_algorithm = -1, True  # else every answer takes 40 ms

    def log_message(self, *_: object) -> None: ...

    def handle_any(self) -> None:
        url, body = urlsplit(self.path), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if self.store.refuse:
                self.answer(self.store.refuse, "refused")
            else:
                self.route(url.path, dict(parse_qsl(url.query)), body)
        except Refused as refused:
            self.answer(refused.args[0], "refused")
        except Exception:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        store, verb = self.store, self.command
        if path.startswith("/batch/"):
            self.batch(body)
        elif match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            self.upload(unquote(match[1]), query, body)
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)(/o)?", path):
            bucket = unquote(match[1])
            there = {"kind": "storage#bucket", "name": bucket}
            whole = (200, there) if bucket in store.buckets else (404, "The specified bucket does not exist.")
            self.answer(*(store.listed(bucket, query) if match[2] else whole))
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/(rewriteTo/b/([^/]+)|moveTo)/o/([^/]+)", path):
            source, name, how, target, to = (unquote(part or "") for part in match.groups())
            self.answer(*store.copied(source, name, (target or source, to), how == "moveTo"))
        elif match := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)", path):
            bucket, name = unquote(match[1]), unquote(match[2])
            self.answer(*store.delete(bucket, name, query)) if verb == "DELETE" else self.read(bucket, name, query)
        else:
            self.answer(501, f"{verb} {path} is not known here")

    def read(self, bucket: str, name: str, query: dict[str, str]) -> None:
        if query.get("alt") == "media":
            self.store.does("get", name)
        refused = self.store.refused(bucket, name, query)
        if refused or name not in self.store.buckets[bucket]:
            self.answer(*(refused or (404, f"No such object: {name}")))
        elif query.get("alt") != "media":
            self.answer(200, self.store.described(bucket, name))
        else:
            content, generation = self.store.buckets[bucket][name]
            headers, status = {"x-goog-generation": str(generation), "x-goog-stored-content-encoding": "identity"}, 200
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
                if first >= len(content):
                    return self.answer(416, "The requested range is not satisfiable")
                headers["Content-Range"], status = f"bytes {first}-{last}/{len(content)}", 206
                content = content[first : last + 1]
            self.answer(status, content, headers)

    def upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        kind, store = query.get("uploadType"), self.store
        if kind == "media":
            self.answer(*store.put(bucket, query["name"], body, query))
        elif kind == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()  # type: ignore
            fields, content = (part.split(b"\n\n", 1)[1] for part in body.split(b"--" + boundary)[1:3])
            self.answer(*store.put(bucket, json.loads(fields)["name"], content[:-1], query))
        elif "upload_id" not in query:
            key = f"upload{len(store.uploads)}"
            store.uploads[key] = bucket, query.get("name") or json.loads(body)["name"], query, b""
            location = f"{store.address}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            self.answer(200 if bucket in store.buckets else 404, {}, {"Location": location})
        else:
            bucket, name, conditions, before = store.uploads[query["upload_id"]]
            before += body
            store.uploads[query["upload_id"]] = bucket, name, conditions, before
            if self.headers.get("Content-Range", "").rpartition("/")[2] not in ("", str(len(before))):
                self.answer(308, b"", {"Range": f"bytes=0-{len(before) - 1}"})
            else:
                self.answer(*store.put(bucket, name, before, conditions))

    def batch(self, body: bytes) -> None:
        parts = []
        for bucket, name in re.findall(rb"DELETE /storage/v1/b/([^/]+)/o/(\S+) HTTP", body):
            status, _ = self.store.delete(unquote(bucket.decode()), unquote(name.decode()), {})
            parts.append(f"--deleted\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} OK\r\n\r\n")
        content = "".join([*parts, "--deleted--"]).encode()
        self.answer(200, content, {"Content-Type": "multipart/mixed; boundary=--deleted"})

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        if isinstance(content, str):
            content = {"error": {"code": status, "message": content}}
        if not isinstance(content, bytes):
            content = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


@contextmanager
def serving() -> Iterator[Store]:
    """Such a store at an address of this machine, with a bucket called bucket."""
    store = Store()
    server = Server(("127.0.0.1", 0), type("Here", (Handler,), {"store": store}))
    store.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
