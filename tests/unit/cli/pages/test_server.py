"""The server of `routershift view`, asked over HTTP as browsers and others do."""

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cli.main import main
from services.cli.pages.server import ViewServer
from shared.errors import PreconditionError
from shared.tracking import records
from tests.support.run_records import evaluation, sample, step, write_run, write_samples


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ViewServer]:
    write_run(tmp_path / "run", [step(1)], [evaluation(0, 0.5)])
    write_samples(tmp_path / "run", (1,), each=3)
    with ViewServer(tmp_path / "run", "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: ViewServer, path: str, method: str = "GET", host: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)  # type: ignore[arg-type]
    try:
        sent = {"Host": host or server.address, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request(method, path, headers=sent)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def error_of(body: bytes) -> str:
    return str(json.loads(body)["error"])


def test_the_page_and_what_guards_it(server: ViewServer) -> None:
    status, headers, body = ask(server, "/")
    assert status == 200
    assert b"connect-src &#39;self&#39;" in body
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
    assert ask(server, "/", method="HEAD")[2] == b""


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8787", "10.0.0.7"], ids=lambda host: host
)
def test_an_address_or_localhost_is_answered(server: ViewServer, host: str) -> None:
    assert ask(server, "/api/samples", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8787", "localhost.evil.example", "127.0.0.1.nip.io", " "]
)
def test_a_name_that_is_not_ours_is_not_answered(server: ViewServer, host: str) -> None:
    """What a page does that has its own name point at us after it was loaded."""
    for path in ("/", "/api/samples", "/api/sample?step=1&trajectory=00010000/0/0"):
        status, _, body = ask(server, path, host=host)
        assert status == 421
        assert b"prompt" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_but_reading(server: ViewServer, method: str) -> None:
    assert ask(server, "/api/samples", method=method)[0] == 501


def test_the_page_is_sent_again_only_where_it_changed(server: ViewServer) -> None:
    tag = ask(server, "/")[1]["ETag"]
    status, _, body = ask(server, "/", If_None_Match=tag)
    assert (status, body) == (304, b"")
    records.append(server.folder / records.LEARNER, step(2))
    status, headers, _ = ask(server, "/", If_None_Match=tag)
    assert status == 200
    assert headers["ETag"] != tag
    write_samples(server.folder, (2,), each=1)
    assert ask(server, "/", If_None_Match=headers["ETag"])[0] == 200


def test_samples_come_by_page_and_one_by_one(server: ViewServer) -> None:
    status, _, body = ask(server, "/api/samples?limit=2&sort=trajectory&descending=no")
    found = json.loads(body)
    assert (status, found["total"], len(found["rows"])) == (200, 3, 2)
    status, _, body = ask(server, "/api/sample?step=1&trajectory=" + found["rows"][0]["trajectory"])
    one: dict[str, Any] = json.loads(body)
    expected = sample(1, 0)
    assert (one["response"], one["tokens"]["pieces"]) == (expected.response, list(expected.tokens.pieces))
    assert len(one["tokens"]["drift"][0]) == len(one["layers"]) == 3


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/nothing", 404, "there is nothing at /nothing"),
        ("/../../etc/passwd", 404, "there is nothing at"),
        ("/api/samples?limit=5000", 400, "limit is 5000; give 1 to 200"),
        ("/api/samples?sort=%3Cscript%3E", 400, "sort is '<script>'"),
        ("/api/samples?" + "&".join(f"a{i}=1" for i in range(50)), 400, "fields"),
        ("/api/sample", 400, "step is ''"),
        ("/api/sample?step=-1", 400, "step is '-1'"),
        ("/api/sample?step=" + "9" * 5000, 400, "step is"),
        ("/api/sample?step=9&trajectory=a", 404, "step 9 has no samples"),
        ("/api/sample?step=1&trajectory=../../x", 404, "no sample '../../x'"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_line(server: ViewServer, path: str, status: int, message: str) -> None:
    found, headers, body = ask(server, path)
    assert (found, headers["Content-Type"]) == (status, "application/json")
    assert message in error_of(body)


def test_a_torn_sample_and_a_spoilt_record_are_named(server: ViewServer) -> None:
    (data,) = server.folder.glob("samples/*.bin")
    data.write_bytes(b"x" * data.stat().st_size)
    status, _, body = ask(server, "/api/sample?step=1&trajectory=00010000/0/0")
    assert status == 500
    assert data.name in error_of(body)
    (server.folder / "summary.json").write_text("{")
    status, _, body = ask(server, "/")
    assert status == 500
    assert "summary.json is not JSON" in error_of(body)


def test_a_run_that_has_not_begun_has_a_page(tmp_path: Path) -> None:
    with ViewServer(tmp_path, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask(server, "/")[0] == 200
        server.shutdown()


def test_a_port_that_is_taken(tmp_path: Path, server: ViewServer, capsys: pytest.CaptureFixture[str]) -> None:
    port = server.server_address[1]
    with pytest.raises(PreconditionError, match=f"cannot listen at 127.0.0.1:{port}"):
        ViewServer(tmp_path, "127.0.0.1", port)
    assert main(["view", str(tmp_path), "--port", str(port)]) == 2
    assert "give another --port" in capsys.readouterr().err
    assert main(["view", str(tmp_path), "--port", "65536"]) == 2
    assert main(["view", str(tmp_path / "none")]) == 2
    assert main(["view", str(tmp_path), "--host", "no such host", "--port", "0"]) == 2


def test_it_begins_without_what_only_services_need() -> None:
    """They take half of a second to import, in which nobody sees a page."""
    heavy = {"pydantic", "grpc", "redis", "torch", "transformers", "prometheus_client"}
    code = f"import sys, services.cli.commands.view; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
