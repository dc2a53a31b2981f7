"""Faults in the middle of episodes that programs play over HTTP, those of the page about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.chaos.table import ShortTable
from tests.support.agents import install_agent


class TestAgents(ShortTable):
    settings: ClassVar[Mapping[str, object]] = {
        "run.groups_per_step": 2,
        "rollout.n": 4,
        "rollout.max_tokens": 96,
        "data.held_out_share": 0.02,
        "environments.named.helper.processes": 2,
    }
    episodes = True
    faults = ("kill environments", "stop environments", "kill generation")

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        install_agent(folder)
        return folder / "recipe.toml"
