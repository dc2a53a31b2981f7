"""Tracing of a process, from its start to its end."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

from routershift.loopback import is_loopback
from shared.errors import InvalidInputError, MissingDependencyError, NotFoundError
from shared.tracing import spans
from shared.tracing.metrics import OUTCOMES, SPANS
from shared.tracing.settings import TracesSettings

_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*([\x20-\x7e]+)")


def check_traces(settings: TracesSettings) -> Mapping[str, str]:
    """Checks what can be known without the collector; gives its headers.

    Raises:
        MissingDependencyError: OpenTelemetry is not installed.
        NotFoundError, InvalidInputError: the file of headers is missing or wrong, or would go to another machine in
            clear text.
    """
    if settings.endpoint is None:
        return {}
    for package in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        if not _is_installed(package):
            raise MissingDependencyError(
                f"traces.endpoint is {settings.endpoint!r}, which needs the package {package}: "
                "pip install 'routershift[traces]'"
            )
    return _headers(settings)


@contextlib.contextmanager
def tracing(settings: TracesSettings, service: str, run_id: str) -> Iterator[None]:
    """Records the spans of this process for as long as the block lasts, where `traces.endpoint` is set.

    Raises what `check_traces` raises.
    """
    headers = check_traces(settings)
    for outcome in OUTCOMES:
        SPANS.labels(outcome)  # from 0 on: Prometheus sees no increase from nothing to 1
    if settings.endpoint is None:
        yield
        return
    from shared.tracing.otlp import OtlpTracer  # not before it is wanted: OpenTelemetry is an extra

    tracer = OtlpTracer(settings, headers, service, run_id)
    spans.install(tracer)
    try:
        yield
    finally:
        spans.install(None)
        tracer.close()


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _headers(settings: TracesSettings) -> dict[str, str]:
    if (file := settings.headers_file) is None:
        return {}
    url = urlsplit(settings.endpoint or "")
    if url.scheme != "https" and not is_loopback(url.netloc):
        raise InvalidInputError(
            f"traces.endpoint is {settings.endpoint!r} and traces.headers_file is set: headers may be secrets, and "
            "would leave this machine in clear text; take an https:// endpoint, or a collector on this machine"
        )
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise NotFoundError(f"traces.headers_file is {file}, which cannot be read: {reason}") from None
    headers = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if (match := _HEADER.fullmatch(line)) is None:
            raise InvalidInputError(f"line {number} of traces.headers_file {file} is not of the form NAME=VALUE")
        headers[match[1]] = match[2]
    return headers
