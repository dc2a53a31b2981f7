"""The tutorial does what it says, from its package to a trained model, with fewer steps."""

import json
import subprocess
from pathlib import Path

from tests.support.command import settings
from tests.support.pages import ROOT, follow

PAGE = ROOT / "docs" / "tutorials" / "train-your-own.md"


def test_train_your_own(tmp_path: Path) -> None:
    environment = follow(PAGE, tmp_path)
    few = settings(run__steps=2, run__groups_per_step=16)
    command = ["routershift", "run", "no-products.toml", *few]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["task"], summary["steps"]) == ("no_products", 2)
    assert summary["trajectories_trained"] == 2 * 16 * 8
