"""Faults in the middle of episodes: a run whose prompts have an environment goes on, and its account holds."""

from tests.chaos.table import ShortTable


class TestEpisodes(ShortTable):
    task = "calculator"
    faults = (
        "kill environments", "stop environments", "cut environments", "deliver_twice environments", "kill generation",
    )  # fmt: skip
