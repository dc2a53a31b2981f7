"""Settings of the reward service: the table [reward]."""

from typing import Any

from pydantic import Field

from shared.settings import BaseSettings, ServerSettings
from shared.table import Table


class UnscoredSettings(Table):
    """Samples kept for people to read, in unscored/ of the run's folder: those that no verdict was reached on."""

    groups: int = Field(2, ge=0, description="groups kept of each policy version and reason; 0: none")
    max_bytes: int = Field(
        64 << 20, ge=1 << 20, description="bytes that each reward process keeps, above which the oldest are removed"
    )


class RewardSettings(ServerSettings):
    """How responses are verified."""

    port: int = Field(50052, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9102, ge=0, le=65535, description="Prometheus port; 0 takes a free one")
    processes: int = Field(2, ge=1, description="worker processes of each verifier that computes")
    memory_mb: int = Field(4096, ge=256, description="what a worker process may allocate, in MiB")
    printed_kb: int = Field(
        1024, ge=1, description="what a verifier may print for one item, in KiB; one that prints more has failed"
    )
    timeout_seconds: float = Field(10.0, gt=0, description="deadline of one verification")
    attempts: int = Field(2, ge=1, description="verifications of a group before it is dropped")
    groups_in_flight: int = Field(16, ge=1, description="groups of the stream that are scored at once")
    max_queued: int = Field(8192, ge=1, description="items being scored or waiting for it; more are refused")
    max_early: int = Field(
        65536, ge=1, description="early scores kept until their groups come; of more, the oldest are forgotten"
    )
    unscored: UnscoredSettings = UnscoredSettings()
    verifiers: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="a table [reward.verifiers.NAME] each: `kind`, and the settings of that kind"
    )


class Settings(BaseSettings):
    reward: RewardSettings = RewardSettings()
