"""Settings of the curriculum service: the table [curriculum]."""

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from shared.settings import BaseSettings, ServerSettings, Table


class EvaluationSettings(Table):
    """Evaluation on held-out problems."""

    problems: int = Field(512, ge=1, description="held-out problems of an evaluation")
    samples: int = Field(2, ge=1, description="sampled responses to each problem, beside the greedy one")
    pass_at_k: tuple[int, ...] | None = Field(
        None, description="each k of pass@k, at most samples, as in 2,4; default: the powers of two from 2"
    )
    concurrency: int = Field(32, ge=1, description="held-out problems in flight")
    answer_seconds: float = Field(
        600.0, gt=0, description="how long generation, and then reward, may take for all responses to one problem"
    )
    patience_seconds: float = Field(
        600.0, ge=0, description="how long an evaluation waits for generation and reward, as while they are restarted"
    )

    @property
    def pass_at(self) -> tuple[int, ...]:
        """The k of every pass@k that an evaluation measures beside pass@1."""
        powers = tuple(2**i for i in range(1, self.samples.bit_length()))
        return powers if self.pass_at_k is None else self.pass_at_k

    @field_validator("pass_at_k", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Environment and flags have no lists."""
        return value.split(",") if isinstance(value, str) else value

    @field_validator("pass_at_k")
    @classmethod
    def _is_sampled_often_enough(cls, value: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        most = info.data.get("samples", 0)
        if value is not None and not all(1 <= k <= most for k in value):
            raise ValueError(f"each k must be 1 to {most}, which is evaluation.samples")
        return value


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
