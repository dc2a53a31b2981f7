"""Settings of the curriculum service: the tables [curriculum] and [data]."""

from typing import Self

from pydantic import Field, model_validator

from services.curriculum.data.settings import DataSettings
from services.curriculum.held_out import HeldOutSettings
from shared.settings import BaseSettings, ServerSettings


class EvaluationSettings(HeldOutSettings):
    """Evaluation on held-out problems."""

    concurrency: int = Field(32, ge=1, description="held-out problems in flight")
    answer_seconds: float = Field(
        600.0, gt=0, description="how long generation, and then reward, may take for all responses to one problem"
    )
    patience_seconds: float = Field(
        600.0, ge=0, description="how long an evaluation waits for generation and reward, as while they are restarted"
    )


class CurriculumSettings(ServerSettings):
    """How prompts are fed and versions evaluated."""

    port: int = Field(50054, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9104, ge=0, le=65535, description="Prometheus port; 0 takes a free one")
    evaluation: EvaluationSettings = EvaluationSettings()
    generation_address: str = Field("127.0.0.1:50051", description="gRPC address of generation, for evaluation")
    reward_address: str = Field("127.0.0.1:50052", description="gRPC address of reward, for evaluation")
    poll_seconds: float = Field(0.05, gt=0, description="wait for a ticket, and between looks at the run's progress")


class Settings(BaseSettings):
    curriculum: CurriculumSettings = CurriculumSettings()
    data: DataSettings = DataSettings()

    @model_validator(mode="after")
    def _has_no_two_origins_of_prompts(self) -> Self:
        if self.run.task is not None and self.data.train:
            raise ValueError(f"run.task is {self.run.task!r}, and there is [[data.train]]; take one of both out")
        return self
