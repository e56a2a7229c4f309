"""A local Hugging Face hub with one repository: the part of its HTTP API that `hf://` and `snapshot_download` use."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


class FakeHub:
    """A server of the files of `folder` as the dataset or model `name`; a context manager. Set HF_ENDPOINT to its `url`."""

    def __init__(self, name: str, folder: Path, *, kind: Literal["datasets", "models"] = "datasets") -> None:
        self.name, self.folder, self.kind = name, folder, kind
        self.reads: list[str] = []  # paths of the files whose contents were requested
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_POST = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        api, files = f"/api/{self.kind}/{self.name}", f"{'/datasets' if self.kind == 'datasets' else ''}/{self.name}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            names = [path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": str(name)} for name in names]
            return self._json(request, {"id": self.name, "sha": COMMIT, "private": False, "siblings": siblings})
        if path.startswith(f"{api}/paths-info/"):
            wanted = json.loads(body)["paths"]
            return self._json(request, [self._entry(self.folder / name) for name in wanted if (self.folder / name).exists()])
        if path.startswith(f"{api}/tree/"):
            below = self.folder / path.removeprefix(f"{api}/tree/").partition("/")[2]
            listed = below.rglob("*") if "recursive=True" in request.path or "recursive=true" in request.path else below.glob("*")
            if below.is_dir():
                return self._json(request, [self._entry(one) for one in sorted(listed)])
        if path.startswith(files):
            file = self.folder / path.removeprefix(files).partition("/")[2]
            if file.is_file():
                return self._file(request, file)
        return self._json(request, {"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _entry(self, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.folder))
        oid = hashlib.sha1(name.encode()).hexdigest()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": oid, "size": 0}
        return {"type": "file", "path": name, "oid": oid, "size": path.stat().st_size}

    def _file(self, request: BaseHTTPRequestHandler, file: Path) -> None:
        data, status, more = file.read_bytes(), 200, {}
        if given := request.headers.get("Range"):
            first, _, last = given.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data)), len(data) - 1) + 1
            more = {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
            data, status = data[begin:end], 206
        if request.command == "GET":
            self.reads.append(str(file.relative_to(self.folder)))
        tag = hashlib.sha1(str(file.relative_to(self.folder)).encode()).hexdigest()
        head = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", **more}
        self._send(request, data, status, head)

    def _json(self, request: BaseHTTPRequestHandler, value: Any, status: int = 200, more: dict[str, str] | None = None) -> None:
        self._send(request, json.dumps(value).encode(), status, {"Content-Type": "application/json", **(more or {})})

    def _send(self, request: BaseHTTPRequestHandler, data: bytes, status: int, head: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in head.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
