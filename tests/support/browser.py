"""Chromium without a window, clicked and read through its DevTools protocol."""

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

from shared.process.orphans import die_with_parent

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no Chromium on PATH: apt-get install chromium"
_START_SECONDS = 60.0
_ANSWER_SECONDS = 60.0
_FLAGS = (
    "--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--force-device-scale-factor=1",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--no-proxy-server",
)  # fmt: skip


class Page:
    """One tab. `errors` are what its scripts threw and what it was not allowed to load."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> Any:
        """Sends a command of the protocol and gives its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=_ANSWER_SECONDS))
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])

    def open(self, url: str) -> None:
        self.command("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = _ANSWER_SECONDS) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"not within {seconds:g} s: {condition}; errors of the page: {self.errors}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """What a reader sees of the first element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def texts(self, selector: str) -> list[str]:
        """What a reader sees of each element."""
        found = self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")
        return list(found)

    def point(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """Where in the window a place of the first element lies, after scrolling there; x and y are shares of it."""
        found = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({ block: 'center', behavior: 'instant' }); const r = e.getBoundingClientRect(); "
            f"return [r.x + r.width * {x}, r.y + r.height * {y}]; }})()"
        )
        return float(found[0]), float(found[1])

    def mouse(self, kind: str, at: tuple[float, float], clicks: int = 0) -> None:
        self.command(
            "Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], clickCount=clicks,
            button="left" if kind != "mouseMoved" or clicks else "none", buttons=1 if clicks else 0,
        )  # fmt: skip

    def hover(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        self.mouse("mouseMoved", self.point(selector, x, y))

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        at = self.point(selector, x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, at, clicks=1)

    def drag(self, selector: str, start: float, end: float) -> None:
        """From one share of the element's width to another."""
        self.mouse("mousePressed", self.point(selector, start), clicks=1)
        for share in (start + (end - start) / 2, end):
            self.mouse("mouseMoved", self.point(selector, share), clicks=1)
        self.mouse("mouseReleased", self.point(selector, end), clicks=1)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def type(self, text: str) -> None:
        self.command("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def scheme(self, name: str) -> None:
        """What the reader's system prefers: light or dark."""
        # Nothing moves by itself, so that a place that was found is still there when it is clicked.
        wishes = {"prefers-color-scheme": name, "prefers-reduced-motion": "reduce"}
        features = [{"name": feature, "value": value} for feature, value in wishes.items()]
        self.command("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser of its own with one tab, and nothing left of it afterwards."""
    assert CHROMIUM, MISSING
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, *root, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent,
    )  # fmt: skip
    try:
        address = _address(process, profile / "DevToolsActivePort")
        with connect(address, max_size=None, open_timeout=_ANSWER_SECONDS, proxy=None) as socket:
            yield Page(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(process: subprocess.Popen[bytes], file: Path) -> str:
    """The web socket of the tab, once the browser has written down its port."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        if file.is_file() and (lines := file.read_text().splitlines()):
            with urlopen(f"http://127.0.0.1:{lines[0]}/json", timeout=_ANSWER_SECONDS) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError(f"Chromium did not open a port within {_START_SECONDS:g} s")
