"""The table [traces]: where spans go, and how many."""

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from shared.table import Table

_PATH = "/v1/traces"


class TracesSettings(Table):
    """OpenTelemetry: a trace for each prompt, through all services. Off without an endpoint.

    Headers for the collector may be secrets and are no setting: they are in OTEL_EXPORTER_OTLP_HEADERS, or in a file.
    """

    endpoint: str | None = Field(
        None, description="collector that takes OTLP over HTTP, such as http://127.0.0.1:4318; default: no traces"
    )
    share: float = Field(1.0, gt=0, le=1, description="share of the prompts that have one, chosen by the trace's id")
    headers_file: Path | None = Field(
        None, description="headers for the collector, lines of NAME=VALUE; read at the start"
    )
    timeout_seconds: float = Field(10.0, gt=0, description="deadline of sending a batch of spans, retries included")
    max_waiting: int = Field(
        8192, ge=512, description="spans that may wait for a slow collector; those above are dropped and counted"
    )
    close_seconds: float = Field(
        5.0, gt=0, description="time that a service which ends gives to spans that wait; less than its watchdog_seconds"
    )

    @field_validator("endpoint")
    @classmethod
    def _is_a_url(cls, endpoint: str | None) -> str | None:
        if not endpoint:
            return None
        if _may_hold_a_secret(endpoint):
            return endpoint  # the table refuses it, since the error of a key shows its value
        try:
            url = urlsplit(endpoint)
            is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            is_url = False
        if not is_url:
            raise ValueError("expected a URL as in http://127.0.0.1:4318")
        return endpoint

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.endpoint and _may_hold_a_secret(self.endpoint):
            raise ValueError(
                "endpoint holds a user, a password or a query, which the run's folder would keep in clear text; take "
                "it out, and name a header with it in headers_file or OTEL_EXPORTER_OTLP_HEADERS"
            )
        if self.headers_file and not self.endpoint:
            raise ValueError("headers_file is set and endpoint is not; set the URL of the collector, or neither")
        return self

    @property
    def url(self) -> str:
        """Where spans are posted. An endpoint that names the path of traces already is taken as it is."""
        base = (self.endpoint or "").rstrip("/")
        return base if base.endswith(_PATH) else base + _PATH


def _may_hold_a_secret(endpoint: str) -> bool:
    return any(mark in endpoint for mark in "@?#")
