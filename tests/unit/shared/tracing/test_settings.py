"""The table [traces]: an endpoint, headers that are no setting, and what is missing is named before anything starts."""

import importlib.util
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.errors import InvalidInputError, MissingDependencyError, NotFoundError
from shared.recipes import load
from shared.settings import BaseSettings
from shared.tracing import start
from shared.tracing.settings import TracesSettings
from shared.tracing.start import check_traces


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector.example/otlp", "https://collector.example/otlp/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_spans_are_posted_below_the_endpoint(endpoint: str, url: str) -> None:
    assert TracesSettings(endpoint=endpoint).url == url


def test_an_empty_endpoint_is_none() -> None:
    """As an environment has it that passes a variable on."""
    assert TracesSettings(endpoint="").endpoint is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:4318",
        "localhost:4318",
        "grpc://127.0.0.1:4317",
        "http://",
        "http://host:port",
        "http://host:0",
        "http://host:99999",
        "http://[::1",
        "traces",
    ],
)
def test_one_that_is_no_url_is_refused_by_name(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'traces.endpoint' is .*: expected a URL as in http://127.0.0.1:4318"):
        load(BaseSettings, None, {}, [f"run.model={tmp_path}", f"traces.endpoint={endpoint}"])


@pytest.mark.parametrize(
    "endpoint", ["http://user:pass-word@host", "https://pass-word@host:4318", "http://host?key=pass-word", "pass-word@"]
)
def test_one_with_a_secret_is_refused_without_saying_it(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="endpoint holds a user, a password or a query") as failure:
        load(BaseSettings, None, {}, [f"run.model={tmp_path}", f"traces.endpoint={endpoint}"])
    assert "pass-word" not in str(failure.value)


def test_headers_are_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("# of the collector\nAuthorization=Basic dXNlcjpwYXNz==\n\n X-Scope-OrgID = team \n")
    settings = TracesSettings(endpoint="https://collector.example", headers_file=file)
    assert check_traces(settings) == {"Authorization": "Basic dXNlcjpwYXNz==", "X-Scope-OrgID": "team"}


@pytest.mark.parametrize("line", ["secret-word", "=secret-word", "na me=secret-word", "name=secret\x07word", "name="])
def test_a_line_that_is_no_header_is_named_by_its_number_alone(tmp_path: Path, line: str) -> None:
    file = tmp_path / "headers"
    file.write_text(f"first=one\n{line}\n")
    with pytest.raises(InvalidInputError, match=r"line 2 of traces.headers_file .* NAME=VALUE") as failure:
        check_traces(TracesSettings(endpoint="https://collector.example", headers_file=file))
    assert "secret" not in str(failure.value).replace(str(file), "")


def test_headers_leave_this_machine_by_tls_alone(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("name=value")
    assert check_traces(TracesSettings(endpoint="http://localhost:4318", headers_file=file))
    with pytest.raises(InvalidInputError, match="clear text; take an https:// endpoint"):
        check_traces(TracesSettings(endpoint="http://collector:4318", headers_file=file))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    settings = TracesSettings(endpoint="https://collector.example", headers_file=tmp_path / "headers")
    with pytest.raises(NotFoundError, match=r"traces.headers_file is .*headers.*: No such file"):
        check_traces(settings)
    with pytest.raises(ValidationError, match="headers_file is set and endpoint is not"):
        TracesSettings(headers_file=tmp_path)


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
@pytest.mark.parametrize("is_parent", [False, True])
def test_a_package_that_is_missing_is_named_with_the_extra(
    missing: str, is_parent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> object:
        if name == missing and is_parent:
            raise ModuleNotFoundError(name=missing.rpartition(".")[0])
        return None if name == missing else importlib.util.find_spec(name)

    monkeypatch.setattr(start, "find_spec", find)
    with pytest.raises(MissingDependencyError, match=r"traces.endpoint is 'http://x'.*'routershift\[traces\]'"):
        check_traces(TracesSettings(endpoint="http://x"))
    assert check_traces(TracesSettings()) == {}, "nothing is needed where it is off"
