"""Spans as a collector gets them by HTTP; one that is away, slow or hostile costs spans, which are counted."""

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from shared.tracing import spans
from shared.tracing.kinds import ADMIT, COLLATE, GENERATE, SCORE, STEP, TRAIN, WAIT, Training, Waiting
from shared.tracing.settings import TracesSettings
from shared.tracing.start import tracing
from tests.support.collector import Collector

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE, SPAN = PARENT.split("-")[1:3]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@contextmanager
def counted(**expected: int) -> Iterator[None]:
    """Spans of the block that were exported, failed and dropped."""
    before = {outcome: count(outcome) for outcome in ("exported", "failed", "dropped")}
    yield
    difference = {outcome: count(outcome) - earlier for outcome, earlier in before.items()}
    assert difference == {"exported": 0, "failed": 0, "dropped": 0} | expected


def count(outcome: str) -> float:
    return REGISTRY.get_sample_value("routershift_trace_spans_total", {"outcome": outcome}) or 0


def test_a_trace_has_one_first_span_and_all_others_are_its_children(collector: Collector) -> None:
    with counted(exported=4), collector.tracing("curriculum"):
        admission = spans.root(ADMIT)
        spans.record(WAIT, admission.traceparent, Waiting(stream="prompts", group="7/0", deliveries=2), 5.0, 6.5)
        with spans.span(GENERATE, admission.traceparent) as span:
            span.set({"samples": 4})
        with pytest.raises(KeyError), spans.span(SCORE, admission.traceparent):
            raise KeyError("a response that nobody else is to see")
        admission.set({"group": "7/0"})
        admission.end()
    (first,) = collector.named("admit prompt")
    (wait,) = collector.named("wait in stream")
    (generate,) = collector.named("generate group")
    (score,) = collector.named("score group")
    assert (first.parent, first.role, first.service, first.run) == ("", "producer", "routershift-curriculum", "run")
    assert {(span.trace, span.parent) for span in (wait, generate, score)} == {(first.trace, first.id)}
    assert (wait.began, wait.ended, wait.role) == (5_000_000_000, 6_500_000_000, "consumer")
    assert (first.attributes, generate.attributes) == ({"group": "7/0"}, {"samples": 4})
    assert (score.failed, generate.failed) == ("KeyError", None), "the type, and not what it says"


def test_a_block_is_the_parent_of_what_it_calls(collector: Collector) -> None:
    def in_a_thread() -> None:
        spans.span(COLLATE).end()

    async def in_a_task() -> None:
        with spans.span(GENERATE):
            pass

    async def work() -> None:
        with spans.span(SCORE, PARENT) as span:
            assert spans.metadata() == (("traceparent", span.traceparent),)
            await asyncio.gather(asyncio.to_thread(in_a_thread), asyncio.create_task(in_a_task()))
            assert spans.metadata() == (("traceparent", span.traceparent),)
        assert spans.metadata() == ()
        spans.span(COLLATE).end()  # of no block: there is no parent, and no span

    with collector.tracing():
        asyncio.run(work())
    (score,), (collate,), (generate,) = map(collector.named, ("score group", "collate", "generate group"))
    assert (score.trace, score.parent) == (TRACE, SPAN)
    assert {(span.trace, span.parent) for span in (collate, generate)} == {(TRACE, score.id)}


def test_a_step_is_a_trace_that_the_groups_link_to(collector: Collector) -> None:
    with collector.tracing(share=1e-12):  # a step is recorded because a group of its batch is
        with spans.root(STEP) as step:
            step.set({"step": 3})
            with spans.span(COLLATE):
                pass
        about = Training(step=3, staleness=1, samples=4, tokens=9)
        spans.record(TRAIN, PARENT, about, link=step.traceparent)
    (found,), (collate,), (train,) = map(collector.named, ("step", "collate", "train on group"))
    assert (collate.trace, collate.parent) == (found.trace, found.id)
    assert (train.trace, train.parent, train.links) == (TRACE, SPAN, [(found.trace, found.id)])
    assert train.attributes == about


def test_the_share_is_that_of_the_traces_and_a_trace_is_whole_or_not_at_all(collector: Collector) -> None:
    with collector.tracing(share=0.25):
        parents = []
        for _ in range(1000):
            admission = spans.root(ADMIT)
            spans.span(GENERATE, admission.traceparent).end()
            admission.end()
            parents.append(admission.traceparent)
        recorded = [parent for parent in parents if parent]
        assert 150 < len(recorded) < 350  # 250 on average, 14 of standard deviation
    assert all(int(parent.split("-")[1][16:], 16) < 2**62 for parent in recorded), "chosen by the id of the trace"
    assert len(collector.named("admit prompt")) == len(collector.named("generate group")) == len(recorded)


def test_a_span_that_never_ends_is_not_sent(collector: Collector) -> None:
    with counted(), collector.tracing():
        spans.root(ADMIT)
    assert collector.spans == []


def test_a_clock_that_was_set_back_makes_no_negative_time(collector: Collector) -> None:
    with collector.tracing():
        waiting = Waiting(stream="prompts", group="0/0", deliveries=1)
        spans.record(WAIT, PARENT, waiting, time.time() + 3600)
        spans.record(WAIT, PARENT, waiting, 18446744073709551615 / 1000)
    assert len(collector.spans) == 2
    assert all(span.began == span.ended for span in collector.spans)


def test_a_name_of_any_length_is_cut(collector: Collector) -> None:
    with collector.tracing():
        spans.record(WAIT, PARENT, Waiting(stream="prompts", group="x" * 1_000_000, deliveries=1))
    assert collector.spans[0].attributes["group"] == "x" * 256


def test_headers_come_from_the_environment_and_from_a_file(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-from=environment")
    (tmp_path / "headers").write_text("Authorization=Bearer secret\n")
    with collector.tracing(headers_file=tmp_path / "headers"):
        spans.root(ADMIT).end()
    (headers,) = collector.headers
    assert (headers["path"], headers["x-from"]) == ("/v1/traces", "environment")
    assert headers["authorization"] == "Bearer secret"


def test_a_collector_that_refuses_is_said_once_and_its_spans_are_counted(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 400
    before = count("failed")
    with counted(failed=1200, exported=1), caplog.at_level(logging.INFO), collector.tracing():
        for _ in range(1200):
            spans.root(ADMIT).end()
        while count("failed") < before + 1200:
            time.sleep(0.01)
        collector.status = 200
        spans.root(ADMIT).end()
    said = [record.message for record in caplog.records]
    assert [message for message in said if "takes no spans" in message] == [
        f"traces: {collector.url}/v1/traces takes no spans, which are lost until it does: "
        "Failed to export spans batch code: 400, reason: Bad Request"
    ]
    assert f"traces: {collector.url}/v1/traces takes spans again" in said


def test_one_that_is_away_loses_spans_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = TracesSettings(endpoint=f"http://127.0.0.1:{port}", close_seconds=0.2, timeout_seconds=600)
    with counted(dropped=3), caplog.at_level(logging.ERROR), tracing(settings, "learner", "run"):
        for _ in range(3):
            spans.root(ADMIT).end()
    assert "3 spans were not sent" in caplog.text
    assert "within 0.2 s (traces.close_seconds)" in caplog.text


def test_one_that_hangs_fills_the_queue_and_no_more(collector: Collector) -> None:
    collector.answers.clear()
    with counted(dropped=2000), collector.tracing(max_waiting=600, close_seconds=0.2):
        for _ in range(2000):
            spans.root(ADMIT).end()
    assert collector.spans == []


def test_what_waits_is_sent_at_the_end(collector: Collector) -> None:
    with counted(exported=100), collector.tracing():
        for _ in range(100):
            spans.root(ADMIT).end()
    assert len(collector.spans) == 100


def test_a_proxy_is_not_asked_for_what_is_on_this_machine(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with counted(exported=1), collector.tracing():
        spans.root(ADMIT).end()


def test_the_switch_of_opentelemetry_holds(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with counted(), collector.tracing():
        admission = spans.root(ADMIT)
        assert admission.traceparent == ""
        admission.end()
        spans.span(GENERATE, PARENT).end()
    assert collector.requests == 0
