"""A stand-in for the Hugging Face hub: serves the files of one data set over HTTP on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def serve_hub(repo: str, folder: Path) -> Iterator[str]:
    """Serve the files in `folder` as the hub's data set `repo`; yields the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, with_body: bool) -> None:
            prefix = f"/datasets/{repo}/resolve/main/"
            file = folder / self.path.split("?")[0].removeprefix(prefix)
            found = self.path.startswith(prefix) and file.is_file()
            body = file.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            else:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
