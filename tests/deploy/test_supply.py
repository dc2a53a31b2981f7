"""Bills of materials, licences and the audit of what the images install."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from deploy.locks import supply

VULNERABLE = "certifi"


class Osv(BaseHTTPRequestHandler):
    """Answers as osv.dev, which knows one fault of one package."""

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        assert all(set(each) == {"package", "version"} and "+" not in each["version"] for each in queries)
        names = [each["package"]["name"] for each in queries]
        fault: dict[str, Any] = {"vulns": [{"id": "PYSEC-1"}]}
        body = json.dumps({"results": [fault if name == VULNERABLE else {} for name in names]}).encode()
        self.send_response(200 if self.path == "/v1/querybatch" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def source() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_audit_names_package_and_fault(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert supply.audit(source) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{VULNERABLE} ")
    assert first.endswith(": PYSEC-1")
    assert ", 1 with known vulnerabilities by" in last


def test_an_audit_that_could_ask_nobody_says_so(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    closed = source.rpartition(":")[0] + ":9"
    assert supply.audit(closed) == supply.NOBODY_ASKED
    assert f"{closed} does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("image", supply.IMAGES)
def test_a_bill_has_every_locked_package_with_its_hash(image: str) -> None:
    found = supply.bill(image)["components"]
    names = [each["name"] for each in found]
    locked = [line for lock in supply.IMAGES[image] for line in (supply.REQUIREMENTS / f"{lock}.txt").open()]
    assert len(set(names)) == len(names) == len(locked)
    assert all(len(each["hashes"][0]["content"]) == 64 for each in found)
    assert all(each["purl"] == f"pkg:pypi/{each['name']}@{each['version'].replace('+', '%2B')}" for each in found)


def test_licences_are_known_of_all() -> None:
    """But of what this environment does not have, and of two whose metadata names none."""
    unknown = {each.name for each in supply.everything() if each.licence == "unknown"}
    assert unknown <= {"async-timeout", "oss-harmony", "setuptools"}
