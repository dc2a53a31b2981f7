"""Faults of every kind: a run whose responses are one turn each goes on, and its account holds."""

from collections.abc import Mapping
from typing import ClassVar

from tests.chaos.table import ShortTable


class TestTable(ShortTable):
    settings: ClassVar[Mapping[str, object]] = {"run.task": "countdown"}
    faults = (
        "kill curriculum", "kill generation", "kill reward", "kill learner",
        "terminate generation", "stop reward", "stop learner", "wedge curriculum",
        "cut everybody", "half_open learner", "delay generation", "mute everybody",
        "kill_redis redis", "redis_full redis", "disk_full disk",
        "clock_ahead redis", "clock_behind learner", "deliver_twice learner", "replica reward",
    )  # fmt: skip
