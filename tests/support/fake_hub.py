"""A Hugging Face hub of the tests: what huggingface_hub calls to make a repository and to upload into it.

    with fake_hub() as hub:
        HfApi(endpoint=hub.address, token="t").upload_folder(..)      # HF_HUB_DISABLE_XET: over git LFS
        hub.files("org/name")                                         # {name: bytes} of the last commit
    hub.files("datasets/org/name")                                # of a data set

Forms of requests and answers: the hub's OpenAPI page and the specification of git LFS batches.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

GOOD_TOKEN = "hf_good"
SMALL = 1 << 12  # bytes from which on a file goes over LFS


class FakeHub:
    """State: repositories, stored large files, every request. refusals: {pattern of "METHOD path": status}."""

    def __init__(self) -> None:
        self.address = ""
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[str] = []
        self.uploaded: list[str] = []  # oids in the order in which they came
        self.refusals: dict[str, int] = {}
        self.commits = 0

    def files(self, name: str) -> dict[str, bytes]:
        return self.repos[name]["files"]


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if "chunked" in handler.headers.get("Transfer-Encoding", ""):
        data = b""
        while size := int(handler.rfile.readline(), 16):
            data += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return data
    return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, see fake_gcs
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, value: Any = None) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _serve(self) -> None:
        body, path = _body(self), unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.hub.log.append(line)
        for pattern, status in self.hub.refusals.items():
            if re.search(pattern, line):
                return self._answer(status, {"error": f"refused with {status}"})
        if path.startswith("/lfs/"):  # an address that was signed for one upload: no token goes there
            return self._store(path.removeprefix("/lfs/"), body)
        if self.headers.get("Authorization") != f"Bearer {GOOD_TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        for pattern, method in _ROUTES:
            if found := re.fullmatch(pattern, line):
                return method(self, *found.groups(), body)
        return self._answer(404, {"error": f"no such route: {line}"})

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "other bytes than were announced"})
        self.hub.objects[oid] = body
        self.hub.uploaded.append(oid)
        return self._answer(200)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{'datasets/' if asked.get('type') == 'dataset' else ''}{asked['organization']}/{asked['name']}"
        page = {"url": f"{self.hub.address}/{name}", "id": name, "name": name}
        if name in self.hub.repos:
            return self._answer(409, {"error": "You already created this model repo", **page})
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.hub.repos[name] = {"private": bool(private), "files": {}}
        return self._answer(200, page)

    def _info(self, name: str, *_: Any) -> None:
        if name not in self.hub.repos:
            return self._answer(404, {"error": "Repository not found"})
        repo = self.hub.repos[name]
        return self._answer(
            200,
            {
                "id": name,
                "private": repo["private"],
                "sha": "0" * 40,
                "siblings": [{"rfilename": f} for f in repo["files"]],
            },
        )

    def _tree(self, name: str, *_: Any) -> None:
        files = self.hub.repos[name]["files"]
        self._answer(200, [{"type": "file", "path": f, "size": len(d), "oid": "0" * 40} for f, d in files.items()])

    def _validate(self, body: bytes) -> None:
        """The card's head must be YAML that names no empty value, as the hub's own check demands."""
        import yaml

        content = json.loads(body)["content"]
        head = yaml.safe_load(content.split("---")[1])
        wrong = [k for k, v in head.items() if v in (None, "", [])]
        self._answer(400 if wrong else 200, {"errors": [{"message": f"empty: {k}"} for k in wrong], "warnings": []})

    def _preupload(self, name: str, body: bytes) -> None:
        files = json.loads(body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] >= SMALL else "regular", "shouldIgnore": False}
            for f in files
        ]
        self._answer(200, {"files": modes})

    def _batch(self, name: str, body: bytes) -> None:
        objects = []
        for o in json.loads(body)["objects"]:
            there = o["oid"] in self.hub.objects
            upload = {"actions": {"upload": {"href": f"{self.hub.address}/lfs/{o['oid']}", "header": {}}}}
            objects.append({"oid": o["oid"], "size": o["size"], **({} if there else upload)})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        files = self.hub.repos[name]["files"]
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.commits += 1
        self._answer(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{self.hub.commits}", "commitOid": "1" * 40})


_ROUTES = (
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", _Handler._validate),
    (r"POST /api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/preupload/main", _Handler._preupload),
    (r"POST /((?:datasets/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler._batch),
    (r"POST /api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/commit/main", _Handler._commit),
    (r"GET /api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/tree/main", _Handler._tree),
    (r"GET /api/(?:models/)?((?:datasets/)?[^/]+/[^/]+?)(?:/revision/main)?", _Handler._info),
)


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub on this machine while the block runs."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
