"""`doctor` on a model of the Hub: it looks, and says what a start would download; nothing is downloaded."""

from pathlib import Path

import pytest

from tests.support import cli
from tests.support.hub import cache_model, hub
from tests.support.models import save_model
from tests.support.preflight import FREE

NAME = "some-org/Some-MoE-1B"
FLAGS = [f"run.model={NAME}", "run.task=countdown", "rollout.max_tokens=8", "generation.engine=torch", *FREE]


def doctor(home: Path, **environment: str) -> tuple[int, dict[str, tuple[str, str]]]:
    arguments = [part for flag in FLAGS for part in ("--set", flag)]
    hub_settings = {"HF_HOME": str(home / "hf"), "HF_TOKEN": "", "HF_HUB_OFFLINE": "0"}  # whatever other tests set
    ran = cli.run("doctor", *arguments, cwd=home, changes={**hub_settings, **environment})
    assert "Traceback" not in ran.stderr, ran.stderr
    lines = [line.split(None, 2) for line in ran.stdout.splitlines()]
    return ran.returncode, {name: (mark, text) for mark, name, text in lines}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "made", "qwen3_moe")


def test_what_a_start_would_download_is_said_and_left_alone(model: Path, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    files |= {"README.md": b"x" * 5000, "pytorch_model.bin": b"x" * 9000}
    with hub(files) as there:
        code, found = doctor(tmp_path, HF_ENDPOINT=there.endpoint)
    assert code == 0, found
    mark, said = found["model"]
    assert mark == "ok"
    needed = len(files) - 2
    assert said.startswith(f"{NAME} is not in the cache: a start downloads ")
    assert said.endswith(f" in {needed} files")
    assert there.fetched == []
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    assert "limits" not in found


def test_a_model_in_the_cache_is_looked_at_and_the_hub_is_not_asked(model: Path, tmp_path: Path) -> None:
    cache_model(tmp_path / "hf/hub", NAME, model)
    with hub({"config.json": b"{}"}) as there:
        there.refuses = (500, "")
        code, found = doctor(tmp_path, HF_ENDPOINT=there.endpoint)
    assert code == 0, found
    assert found["model"][1].startswith("qwen3_moe in ")
    assert found["limits"][0] == "ok"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "while HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:1"}, "while the Hub cannot be reached"),
    ],
)
def test_where_the_hub_cannot_be_asked_that_is_the_fault(
    tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    code, found = doctor(tmp_path, **environment)
    assert code == 2
    assert found["model"][0] == "FAIL"
    assert said in found["model"][1]
