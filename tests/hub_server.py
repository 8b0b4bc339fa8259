"""Small servers on loopback that speak the part of the HTTP interface of the Hugging Face Hub and of ModelScope that a model download uses."""

import hashlib
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves one model folder as `model_id`. The attributes below make it misbehave.

    status: answer every request for the model with this HTTP status. cut_after: break the connection after this many bytes of the
    weights, once. wrong_size: announce the weights as one byte longer than they are. wrong_hash: announce another sha256 for them.
    silent: accept connections and never answer. delay: answer after so many seconds.
    """

    def __init__(self, model_id: str, folder: Path):
        self.model_id, self.folder = model_id, folder
        self.status = self.cut_after = None
        self.wrong_size = self.wrong_hash = self.silent = False
        self.delay = 0
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
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def use_tls(self, folder: Path) -> Path:
        """Speak TLS from now on, as a proxy that opens it would: with a certificate of an authority of its own. Return that one's path."""
        import trustme

        authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(folder / "proxy.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = self.url.replace("http:", "https:")
        return folder / "proxy.pem"

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
        time.sleep(self.delay)
        self.reply(request, path)

    def reply(self, request: BaseHTTPRequestHandler, path: str) -> None:
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


class ModelScope(Hub):
    """The same of ModelScope: a list of files with their sizes and sha256, and each file by its name."""

    def reply(self, request: BaseHTTPRequestHandler, path: str) -> None:
        if self.status or self.model_id not in path:
            self.send(request, self.status or 404, json.dumps({"Code": 10010205001, "Message": "not found", "Success": False}).encode())
        elif path.endswith("/repo/files"):
            rows = []
            for name, data in self.files().items():
                entry = self.describe(name, data)
                digest = entry.get("lfs", {"sha256": hashlib.sha256(data).hexdigest()})["sha256"]
                rows.append({"Path": name, "Name": name, "Type": "blob", "Size": entry["size"], "Sha256": digest, "Revision": COMMIT})
            self.send(request, 200, json.dumps({"Code": 200, "Data": {"Files": rows}, "Success": True}).encode())
        elif name := parse_qs(urlparse(request.path).query).get("FilePath"):
            self.send_file(request, name[0], self.files()[name[0]])
        else:
            self.send(request, 200, json.dumps({"Code": 200, "Data": {}, "Success": True}).encode())
