"""A run with its own data and verifier, whose provenance is told."""

from pathlib import Path

import pytest

from tests.support.data import sums, write_jsonl
from tests.support.models import save_model

RECIPE = """
[run]
id = "mine"
model = "./model"
[data]
train = [{source = "rows.jsonl", columns = {prompt = "question", answer = "answer"}, verifier = {file = "mine.py"}}]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", sums(10))
    (tmp_path / "mine.py").write_text("def score(response, reference):\n    return 1.0\n")
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return file
