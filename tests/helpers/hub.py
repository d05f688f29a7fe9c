"""A stand-in for the Hugging Face hub: one repository over the HTTP API that huggingface_hub uses, on 127.0.0.1 only.

Small files are answered by the hub itself, large ones as LFS files: with a redirect to the content network, which has
another host name. Tests read `requests` to see what was asked for, and set other attributes to make things go wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

LFS_FROM_BYTES = 50_000


@dataclass(frozen=True)
class Request:
    """One request and the status that it was answered with. `range` is the Range header, empty if there was none."""

    method: str
    path: str
    range: str
    status: int


@dataclass(frozen=True)
class Refusal:
    """An answer instead of the right one: status and, as the hub adds them, X-Error-Code and X-Error-Message."""

    status: int
    code: str = ""
    message: str = ""


GATED = Refusal(403, "GatedRepo", "Access to this model is restricted and you are not in the authorized list.")
ANONYMOUS = Refusal(401, "", "Invalid username or password.")  # the hub's answer for missing and for private ones
BAD_TOKEN = Refusal(401, "", "Invalid credentials in Authorization header")


@dataclass
class Hub:
    """The repository `repo` and what befalls those who ask for it."""

    repo: str
    repo_type: Literal["model", "dataset"]
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit hash -> file name -> content
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit hash
    requests: list[Request] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)  # start of the path -> answer
    listed: list[object] = field(default_factory=list)  # further names in the listing of files
    # Bytes after which the connection of the next large file ends, of the one after it, and so on.
    drops: Iterator[int] = field(default_factory=lambda: iter(()))
    reset: bool = False  # a connection that ends is reset, rather than closed
    tamper: Callable[[bytes], bytes] = bytes  # what becomes of the content of large files
    delay: float = 0.0  # seconds before each answer
    port: int = 0

    @property
    def address(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.port}"

    def push(self, folder: Path, ref: str = "main") -> str:
        """Make the files of `folder` the newest commit of a branch or tag; returns its hash."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        digest = hashlib.sha1(repr(sorted(files.items())).encode())
        self.commits[digest.hexdigest()] = files
        self.refs[ref] = digest.hexdigest()
        return digest.hexdigest()

    def bodies(self, name: str) -> list[Request]:
        """The GET requests for the content of a file, wherever they went."""
        digests = {hashlib.sha256(files[name]).hexdigest() for files in self.commits.values() if name in files}
        paths = {f"/content/{digest}" for digest in digests}
        return [r for r in self.requests if r.method == "GET" and (r.path in paths or r.path.endswith(f"/{name}"))]


def is_lfs(content: bytes) -> bool:
    return len(content) >= LFS_FROM_BYTES


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub  # set in a subclass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with suppress(ConnectionError):  # a client that doesn't wait
            self.answer()

    def answer(self) -> None:
        time.sleep(self.hub.delay)
        path = unquote(self.path.partition("?")[0])
        plural = f"{self.hub.repo_type}s"
        listing = re.fullmatch(rf"/api/{plural}/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        prefix = "" if self.hub.repo_type == "model" else f"{plural}/"
        # A branch's slashes come quoted, so the first plain one ends it.
        resolve = re.fullmatch(rf"/{prefix}([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path.partition("?")[0])
        refusal = next((answer for start, answer in self.hub.refusals.items() if path.startswith(start)), None)
        if refusal is not None:
            self.refuse(refusal)
        elif path.startswith("/content/"):
            self.send_content(path.removeprefix("/content/"))
        elif listing:
            self.send_listing(listing[1], listing[2] or "main")
        elif resolve:
            self.send_file(*map(unquote, resolve.groups()))
        else:
            self.refuse(Refusal(404))

    def commit_of(self, repo: str, revision: str) -> str | None:
        """The commit that is asked for, or None after the answer that there is none."""
        commit = self.hub.refs.get(revision, revision)
        if repo != self.hub.repo:
            self.refuse(Refusal(404, "RepoNotFound", "Repository not found"))
        elif commit not in self.hub.commits:
            self.refuse(Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
        else:
            return commit
        return None

    def send_listing(self, repo: str, revision: str) -> None:
        commit = self.commit_of(repo, revision)
        if commit is None:
            return
        siblings: list[dict[str, object]] = [{"rfilename": name} for name in self.hub.listed]
        for name, content in self.hub.commits[commit].items():
            entry = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append({**entry, "lfs": lfs} if is_lfs(content) else entry)
        info = {"id": repo, "sha": commit, "private": False, "gated": False, "tags": [], "siblings": siblings}
        self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def send_file(self, repo: str, revision: str, name: str) -> None:
        commit = self.commit_of(repo, revision)
        if commit is None:
            return
        content = self.hub.commits[commit].get(name)
        if content is None:
            self.refuse(Refusal(404, "EntryNotFound", "Entry not found"), {"X-Repo-Commit": commit})
        elif is_lfs(content):
            digest = hashlib.sha256(content).hexdigest()
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": f'"{digest}"',
                "Location": f"http://localhost:{self.hub.port}/content/{digest}",
            }
            self.send(302, b"", headers)
        else:
            self.send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{git_hash(content)}"'})

    def send_content(self, digest: str) -> None:
        everything = [item for files in self.hub.commits.values() for item in files.items()]
        name, content = next(item for item in everything if hashlib.sha256(item[1]).hexdigest() == digest)
        content = self.hub.tamper(content)
        headers = {
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
            "Content-Disposition": f'inline; filename="{name.rpartition("/")[2]}";',  # what progress bars show
        }
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        stop = next(self.hub.drops, None) if self.command == "GET" else None
        if not asked:
            self.send(200, content, headers, stop)
        elif start < len(content):
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206, content[start:], headers, stop)
        else:
            self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})

    def refuse(self, refusal: Refusal, headers: dict[str, str] | None = None) -> None:
        errors = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        body = json.dumps({"error": refusal.message}).encode()
        self.send(refusal.status, body, {**(headers or {}), **{key: text for key, text in errors.items() if text}})

    def send(self, status: int, body: bytes, headers: dict[str, str], stop: int | None = None) -> None:
        """Answer, with the first `stop` bytes of the body only where that is given, and the connection's end then."""
        self.hub.requests.append(Request(self.command, unquote(self.path), self.headers.get("Range", ""), status))
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])
        if stop is not None:
            if self.hub.reset:  # closing at once, with what is still to be sent thrown away, makes a reset
                time.sleep(0.2)  # for the client to have read what comes before it
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())
            else:
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve_hub(repo: str, folder: Path, repo_type: Literal["model", "dataset"] = "model") -> Iterator[Hub]:
    """Serve the files in `folder` as the branch `main` of `repo`."""
    hub = Hub(repo, repo_type)
    hub.push(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
