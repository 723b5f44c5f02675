"""Buckets without a network: a local folder as an fsspec file system, and a server for gcsfs."""

import http.server
import json
import os
import threading
import urllib.parse
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem


class FolderBucket(AbstractFileSystem):
    """Reads gs://NAME/path from `root`/NAME/path and records every request.

    Attributes:
      root: The folder of the buckets.
      requests: (kind, path below the root, bytes returned) of all instances.
    """

    protocol = ("gs", "gcs")
    root = Path()
    requests: list[tuple[str, str, int]]

    def _note(self, what: str, path: str, count: int = 0) -> str:
        path = self._strip_protocol(path)
        self.requests.append((what, path, count))
        return os.path.join(self.root, path)

    def ls(self, path, detail=True, **kwargs):
        found = LocalFileSystem().ls(self._note("list", path), detail=True)
        for info in found:
            info["name"] = os.path.relpath(info["name"], self.root)
        return found if detail else [info["name"] for info in found]

    def info(self, path, **kwargs):
        info = LocalFileSystem().info(self._note("info", path))
        return info | {"name": self._strip_protocol(path)}

    def cat_file(self, path, start=None, end=None, **kwargs):
        with open(os.path.join(self.root, self._strip_protocol(path)), "rb") as file:
            file.seek(start or 0)
            content = file.read() if end is None else file.read(end - (start or 0))
        self._note("read", path, len(content))
        return content

    def get_file(self, rpath, lpath, **kwargs):
        Path(lpath).write_bytes(self.cat_file(rpath))

    def _open(self, path, mode="rb", **kwargs):
        assert mode == "rb", "a dataset is only read"
        return open(self._note("open", path), mode)


class _Handler(http.server.BaseHTTPRequestHandler):
    """The parts of the JSON API of Google Cloud Storage that reading uses."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        bucket, _, rest = url.path.partition("/b/")[2].partition("/o")
        folder = self.server.root / bucket
        name = urllib.parse.unquote(rest.removeprefix("/"))
        self.server.requests.append((url.path, self.headers.get("Range"), query))
        if not name and "/o" in url.path:
            return self._json(self._list(folder, query))
        if not name:
            return self._json({"name": bucket, "storageClass": "STANDARD"})
        if not (folder / name).is_file():
            return self._send(404, b"{}")
        if "/download/" not in url.path and query.get("alt") != "media":
            return self._json(self._object(folder, name))
        with open(folder / name, "rb") as file:
            if not (wanted := self.headers.get("Range")):
                return self._send(200, file.read())
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            file.seek(first)
            return self._send(206, file.read(last + 1 - first))

    def _list(self, folder: Path, query: dict) -> dict:
        prefix, items, prefixes = query.get("prefix", ""), [], set()
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_file() or not name.startswith(prefix):
                continue
            rest = name.removeprefix(prefix)
            if query.get("delimiter") and "/" in rest:
                prefixes.add(prefix + rest.split("/")[0] + "/")
            else:
                items.append(self._object(folder, name))
        return {"items": items, "prefixes": sorted(prefixes)}

    def _object(self, folder: Path, name: str) -> dict:
        size = (folder / name).stat().st_size
        return {"name": name, "bucket": folder.name, "size": str(size), "etag": f"e{size}"}

    def _json(self, content: dict) -> None:
        self._send(200, json.dumps(content).encode())

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


class GoogleBucket(http.server.ThreadingHTTPServer):
    """Context manager that serves the buckets in a folder on a local port.

    Attributes:
      requests: (path, Range header, query) of each.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.requests = root, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()
