"""What a span costs: off, of a trace that is not sampled, and sent to a collector.

A collector in a process of its own takes all and reads nothing. `recorded_us` is what the caller waits for;
`sent_cpu_us` is the CPU time of this process, the thread that encodes and sends included. A prompt that is trained on
has about ten spans.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from shared.tracing import spans
from shared.tracing.kinds import GENERATE
from shared.tracing.settings import TracesSettings
from shared.tracing.start import tracing
from tests.bench.timing import Spread

QUICK = {"rounds": 2, "spans": 1000}
_CONTEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_COLLECTOR = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=11, help="of each, in turns")
    parser.add_argument("--spans", type=int, default=20_000, help="in a round")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes about a minute."""
    count = arguments.spans
    off, unsampled, recorded, sent = list[float](), list[float](), list[float](), list[float]()
    with _collector() as endpoint:
        settings = TracesSettings(endpoint=endpoint, max_waiting=max(512, 2 * count), close_seconds=600)
        for number in range(arguments.rounds):
            off.append(_record(count, _CONTEXT))
            began = time.process_time()
            with tracing(settings, "bench", "bench"):
                recorded.append(_record(count, _CONTEXT))
            sent.append((time.process_time() - began) / count)
            with tracing(settings, "bench", "bench"):
                unsampled.append(_record(count, ""))
            sys.stderr.write(f"round {number + 1}/{arguments.rounds}: {1e6 * recorded[-1]:.1f} us a span\n")
    names = {"off_us": off, "unsampled_us": unsampled, "recorded_us": recorded, "sent_cpu_us": sent}
    return {name: asdict(Spread.of([1e6 * seconds for seconds in values])) for name, values in names.items()}


def _record(count: int, parent: str) -> float:
    """Seconds of a span, as generation records one."""
    began = time.perf_counter()
    for _ in range(count):
        with spans.span(GENERATE, parent) as span:
            span.set({"samples": 8, "prompt_tokens": 100, "response_tokens": 2000, "longest_tokens": 400})
    return (time.perf_counter() - began) / count


@contextmanager
def _collector() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", _COLLECTOR], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()
