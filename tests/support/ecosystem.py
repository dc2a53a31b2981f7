"""Environments of other packages, each in its own Python, as the page about them shows."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from shared.errors import UnavailableError
from tests.support import venvs
from tests.support.pages import ROOT, blocks
from tests.support.torchrun import free_port

PAGE = ROOT / "docs/how-to/use-environments-of-others.md"
SECONDS = 400  # that a turn may take: verifiers starts a program for each, and installs what that needs at the first

MARKS = [
    pytest.mark.skipif(os.environ.get("ECOSYSTEM") != "1", reason="installs packages: run make test-ecosystem"),
    pytest.mark.timeout(1800),  # packages are installed where they are not there yet
]


def verifiers() -> Path:
    """Its Python, with the games of TextArena. Skips the test where it cannot be installed."""
    return _python("verifiers[ta]==0.4.0", "uv")


def openenv() -> Path:
    """Its Python. Skips the test where it cannot be installed."""
    return _python("openenv==0.10.0")


def _python(*requirements: str) -> Path:
    try:
        return venvs.python(*requirements)
    except UnavailableError as error:
        pytest.skip(str(error))


def write_page(folder: Path) -> None:
    """The files of the page."""
    for _, title, text in blocks(PAGE):
        if title:
            (folder / title).write_text(text)


@contextlib.contextmanager
def echo_server(python: Path, folder: Path) -> Iterator[str]:
    """The address of the environment that `openenv init` writes, as its own server serves it."""
    init = [str(python.with_name("openenv")), "init", "echo_env"]
    subprocess.run(init, cwd=folder, check=True, timeout=SECONDS)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve = [str(python.with_name("uvicorn")), "--app-dir", "echo_env", "server.app:app", "--port", str(port)]
    output = folder / "echo_server.txt"
    with output.open("wb") as file:
        server = subprocess.Popen(serve, cwd=folder, stdout=file, stderr=file)
    try:
        _await(server, f"{url}/health", output)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def _await(server: "subprocess.Popen[bytes]", url: str, output: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, output.read_text()
        with contextlib.suppress(httpx2.TransportError):
            httpx2.get(url, timeout=30).raise_for_status()
            return
        time.sleep(0.2)
    raise AssertionError(output.read_text())
