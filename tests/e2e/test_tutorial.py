"""The tutorials do what they say, from their files to a trained model, with fewer steps."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.command import settings
from tests.support.pages import ROOT, follow
from tests.support.shell import called, shell


@pytest.mark.parametrize(
    ("page", "recipe", "run", "task"),
    [
        ("train-your-own", "no-products.toml", "test", "no_products"),
        ("agent-with-a-tool", "agent.toml", "agent", "rows"),
    ],
)
def test_tutorial(tmp_path: Path, page: str, recipe: str, run: str, task: str) -> None:
    environment = follow(ROOT / f"docs/tutorials/{page}.md", tmp_path)

    def routershift(*arguments: str) -> str:
        command = ["routershift", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    few = settings(
        run__id=run, run__steps=2, run__groups_per_step=16, environments__port=0, environments__metrics_port=0
    )
    summary = json.loads(routershift("run", recipe, *few).splitlines()[-1])
    assert (summary["task"], summary["steps"]) == (task, 2)
    assert summary["trajectories_trained"] == 2 * 16 * 8
    if page == "agent-with-a-tool":
        assert summary["turns_before"] > 1
        commands = called(shell(ROOT / f"docs/tutorials/{page}.md"), "routershift")
        for words in (words for words in commands if words[0] == "rollouts"):
            assert "earned" in routershift(*words)
        assert "tool" in routershift("rollouts", run, "-n", "200")  # the one best episode may have asked for nothing
