"""Faults in the middle of episodes that programs play over HTTP, those of the page about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.chaos.table import ShortTable
from tests.support.data import write_jsonl
from tests.support.gateway import save_agent_model
from tests.support.pages import ROOT, install


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
        install(ROOT / "docs/how-to/train-an-openai-agent.md", folder)
        save_agent_model(folder / "model", says="0123456789", max_position_embeddings=512)
        rows = [{"question": f"What is {i % 10} + 0, to question {i}?", "answer": str(i % 10)} for i in range(200)]
        write_jsonl(folder / "questions.jsonl", rows)
        return folder / "recipe.toml"
