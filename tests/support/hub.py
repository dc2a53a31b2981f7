"""A stand-in for the Hugging Face Hub: its cache as huggingface_hub lays it out, and a server to download from."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT, LATER = "a" * 40, "b" * 40


def cache_model(cache: Path, name: str, folder: Path, commit: str = COMMIT, branch: str | None = "main") -> Path:
    """Puts a model folder into a cache: contents under blobs, links to them in a snapshot, which it returns."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for part in (snapshot, home / "blobs", home / "refs"):
        part.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        content = file.read_bytes()
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    if branch:
        (home / "refs" / branch).write_text(commit)
    return snapshot


@dataclass
class Hub:
    """What a server has, and what was asked of it."""

    files: Mapping[str, bytes]
    commit: str = COMMIT
    refuses: tuple[int, str] | None = None  # status and error code of every answer
    fetched: list[str] = field(default_factory=list)  # names of files, in the order in which their content was sent
    endpoint: str = ""


@contextmanager
def hub(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serves one repository under every name and revision, on loopback."""
    state = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_content=True)

        def do_HEAD(self) -> None:
            self._answer(with_content=False)

        def _answer(self, with_content: bool) -> None:
            path = urlsplit(self.path).path
            if state.refuses:
                status, code = state.refuses
                return self._send(status, b"{}", {"X-Error-Code": code} if code else {}, with_content)
            if path.startswith("/api/") and "/tree/" in path:
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}  # noqa: S324
                    for name, content in state.files.items()
                ]
                return self._send(200, json.dumps(tree).encode(), {}, with_content)
            if path.startswith("/api/"):
                return self._send(200, json.dumps({"id": "o/n", "sha": state.commit}).encode(), {}, with_content)
            name = path.partition(f"/resolve/{state.commit}/")[2]
            if name not in state.files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_content)
            if with_content:
                state.fetched.append(name)
            content = state.files[name]
            tag = hashlib.sha1(content).hexdigest()  # noqa: S324
            return self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": state.commit}, with_content)

        def _send(self, status: int, content: bytes, headers: Mapping[str, str], with_content: bool) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_content:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
