"""Off, tracing costs nothing: no module of the SDK, no span, no field on a stream."""

import subprocess
import sys

import pytest

from shared.tracing import spans
from shared.tracing.kinds import ADMIT, GENERATE, WAIT, Waiting

CONTEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

# redis-py imports OpenTelemetry's metrics by itself, where it is installed; traces and exporter are ours alone.
IMPORTS = """
import sys
import services.cli.main, services.curriculum.service, services.generation.service
import services.learner.service, services.reward.service
from services.cli.preflight import CHECKS
from shared.tracing.settings import TracesSettings
from shared.tracing.start import tracing
with tracing(TracesSettings(), "learner", "run"):
    ours = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "shared.tracing.otlp")
    print([name for name in sys.modules if name.startswith(ours)])
"""


def test_no_service_imports_it() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout == "[]\n"


def test_no_span_is_recorded_and_no_context_is_given_on() -> None:
    for span in (spans.root(ADMIT), spans.span(ADMIT, CONTEXT), spans.span(ADMIT)):
        with span:
            assert spans.metadata() == ()
        assert span.traceparent == ""
    spans.record(WAIT, CONTEXT, Waiting(stream="prompts", group="0/0", deliveries=1))


def test_a_failure_in_a_block_is_the_same_without_it() -> None:
    with pytest.raises(KeyError, match="x"), spans.span(GENERATE, CONTEXT):
        raise KeyError("x")
