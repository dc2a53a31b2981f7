"""The tutorial on one's own model, data and reward does what it says, from an empty folder to an exported model."""

import json
from pathlib import Path

from tests.support.pages import ROOT, follow


def test_own_model(tmp_path: Path) -> None:
    follow(ROOT / "docs/tutorials/own-model.md", tmp_path, timeout=400)
    summary = json.loads((tmp_path / "runs/first/summary.json").read_text())
    assert summary["trajectories_trained"] == 4 * 8 * 8
    card = (tmp_path / "trained/README.md").read_text()
    assert "- train: `" in card
