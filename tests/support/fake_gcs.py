"""A Google Cloud Storage of the tests: the JSON API on this machine, with preconditions, a request log and faults.

    with fake_gcs() as server:
        environment = {**os.environ, **server.environment}     # for a process of its own, or monkeypatch.setenv
        server.fault("POST .*metrics", status=503, times=3)

What a client sees is what Google's documentation of the JSON API says: a write is whole or not there, listings are
strongly consistent, `generation` grows with every write, ifGenerationMatch answers 412, ifGenerationNotMatch 304.
"""

import asyncio
import base64
import contextlib
import email.parser
import email.policy
import json
import random
import re
import threading
import time
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c
import pytest
from orbax.checkpoint._src.serialization import tensorstore_utils

PAGE = 1000  # names of a listing
SHARE = 50  # see impatient


def impatient(patch: pytest.MonkeyPatch) -> None:
    """In this process, all three libraries try again as often as ever, after a fiftieth of the seconds."""
    patch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=lambda s: asyncio.sleep(s / SHARE)))
    clock = types.SimpleNamespace(sleep=lambda s: time.sleep(s / SHARE), monotonic=time.monotonic)
    patch.setattr("google.api_core.retry.retry_unary.time", clock)
    delays = {"initial_delay": f"{1000 // SHARE}ms", "max_delay": f"{32000 // SHARE}ms"}  # of 1 and 32 s
    for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        context = getattr(tensorstore_utils, name)
        patch.setitem(context, "gcs_request_retries", {**context.get("gcs_request_retries", {}), **delays})


@dataclass
class Stored:
    """One object. updated: unix seconds by the server's clock."""

    data: bytes
    generation: int
    updated: float
    metadata: dict = field(default_factory=dict)


@dataclass
class Fault:
    """What happens to requests whose "METHOD path?query" matches `pattern`; of an upload " NAME" stands behind it.

    status: answered without doing anything. delay: seconds before anything happens. drop: "before", the connection is
    closed and nothing was done; "after", it was done and the answer is lost. damage: a bit of the answer is another.
    times: at most so often.
    """

    pattern: re.Pattern
    status: int = 0
    probability: float = 1.0
    times: int | None = None
    delay: float = 0.0
    drop: str = ""
    damage: bool = False
    seen: int = 0


class Answer(Exception):
    """An HTTP answer that ends the handling of a request."""

    def __init__(self, status: int, body: object = b"", headers: dict[str, str] | None = None):
        self.status, self.headers = status, headers or {}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def problem(status: int, message: str) -> Answer:
    return Answer(status, {"error": {"code": status, "message": message, "errors": [{"message": message}]}})


class FakeGCS:
    """The state of the server. Everything public may be called from the test while requests are served.

    requests: a Counter of "METHOD kind" (stat, list, media, insert, delete, ...). log: every "METHOD path?query".
    """

    def __init__(self, buckets: tuple[str, ...], seed: int):
        self.buckets = set(buckets)
        self.requests: Counter[str] = Counter()
        self.log: list[str] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.address = ""
        self._objects: dict[tuple[str, str], Stored] = {}
        self._sessions: dict[str, dict] = {}
        self._faults: list[Fault] = []
        self._random = random.Random(seed)
        self._generation = 1000
        self._ahead = 0.0

    @property
    def environment(self) -> dict[str, str]:
        """What sends every library of a process here."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "STORAGE_EMULATOR_HOST": self.address,
            "GOOGLE_CLOUD_PROJECT": "test",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def fault(self, pattern: str, **what: object) -> Fault:
        """From now on requests that match misbehave; see Fault."""
        rule = Fault(re.compile(pattern), **what)
        with self.lock:
            self._faults.append(rule)
        return rule

    def heal(self) -> None:
        """No more faults."""
        with self.lock:
            self._faults.clear()

    def advance(self, seconds: float) -> None:
        """Sets the server's clock forward; it says when an object was written."""
        self._ahead += seconds

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The names of a bucket's objects in order."""
        with self.lock:
            return sorted(n for b, n in self._objects if b == bucket and n.startswith(prefix))

    def read(self, bucket: str, name: str) -> bytes:
        """Raises KeyError."""
        with self.lock:
            return self._objects[bucket, name].data

    def write(self, bucket: str, name: str, data: bytes) -> Stored:
        """Puts an object there, as another client would."""
        with self.lock:
            self._generation += 1
            stored = Stored(bytes(data), self._generation, time.time() + self._ahead)
            self._objects[bucket, name] = stored
            return stored

    def remove(self, bucket: str, name: str) -> None:
        """Raises KeyError."""
        with self.lock:
            del self._objects[bucket, name]

    def misbehave(self, line: str) -> Fault | None:
        """The rule that a request meets, counted."""
        with self.lock:
            for rule in self._faults:
                if rule.times is not None and rule.seen >= rule.times or not rule.pattern.search(line):
                    continue
                if self._random.random() < rule.probability:
                    rule.seen += 1
                    return rule
        return None

    def handle(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """The answer of one request; nothing of it is visible before all of it is."""
        url = urlsplit(target)
        query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        path = url.path
        with self.lock:
            try:
                if path == "/batch/storage/v1":
                    return self._batch(headers, body)
                if path.startswith("/upload/"):
                    return self._upload(method, path, query, headers, body)
                found = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/(o|storageLayout)(?:/(.*))?)?", path)
                if not found:
                    return problem(404, f"no such address {path}")
                bucket, part, name = unquote(found[1]), found[2], found[3]
                self._check_bucket(bucket)
                if part is None:
                    return self._counted(method, "bucket", {"kind": "storage#bucket", "name": bucket, "location": "US"})
                if part == "storageLayout":
                    return self._counted(method, "layout", {"bucket": bucket, "locationType": "region"})
                if not name:
                    return self._list(bucket, query)
                return self._object(method, bucket, name, query, headers, body)
            except Answer as answer:
                return answer

    # Of handle

    def _counted(self, method: str, kind: str, body: object = b"", **more: object) -> Answer:
        self.requests[f"{method} {kind}"] += 1
        return Answer(200, body, **more)

    def _check_bucket(self, bucket: str) -> None:
        if bucket not in self.buckets:
            raise problem(404, "The specified bucket does not exist.")

    def _resource(self, bucket: str, name: str, stored: Stored) -> dict:
        when = datetime.fromtimestamp(stored.updated, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        checksum = google_crc32c.value(stored.data).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{stored.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(stored.generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "size": str(len(stored.data)),
            "crc32c": base64.b64encode(checksum).decode(),
            "etag": str(stored.generation),
            "timeCreated": when,
            "updated": when,
            "metadata": stored.metadata,
        }

    def _conditions(self, bucket: str, name: str, query: dict[str, str]) -> Stored | None:
        stored = self._objects.get((bucket, name))
        now = stored.generation if stored else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != now:
            raise problem(412, "At least one of the pre-conditions you specified did not hold.")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == now:
            raise Answer(304)
        return stored

    def _list(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        after, most = unquote(query.get("pageToken", "")), min(PAGE, int(query.get("maxResults") or PAGE))
        entries: dict[str, dict | None] = {}
        for name in self.names(bucket, prefix):
            if name < start or end and name >= end:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                entries[prefix + rest.partition(delimiter)[0] + delimiter] = None
            else:
                entries[name] = self._resource(bucket, name, self._objects[bucket, name])
        left = [n for n in sorted(entries) if n > after]
        page = left[:most]
        answer: dict = {"kind": "storage#objects", "items": [entries[n] for n in page if entries[n]]}
        if folders := [n for n in page if entries[n] is None]:
            answer["prefixes"] = folders
        if len(left) > most:
            answer["nextPageToken"] = quote(page[-1])
        return self._counted("GET", "list", answer)

    def _object(self, method: str, bucket: str, name: str, query: dict, headers: dict, body: bytes) -> Answer:
        if (copied := re.fullmatch(r"(.*)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.*)", name)) and method == "POST":
            return self._copy((bucket, unquote(copied[1])), (unquote(copied[2]), unquote(copied[3])), query)
        if name.endswith("/compose") and method == "POST":
            return self._compose(bucket, unquote(name.removesuffix("/compose")), query, body)
        name = unquote(name)
        stored = self._conditions(bucket, name, query)
        if stored is None or query.get("generation") not in (None, str(stored.generation)):
            self.requests[f"{method} missing"] += 1
            return problem(404, f"No such object: {bucket}/{name}")
        if method == "DELETE":
            del self._objects[bucket, name]
            self.requests["DELETE delete"] += 1
            return Answer(204)
        if method == "PATCH":
            stored.metadata.update(json.loads(body or b"{}").get("metadata") or {})
            return self._counted(method, "patch", self._resource(bucket, name, stored))
        if query.get("alt") != "media":
            return self._counted(method, "stat", self._resource(bucket, name, stored))
        return self._media(stored, headers)

    def _media(self, stored: Stored, headers: dict[str, str]) -> Answer:
        size, checksum = len(stored.data), google_crc32c.value(stored.data).to_bytes(4, "big")
        named = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(stored.generation),
            "x-goog-metageneration": "1",
            "x-goog-hash": f"crc32c={base64.b64encode(checksum).decode()}",
            "x-goog-stored-content-length": str(size),
            "x-goog-stored-content-encoding": "identity",
        }
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
        if not wanted:
            return self._counted("GET", "media", stored.data, headers=named)
        if not wanted[1]:
            begin, end = max(0, size - int(wanted[2])), size
        else:
            begin, end = int(wanted[1]), min(size, int(wanted[2]) + 1 if wanted[2] else size)
        if begin >= end:
            return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
        named["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        answer = self._counted("GET", "media", stored.data[begin:end], headers=named)
        answer.status = 206
        return answer

    def _copy(self, source: tuple[str, str], target: tuple[str, str], query: dict[str, str]) -> Answer:
        self._check_bucket(target[0])
        if source not in self._objects:
            return problem(404, f"No such object: {'/'.join(source)}")
        self._conditions(*target, query)
        stored = self.write(*target, self._objects[source].data)
        size, resource = str(len(stored.data)), self._resource(*target, stored)
        done = {"kind": "storage#rewriteResponse", "done": True, "resource": resource}
        return self._counted("POST", "rewrite", {**done, "objectSize": size, "totalBytesRewritten": size})

    def _compose(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> Answer:
        self._conditions(bucket, name, query)
        parts = [s["name"] for s in json.loads(body)["sourceObjects"]]
        if missing := [p for p in parts if (bucket, p) not in self._objects]:
            return problem(404, f"No such object: {bucket}/{missing[0]}")
        stored = self.write(bucket, name, b"".join(self._objects[bucket, p].data for p in parts))
        return self._counted("POST", "compose", self._resource(bucket, name, stored))

    # Uploads

    def _upload(self, method: str, path: str, query: dict, headers: dict, body: bytes) -> Answer:
        bucket = unquote(re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path)[1])
        self._check_bucket(bucket)
        if "upload_id" in query:
            return self._resume(method, query["upload_id"], headers, body)
        kind, name, metadata = query["uploadType"], query.get("name"), {}
        if kind == "resumable":
            fields = json.loads(body or b"{}")
            name = name or fields["name"]
            self._conditions(bucket, name, query)
            token = str(len(self._sessions) + 1)
            self._sessions[token] = {"at": (bucket, name), "query": query, "data": b"", "fields": fields}
            place = f"{self.address}{path}?uploadType=resumable&upload_id={token}"
            return self._counted("POST", "session", headers={"Location": place, "X-GUploader-UploadID": token})
        if kind == "multipart":
            head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
            fields = json.loads(list(message.iter_parts())[0].get_payload(decode=True))
            name, metadata = name or fields["name"], fields.get("metadata") or {}
            body = _last_part(headers["content-type"], body)
        self._conditions(bucket, name, query)
        stored = self.write(bucket, name, body)
        stored.metadata = metadata
        return self._counted("POST", "insert", self._resource(bucket, name, stored))

    def _resume(self, method: str, token: str, headers: dict[str, str], body: bytes) -> Answer:
        session = self._sessions.get(token)
        if session is None:
            return problem(404, "no such upload")
        if method == "DELETE":
            del self._sessions[token]
            return Answer(499)
        if "done" in session:
            return self._counted("PUT", "insert", session["done"])
        given = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", headers.get("content-range", "bytes */*"))
        whole = "content-range" not in headers
        if whole:
            session["data"] = body
        elif given[1] is not None:
            if int(given[1]) != len(session["data"]):
                return problem(400, "this part does not follow on the last")
            session["data"] += body
        if not whole and (given[3] == "*" or int(given[3]) != len(session["data"])):
            received = {"Range": f"bytes=0-{len(session['data']) - 1}"} if session["data"] else {}
            return Answer(308, b"", received)
        bucket, name = session["at"]
        self._conditions(bucket, name, session["query"])
        stored = self.write(bucket, name, session["data"])
        stored.metadata = session["fields"].get("metadata") or {}
        session["done"] = self._resource(bucket, name, stored)
        return self._counted("PUT", "insert", session["done"])

    def _batch(self, headers: dict[str, str], body: bytes) -> Answer:
        head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        out = []
        for part in message.iter_parts():
            request = part.get_payload(decode=True) or str(part.get_payload()).encode()
            first, _, rest = request.partition(b"\n")
            method, target = first.decode().split()[:2]
            answer = self.handle(method, "/" + target.partition("://")[2].partition("/")[2], {}, rest)
            text = f"HTTP/1.1 {answer.status} X\r\nContent-Type: application/json\r\n\r\n{answer.body.decode()}"
            identity = str(part["Content-ID"] or "<1>").strip("<>")
            out.append(f"Content-Type: application/http\r\nContent-ID: <response-{identity}>\r\n\r\n{text}\r\n")
        joined = "".join(f"--batch\r\n{part}" for part in out) + "--batch--\r\n"
        return Answer(200, joined.encode(), {"Content-Type": "multipart/mixed; boundary=batch"})


def _last_part(content_type: str, body: bytes) -> bytes:
    """The bytes of the second part of a multipart/related upload, as they came."""
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)[1].strip("'").encode()
    parts = body.split(b"--" + boundary)
    part = (b"--" + boundary).join(parts[2:-1])
    ending = b"\r\n" if b"\r\n" in parts[1][:2] else b"\n"
    return part.removeprefix(ending).partition(ending * 2)[2].removesuffix(ending)


def _handler(server: FakeGCS) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body in one packet: else the body waits until the head is acknowledged, which clients do after 40 ms.
        wbufsize = -1

        def serve(self) -> None:
            body = self.body()
            line = f"{self.command} {self.path}"
            # The name of an object that goes up in one request, or begins to in many, stands in the body alone.
            if self.path.startswith("/upload/") and (named := re.search(rb'"name": ?"([^"]+)"', body[:4096])):
                line += f" {quote(named[1], safe='')}"
            server.log.append(line)
            rule = server.misbehave(line)
            if rule is not None:
                if rule.delay and server.closing.wait(rule.delay) or rule.drop == "before":
                    self.close_connection = True
                    return
                if rule.status:
                    self.send(problem(rule.status, f"fault {rule.status}"))
                    return
            answer = server.handle(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            if rule is not None and rule.drop == "after":
                self.close_connection = True
                return
            if rule is not None and rule.damage and answer.body:
                answer.body = bytes([answer.body[0] ^ 1]) + answer.body[1:]
            self.send(answer)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = serve

        def body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            headers = {"Content-Type": "application/json", **answer.headers}
            if answer.status not in (204, 304):
                headers["Content-Length"] = str(len(answer.body))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def fake_gcs(*buckets: str, seed: int = 0) -> Iterator[FakeGCS]:
    """Serves on a port of its own until the block ends; sets nothing global. `buckets`: ("bucket",) when not given."""
    server = FakeGCS(buckets or ("bucket",), seed)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:  # clients that were killed
            pass

    with Quiet(("127.0.0.1", 0), _handler(server)) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            http.shutdown()
            thread.join()


@contextlib.contextmanager
def fake_cloud(*buckets: str) -> Iterator[FakeGCS]:
    """fake_gcs, to which this process and its children speak while the block lasts."""
    with fake_gcs(*buckets) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
