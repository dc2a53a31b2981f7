"""Settings of the environments service: the table [environments]."""

from typing import Any

from pydantic import Field

from services.environments.gateway.settings import GatewaySettings
from services.environments.playing.limits import EpisodeLimits
from shared.settings import BaseSettings, ServerSettings
from shared.table import Table


class HostingSettings(Table):
    """Episodes of environments that run here, for callers of Reset, Step and Close."""

    max_episodes: int = Field(1024, ge=1, description="episodes open at once; more are refused")
    idle_seconds: float = Field(600.0, gt=0, description="silence of a caller after which its episode is closed")
    max_kb: int = Field(1024, ge=1, description="what a caller may send in one call, in KiB")


class EnvironmentsSettings(EpisodeLimits, ServerSettings):
    """Which environments there are, and how episodes are played with the policy."""

    port: int = Field(50055, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9105, ge=0, le=65535, description="Prometheus port; 0 takes a free one")
    generation_address: str = Field("127.0.0.1:50051", description="gRPC address of generation, for the turns")
    groups_in_flight: int = Field(32, ge=1, description="groups of the stream that are played at once")
    max_plays: int = Field(64, ge=1, description="groups that callers of Play may have in progress; more are refused")
    weights_wait_seconds: float = Field(
        120.0,
        ge=0,
        description="how long a prompt waits until generation serves the weights announced last, before weights that "
        "are at most run.max_staleness behind will do",
    )
    answer_seconds: float = Field(
        300.0, gt=0, description="how long generation may take for one turn, a restart of it included"
    )
    hosting: HostingSettings = HostingSettings()
    gateway: GatewaySettings = GatewaySettings()
    named: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="a table [environments.named.NAME] each: `kind`, and the settings of that kind",
    )


class Settings(BaseSettings):
    environments: EnvironmentsSettings = EnvironmentsSettings()
