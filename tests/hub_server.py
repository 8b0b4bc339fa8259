"""A small server on loopback that speaks the part of the Hugging Face Hub's HTTP interface that a model download uses."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves one model folder as `model_id`. The attributes below make it misbehave.

    status: answer every request for the model with this HTTP status. cut_after: break the connection after this many bytes of the
    weights, once. wrong_size: announce the weights as one byte longer than they are. wrong_hash: announce another sha256 for them.
    silent: accept connections and never answer.
    """

    def __init__(self, model_id: str, folder: Path):
        self.model_id, self.folder = model_id, folder
        self.status = self.cut_after = None
        self.wrong_size = self.wrong_hash = self.silent = False
        self.requests: list[tuple[str, str, dict]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                hub.answer(self)

            def do_GET(self):
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir()) if path.is_file()}

    def describe(self, name: str, data: bytes) -> dict:
        size = len(data) + (self.wrong_size and name == "model.safetensors")
        entry = {"size": size, "oid": hashlib.sha1(data).hexdigest()}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(b"other" if self.wrong_hash else data).hexdigest()
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 134}
        return entry

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlparse(request.path).path
        self.requests.append((request.command, path, dict(request.headers)))
        if self.silent:
            threading.Event().wait(60)
            return
        if self.status or self.model_id not in path:
            status = self.status or 404
            code = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}.get(status, "")
            self.send(request, status, b"{}", {"X-Error-Code": code})
        elif path.startswith("/api/models/") and "/tree/" in path:
            rows = [{"type": "file", "path": name, **self.describe(name, data)} for name, data in self.files().items()]
            self.send(request, 200, json.dumps(rows).encode())
        elif path.startswith("/api/models/"):
            siblings = []
            for name, data in self.files().items():
                entry = self.describe(name, data)
                siblings.append({"rfilename": name, "size": entry["size"], "blobId": entry["oid"], "lfs": entry.get("lfs")})
            info = {"id": self.model_id, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "apache-2.0"}, "tags": []}
            self.send(request, 200, json.dumps(info).encode())
        else:
            name = path.rsplit("/", 1)[1]
            self.send_file(request, name, self.files()[name])

    def send_file(self, request, name: str, data: bytes) -> None:
        entry = self.describe(name, data)
        headers = {"ETag": f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry["size"])}
        status, body = 200, data
        if request.command == "GET" and request.headers.get("Range"):
            first = int(request.headers["Range"].removeprefix("bytes=").split("-")[0])
            status, body = 206, data[first:]
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        if request.command == "GET" and self.cut_after and name == "model.safetensors":
            self.begin(request, status, len(body), headers)
            request.wfile.write(body[: self.cut_after])
            request.wfile.flush()
            self.cut_after = None
            request.close_connection = True
            request.connection.shutdown(2)
        else:
            self.send(request, status, body, headers)

    def begin(self, request, status: int, length: int, headers: dict) -> None:
        request.send_response(status)
        for key, value in {"Content-Length": str(length), "Content-Type": "application/json", **headers}.items():
            request.send_header(key, value)
        request.end_headers()

    def send(self, request, status: int, body: bytes, headers: dict | None = None) -> None:
        self.begin(request, status, len(body), headers or {})
        if request.command == "GET":
            request.wfile.write(body)
