"""Faults in the middle of episodes: a run whose prompts have an environment goes on, and its account holds."""

from collections.abc import Mapping
from typing import ClassVar

from tests.chaos.table import ShortTable


class TestEpisodes(ShortTable):
    settings: ClassVar[Mapping[str, object]] = {"run.task": "calculator"}
    episodes = True
    faults = (
        "kill environments", "stop environments", "cut environments", "deliver_twice environments", "kill generation",
    )  # fmt: skip
