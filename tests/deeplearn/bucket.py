"""Buckets on this machine: a folder with a file for every object, behind fsspec's gs:// and Google's HTTP interface.

Of an object store it has what matters here: no directories, no renaming, no appending, an object that appears whole.
"""

import contextlib
import http.server
import io
import json
import pathlib
import threading
import urllib.parse

import fsspec
from fsspec.spec import AbstractFileSystem


class Upload(io.BytesIO):
    """An object that is there once it is closed."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def close(self):
        if not self.closed:
            store(self.path, self.getvalue())
        super().close()


def store(path, content):
    temporary = path.with_name(f".{path.name[-50:]}.{threading.get_ident()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def names(root):
    return sorted(urllib.parse.unquote(path.name) for path in root.iterdir() if not path.name.startswith("."))


def place(root, name):
    return root / urllib.parse.quote(name, safe="")


class Bucket(AbstractFileSystem):
    """fsspec's view: what gcsfs would be."""

    protocol = ("gs", "gcs")
    cachable = False
    root: pathlib.Path

    def _file(self, path):
        return place(self.root, self._strip_protocol(path))

    def info(self, path, **more):
        name, file = self._strip_protocol(path), self._file(path)
        if file.exists():
            stat = file.stat()
            return {"name": name, "size": stat.st_size, "type": "file", "mtime": stat.st_mtime}
        if any(other.startswith(f"{name}/") for other in names(self.root)):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **more):
        name = self._strip_protocol(path)
        inside = [other[len(name) + 1 :] for other in names(self.root) if other.startswith(f"{name}/")]
        found = [self.info(f"{name}/{child}") for child in sorted({child.partition("/")[0] for child in inside})]
        return found if detail else [info["name"] for info in found]

    def _open(self, path, mode="rb", **more):
        if mode == "wb":
            return Upload(self._file(path))
        assert mode == "rb", f"no object can be opened for {mode}"
        return self._file(path).open("rb")

    def rm(self, path, recursive=False, **more):
        name = self._strip_protocol(path)
        found = [other for other in names(self.root) if other == name or recursive and other.startswith(f"{name}/")]
        if not found:
            raise FileNotFoundError(path)
        for other in found:
            place(self.root, other).unlink()

    def mkdir(self, path, **more):
        pass

    def makedirs(self, path, exist_ok=False):
        pass


def install(root):
    """Have gs:// mean the folder `root`, in this process."""
    root = pathlib.Path(root)
    root.mkdir(exist_ok=True)
    kind = type("BucketHere", (Bucket,), {"root": root})
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, kind, clobber=True)
    from etils.epath import backend

    backend.fsspec_backend._get_filesystem.cache_clear()


@contextlib.contextmanager
def served(root):
    """The address at which the objects in `root` answer as Google's do, to TensorStore."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, status, content=b"", **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def asked(self):
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            parts = url.path.split("/b/", 1)[1].split("/o", 1)
            name = urllib.parse.unquote(parts[1].lstrip("/"))
            return parts[0], name, query

        def generation(self, file):
            return str(file.stat().st_mtime_ns) if file.exists() else "0"

        def spoilt(self, file, query):
            now = self.generation(file)
            return query.get("ifGenerationMatch", now) != now

        def do_GET(self):
            bucket, name, query = self.asked()
            if not name:
                prefix = f"{bucket}/{query.get('prefix', '')}"
                items = [{"name": other[len(bucket) + 1 :]} for other in names(root) if other.startswith(prefix)]
                return self.answer(200, json.dumps({"items": items}).encode(), Content_Type="application/json")
            file = place(root, f"{bucket}/{name}")
            if not file.exists():
                return self.answer(404)
            now = self.generation(file)
            if query.get("ifGenerationNotMatch") == now:
                return self.answer(304)
            if self.spoilt(file, query):
                return self.answer(412)
            content, status, more = file.read_bytes(), 200, {}
            if span := self.headers.get("Range"):
                first, _, last = span.removeprefix("bytes=").partition("-")
                start = int(first) if first else max(0, len(content) - int(last))
                end = min(int(last), len(content) - 1) if first and last else len(content) - 1
                more = {"Content_Range": f"bytes {start}-{end}/{len(content)}"}
                content, status = content[start : end + 1], 206
            self.answer(status, content, x_goog_generation=now, **more)

        def do_POST(self):
            bucket, _, query = self.asked()
            content = self.rfile.read(int(self.headers["Content-Length"]))
            file = place(root, f"{bucket}/{query['name']}")
            if self.spoilt(file, query):
                return self.answer(412)
            store(file, content)
            self.answer(200, json.dumps({"name": query["name"], "generation": self.generation(file)}).encode())

        def do_DELETE(self):
            bucket, name, query = self.asked()
            file = place(root, f"{bucket}/{name}")
            if not file.exists():
                return self.answer(404)
            file.unlink()
            self.answer(204)

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(address):
    """What TensorStore is told, so that gs:// is at `address` and asks for no credentials."""
    return {"TENSORSTORE_GCS_HTTP_URL": address, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token"}
