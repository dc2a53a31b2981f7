"""Settings of the agent gateway: the table [environments.gateway]."""

from pydantic import Field

from shared.table import Table


class RecordsSettings(Table):
    """Episodes that callers open for themselves, and the records of those that have ended."""

    max_open: int = Field(64, ge=1, description="such episodes open at once; more are refused")
    max_ended: int = Field(1000, ge=1, description="records of ended ones that are kept; the oldest make room")
    max_mb: int = Field(
        256, ge=1, description="all of them together, in MiB; records make room, and open ones get no more turns"
    )
    seconds: float = Field(3600.0, gt=0, description="how long a record is kept")


class GatewaySettings(Table):
    """An HTTP endpoint as OpenAI's, for inference and for agents that play episodes."""

    enabled: bool = Field(False, description="whether the endpoint is served; it needs the extra `gateway`")
    port: int = Field(0, ge=0, le=65535, description="HTTP port, at the host of the service; 0 takes a free one")
    model_name: str = Field("", description="`model` of requests; default: the name of the folder of run.model")
    max_body_bytes: int = Field(8 << 20, ge=1 << 10, description="longest body of a request")
    max_requests: int = Field(256, ge=1, description="requests in progress above which more are refused")
    max_connections: int = Field(1024, ge=1, description="connections above which more are closed at once")
    receive_seconds: float = Field(20.0, gt=0, description="how long the header of a request may take, and its body")
    request_seconds: float = Field(300.0, gt=0, description="deadline of a request's responses")
    records: RecordsSettings = RecordsSettings()
