"""Settings of the curriculum service: the table [curriculum]."""

from pydantic import Field

from shared.settings import BaseSettings, Door


class CurriculumSettings(Door):
    port: int = Field(50054, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9104, ge=0, le=65535, description="Prometheus port; 0 takes a free one")
    max_tokens: int = Field(24, ge=1, description="longest response")
    evaluate_every: int = Field(20, ge=0, description="versions between evaluations; 0: first and last only")
    evaluation_problems: int = Field(512, ge=1, description="held-out problems of an evaluation")
    evaluation_samples: int = Field(2, ge=1, description="sampled responses to each of them")
    evaluation_concurrency: int = Field(32, ge=1, description="held-out problems in flight")
    generation_address: str = Field("127.0.0.1:50051", description="gRPC address of generation, for evaluation")
    reward_address: str = Field("127.0.0.1:50052", description="gRPC address of reward, for evaluation")
    poll_seconds: float = Field(0.05, gt=0, description="wait for a ticket, and between looks at the run's progress")


class Settings(BaseSettings):
    curriculum: CurriculumSettings = CurriculumSettings()
