"""The metrics port under connections that send nothing: threads stay few, and Prometheus is answered."""

import socket
import threading
import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from shared.process.exposition import serve_metrics
from shared.process.metrics import RUN_INFO

MOST = 8


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:  # of loopback
        return str(answer.read().decode())


def until_closed(connection: socket.socket) -> None:
    connection.settimeout(20)
    assert connection.recv(1) == b""


def test_idle_connections_take_no_more_threads_than_there_are_places_and_keep_nobody_out() -> None:
    port = serve_metrics("127.0.0.1", 0, "one", MOST, seconds=600)
    before = threading.active_count()
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(10 * MOST)]
    try:
        assert "process_start_time_seconds" in scrape(port)
        assert threading.active_count() <= before + MOST + 1
        until_closed(idle[0])  # the oldest made room
    finally:
        for connection in idle:
            connection.close()


def test_a_request_that_never_ends_is_ended() -> None:
    port = serve_metrics("127.0.0.1", 0, "one", MOST, seconds=0.5)
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
        until_closed(slow)
    assert "process_start_time_seconds" in scrape(port)


def test_connections_that_end_leave_no_threads() -> None:
    port = serve_metrics("127.0.0.1", 0, "one", MOST)
    before = threading.active_count()
    for _ in range(3 * MOST):
        scrape(port)
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_every_series_tells_its_run() -> None:
    RUN_INFO.labels("one").set(1)
    families = list(text_string_to_metric_families(scrape(serve_metrics("127.0.0.1", 0, "one"))))
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["run"] for sample in samples} == {"one"}
    assert {"process_start_time_seconds", "routershift_run_info", "python_info"} <= {sample.name for sample in samples}
