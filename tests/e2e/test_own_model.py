"""The tutorial on one's own model, data and reward does what it says, from an empty folder to an exported model."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.pages import ROOT, follow

Reader = tuple[Path, dict[str, str]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The folder of a reader who has followed the page, and their environment."""
    folder = tmp_path_factory.mktemp("clean")
    return folder, follow(ROOT / "docs/tutorials/own-model.md", folder, timeout=400)


@pytest.fixture(scope="module")
def answer(reader: Reader) -> str:
    """What transformers says with the exported model."""
    return use("use.py", *reader)


def use(script: str, folder: Path, environment: dict[str, str]) -> str:
    """The last line that a script of the page prints."""
    done = subprocess.run(
        ["python", script], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_own_model(reader: Reader, answer: str) -> None:
    folder, _ = reader
    assert answer.strip("'"), "the exported model says nothing"
    summary = json.loads((folder / "runs/first/summary.json").read_text())
    assert summary["trajectories_trained"] == 4 * 8 * 8
    card = (folder / "trained/README.md").read_text()
    assert card.count("- train: `") == 2


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm")
def test_vllm_gives_the_same_answer(reader: Reader, answer: str) -> None:
    folder, environment = reader
    environment = environment | {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # one import of vLLM less
    # Where the last tokens begin a character and do not end it, vLLM's text ends before it.
    assert use("use_vllm.py", folder, environment).strip("'\ufffd") == answer.strip("'\ufffd")
