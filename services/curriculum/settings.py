"""Settings of the curriculum service: the tables [curriculum] and [data]."""

from typing import Literal, Self

from pydantic import Field, model_validator

from services.curriculum.data.settings import DataSettings
from services.curriculum.held_out import HeldOutSettings
from shared.settings import BaseSettings, ServerSettings
from shared.table import Table


class EvaluationSettings(HeldOutSettings):
    """Evaluation on held-out problems."""

    concurrency: int = Field(
        32, ge=1, description="held-out problems in flight; the services have to take all their responses at once"
    )
    answer_seconds: float = Field(
        600.0, gt=0, description="how long generation, and then reward, may take for all responses to one problem"
    )
    patience_seconds: float = Field(
        600.0, ge=0, description="how long an evaluation waits for generation and reward, as while they are restarted"
    )


class SelectionSettings(Table):
    """Which problems are trained on, in their turn."""

    strategy: Literal["uniform", "dynamic", "difficulty", "priority"] = Field(
        "uniform",
        description="uniform: all; dynamic: not those whose responses had equal rewards; difficulty: those of a solve "
        "rate from low to high; priority: as often as the row's priority says",
    )
    retry: float = Field(
        0.2,
        ge=0.001,
        le=1,
        description="share of its turns in which a problem is tried that dynamic or difficulty sets aside",
    )
    low: float = Field(0.1, ge=0, le=1, description="lowest solve rate that difficulty takes")
    high: float = Field(0.9, ge=0, le=1, description="highest solve rate that difficulty takes")
    problems: int = Field(
        1_000_000, ge=1, description="problems whose solve rates are kept in Redis, about 100 bytes each"
    )

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must be at most high")
        return self


class CurriculumSettings(ServerSettings):
    """How prompts are fed and versions evaluated."""

    port: int = Field(50054, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9104, ge=0, le=65535, description="Prometheus port; 0 takes a free one")
    evaluation: EvaluationSettings = EvaluationSettings()
    selection: SelectionSettings = SelectionSettings()
    generation_address: str = Field("127.0.0.1:50051", description="gRPC address of generation, for evaluation")
    environments_address: str = Field(
        "127.0.0.1:50055", description="gRPC address of environments, for evaluation of problems that have one"
    )
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

    @model_validator(mode="after")
    def _held_out_sets_are_due_when_versions_are_kept(self) -> Self:
        most = self.run.evaluate_every
        for table in self.data.eval:
            if table.every and (not most or table.every % most):
                raise ValueError(
                    f"every of held-out set {table.label!r} in data.eval is {table.every}; it must be 0 or a multiple "
                    f"of run.evaluate_every, which is {most}: these are the versions that the learner keeps"
                )
        return self

    @model_validator(mode="after")
    def _rows_have_priorities_where_they_decide(self) -> Self:
        chosen = self.curriculum.selection.strategy == "priority"
        if chosen and not any("priority" in source.columns for source in self.data.train):
            raise ValueError(
                "curriculum.selection.strategy 'priority' needs a column: set columns.priority in [[data.train]]"
            )
        return self
