"""`routershift plan`: what it prints, and what it refuses."""

import json
from typing import Any

import pytest

from services.cli.main import main

ASKED = ("plan", "--model", "olmoe-1b-7b-0924", "--gpus", "8", "--gpu", "h100", "--steps", "3")


def planned(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main([*ASKED, "--json", *more]) == 0
    read: dict[str, Any] = json.loads(capsys.readouterr().out)
    return read


def test_json_has_the_whole_plan(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys)
    split = found["split"]
    assert split["learner_gpus"] + split["replicas"] * split["tensor_parallel"] <= 8
    assert {part["component"] for part in found["memory"]} == {"learner", "generation"}
    assert found["trained_tokens_per_second"] > 0
    assert found["staleness"]["mean"] <= found["workload"]["max_staleness"]
    assert found["stream"]["bytes_in_flight"] > 0
    assert found["assumptions"]["training_flops"] == 0.3


def test_settings_and_assumptions_change_it(capsys: pytest.CaptureFixture[str]) -> None:
    plain = planned(capsys)
    faster = planned(capsys, "--assume", "training_flops=0.6", "--assume", "step_seconds=0")
    assert faster["step_seconds"] < plain["step_seconds"]
    alone = planned(capsys, "--set", "run.max_staleness=0", "--set", "rollout.n=4")
    assert alone["workload"]["n"] == 4
    assert alone["staleness"]["groups"] == {"0": 3 * 64}


def test_text_shows_what_it_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(ASKED)) == 0
    said = capsys.readouterr().out
    for word in ("split ", "memory      learner", "memory      generation", "staleness ", "assumed     training_flops"):
        assert word in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpu", "h1000"], "--gpu is 'h1000'; known are a100"),
        (["--model", "gpt-2"], "--model is 'gpt-2'"),
        (["--gpus", "1"], "--gpus is 1; it must be at least 2"),
        (["--assume", "speed=1"], "names are training_flops"),
        (["--assume", "network=fast"], "is not NAME=NUMBER"),
        (["--assume", "unused=1"], "unused"),
        (["--model", "deepseek-v3"], "8 x h100 are too few"),
        (["--set", "rollout.n=none"], "rollout.n"),
    ],
)
def test_what_describes_nothing_is_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, *flags]) == 2
    assert said in capsys.readouterr().err
