"""What a user can get wrong: one line that says what to do, exit code 2, nothing left running."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import RECIPE, Invocation, Start, settings
from tests.support.models import save_model


def fails_with(invocation: Invocation, *texts: str) -> None:
    code, out, err = invocation.finish(timeout=120)
    said = [line for line in err.splitlines() if line.startswith("routershift")]
    assert code == 2, err
    assert len(said) == 1, err
    assert "Traceback" not in err
    assert out == ""
    for text in texts:
        assert text in said[0]
    assert invocation.nothing_left(), invocation.alive()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_an_unknown_recipe_key(start: Start, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[run]\nmodel = "model"\n[learner]\ngama_min = 0.5\n')
    fails_with(
        start("run", str(recipe)),
        "unknown setting 'learner.gama_min'",
        "did you mean 'learner.router_shift.gamma_min'?",
    )


@pytest.mark.parametrize(
    ("flag", "texts"),
    [
        ("steps=3", ["names no table", "--set run.steps=3"]),
        ("run.model=Qwen/Qwen3-30B-A3B", ["hf download Qwen/Qwen3-30B-A3B"]),
        ("rollout.max_tokens=64", ["rollout.max_tokens is 64", "leaves room for 64"]),
        ("generation.max_model_len=16", ["rollout.max_tokens is 16", "generation.max_model_len"]),
        ("run.task=sodoku", ["run.task is 'sodoku'"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "up"])
def test_run_and_up_refuse_alike_before_anything_starts(
    start: Start, tmp_path: Path, command: str, flag: str, texts: list[str]
) -> None:
    recipe = [str(RECIPE)] if command == "run" else ["--recipe", str(RECIPE)]
    fails_with(start(command, *recipe, *settings(), "--set", flag), *texts)
    assert not (tmp_path / "runs").exists()


def test_a_folder_for_a_recipe(start: Start) -> None:
    fails_with(start("run", str(RECIPE.parent)), "is a folder", "did you mean", "arithmetic.toml")


def test_a_service_without_redis_says_how_to_get_one(start: Start) -> None:
    invocation = start("serve", "reward", "--recipe", str(RECIPE), *settings(), "--set", "redis.connect_seconds=0.5",
                       environment={"REDIS_URL": "redis://127.0.0.1:1/0"})  # fmt: skip
    code, _, err = invocation.finish(timeout=120)
    assert code == 1
    assert "no Redis answers there" in err
    assert "start it or set REDIS_URL" in err


def test_a_missing_recipe(start: Start) -> None:
    fails_with(start("run", "none.toml"), "recipe none.toml does not exist")


def test_a_missing_model_folder(start: Start) -> None:
    fails_with(start("run", str(RECIPE), *settings(run__model="nowhere")), "run.model is nowhere", "Hugging Face")


def test_a_taken_port(start: Start, taken_port: int) -> None:
    flags = settings(generation__port=taken_port)
    fails_with(
        start("run", str(RECIPE), *flags), f"generation.port = {taken_port}", "already in use", "0 for a free one"
    )


def test_a_redis_that_is_not_there(start: Start) -> None:
    url = {"REDIS_URL": "redis://127.0.0.1:1/0"}
    fails_with(start("run", str(RECIPE), *settings(), environment=url), "no Redis answers", "REDIS_URL")


def test_a_prompt_longer_than_the_model(start: Start) -> None:
    flags = settings(generation__max_model_len=8, rollout__max_tokens=4)
    fails_with(start("run", str(RECIPE), *flags), "prompt is", "max_model_len")


def test_a_dense_model_with_rspo(start: Start, tmp_path: Path) -> None:
    model = save_model(tmp_path / "dense", "qwen3_dense")
    fails_with(start("run", str(RECIPE), *settings(run__model=model)), "is dense", "without router shift, such as gmpo")


def test_a_status_of_no_run(start: Start) -> None:
    fails_with(start("status", "nothing"), "run 'nothing' has no folder")
