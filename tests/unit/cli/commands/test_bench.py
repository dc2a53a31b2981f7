"""The benches run, and say what they measured in the form that is documented. No time is asserted."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from services.cli.commands.bench import REPOSITORY, bench, benches
from services.cli.main import main
from shared.errors import PreconditionError
from shared.process.exits import EXIT_FAILURE
from tests.bench import all as every
from tests.bench.memory import peak_bytes
from tests.bench.timing import Timings, cpu_seconds, interleaved

VARIANTS = {"gmpo", "gmpo_rs", "gmpo_rs_samples", "gmpo_rs_r3", "gmpo_recompute"}
ROUTERSHIFT = [sys.executable, "-m", "services.cli.main"]


@pytest.fixture(scope="module")
def learner(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the bench of the learner prints, run as a user would, from another folder."""
    options = [
        "--shape",
        "tiny",
        "--pairs",
        "1",
        "--threads",
        "1",
        "--tokens",
        "400",
        "--device",
        "cpu",
        "--head-tokens",
        "240",
        "--attention-tokens",
        "512",
    ]
    ran = subprocess.run(
        [*ROUTERSHIFT, "bench", "learner", "--json", *options],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def test_the_learner_bench_gives_what_is_documented(learner: dict[str, Any]) -> None:
    others = VARIANTS - {"gmpo"}
    assert (learner["device"], learner["shape"]) == ("cpu", "tiny")
    assert learner["tokens_per_second"].keys() == VARIANTS
    assert learner["ratio"].keys() == learner["memory_ratio"].keys() == others
    for name in others:
        low, high = learner["spread"]["ratio"][name]
        assert 0 < low <= learner["ratio"][name] <= high
    assert learner["machine"].keys() == {"cores", "cpu", "python", "torch", "commit"}
    assert 300 < learner["tokens"] < 500


def test_the_learner_bench_has_the_head_of_large_vocabularies(learner: dict[str, Any]) -> None:
    assert learner["head"].keys() == {"151936", "248320"}
    for head in learner["head"].values():
        assert 0 < head["bytes_per_token_entry"] < head["bytes_per_token_entry_plain"]
        low, high = head["seconds_ratio_spread"]
        assert 0 < low <= head["seconds_ratio_to_plain"] <= high


def test_the_learner_bench_has_attention_with_and_without_a_mask(learner: dict[str, Any]) -> None:
    shapes = {name: learner["attention"][name] for name in ("demo", "long_rows")}
    assert learner["attention"]["ratio_to_masked"] == shapes["long_rows"]["ratio_to_masked"]
    for found in shapes.values():
        low, high = found["spread"]
        assert 0 < low <= found["ratio_to_masked"] <= high
        assert found["implementation"] == {"masked": "sdpa", "auto": "routershift_segments"}
        assert found["cpu"]["seconds_per_token"].keys() == {"masked", "auto"}


def test_the_learner_bench_does_the_work_that_it_times(learner: dict[str, Any]) -> None:
    """Its rollouts have the model's own routes, and routes and scores are memory that plain GMPO does not need."""
    assert 0.999 < learner["gamma_mean"] < 1
    assert learner["memory_ratio"]["gmpo_rs"] > 1
    assert learner["router_shift_bytes_by_experts"].keys() == {"8", "4"}


def test_peak_memory_on_the_cpu_is_exact() -> None:
    kept = torch.zeros(1000)

    def step() -> None:
        first = torch.zeros(1 << 20, dtype=torch.uint8)
        second = first + 1
        del first
        third = second + kept.sum().to(torch.uint8)
        del second, third
        torch.zeros(1 << 20, dtype=torch.uint8)

    found = peak_bytes(step, torch.device("cpu"), held_bytes=5_000_000)
    # Two blocks live at once, a few scalars beside them, and some kilobytes of Python's own.
    assert 0 <= found - (5_000_000 + (2 << 20)) < 64 << 10


def test_ratios_are_taken_within_rounds() -> None:
    timings = Timings({"plain": [1.0, 10.0, 2.0], "fancy": [2.0, 16.0, 4.0]})
    ratio = timings.ratio("fancy", "plain")
    assert (ratio.median, ratio.min, ratio.max) == (0.5, 0.5, 0.625)
    assert timings.rate("plain", 20.0).median == 10.0


def test_variants_take_turns_and_change_sides() -> None:
    calls: list[str] = []
    variants = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    timings = interleaved(variants, rounds=2, warmup=1, prepare=lambda name: calls.append(f"before {name}"))
    assert [call for call in calls if call in variants] == ["a", "b", "b", "a", "a", "b"]
    assert calls[:4] == ["before a", "a", "before b", "b"]
    assert {name: len(taken) for name, taken in timings.seconds.items()} == {"a": 2, "b": 2}


def test_the_work_of_child_processes_is_counted_while_they_live_and_after_they_ended() -> None:
    spin = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    before = cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    alive = cpu_seconds()
    child.communicate(b"\n")
    ended = cpu_seconds()
    assert before + 0.4 < alive <= ended + 0.05  # the clock of processes has steps of 10 ms


def test_cpu_ratios_are_taken_within_rounds() -> None:
    timings = Timings({}, {"plain": [1.0, 10.0, 2.0], "fancy": [2.0, 16.0, 4.0]})
    found = timings.cpu("plain", "token", 4)
    assert found["seconds_per_token"] == {"plain": 0.5, "fancy": 1.0}
    assert found["ratio"] == {"fancy": {"median": 2.0, "min": 1.6, "max": 2.0}}


def test_cpu_seconds_are_those_of_a_unit_of_work_where_turns_differ() -> None:
    timings = Timings({}, {"plain": [1.0, 10.0], "fancy": [2.0, 30.0]})
    found = timings.cpu("plain", "token", {"plain": [1, 5], "fancy": [1, 10]})
    assert found["seconds_per_token"] == {"plain": 1.5, "fancy": 2.5}
    assert found["ratio"] == {"fancy": {"median": 1.75, "min": 1.5, "max": 2.0}}


@pytest.mark.parametrize("name", benches(REPOSITORY))
def test_quick_changes_arguments_that_a_bench_has(name: str) -> None:
    module = importlib.import_module(f"tests.bench.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    known = vars(parser.parse_args([]))
    assert module.QUICK
    assert set(module.QUICK) <= set(known)
    assert any(module.QUICK[key] != known[key] for key in module.QUICK)


def test_without_a_name_the_benches_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    listed = capsys.readouterr().out
    assert "learner " in listed
    assert "timing" not in listed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], ["nonsense", "learner"]),
        (["learner", "--shape", "huge"], ["huge", "tiny", "qwen3-30b-a3b-layers4"]),
        (["end-to-end", "--workloads", "countdown,chess"], ["--workloads", "chess", "long_tail"]),
        (["end-to-end", "--workloads", "arithmetic", "--model", "nowhere"], ["nowhere", "make_model.py"]),
        (["end-to-end", "--workloads", "arithmetic_dense", "--dense-model", "nowhere"], ["nowhere --dense"]),
        (["end-to-end", "--held-out", "513"], ["--held-out is 513", "512"]),
        (["end-to-end", "--rounds", "0"], ["--rounds is 0", "at least 1"]),
        (["end-to-end", "--engines", "torch,onnx"], ["--engines", "onnx", "vllm"]),
        (["all", "--only", "wire,speed"], ["--only has speed", "learner"]),
        (["learner", "--shape", "tiny", "--experts", "8", "1"], ["--experts is 1", "at least 2"]),
    ],
)
def test_unknown_names_are_refused_with_the_list(
    arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    message = capsys.readouterr().err
    assert all(name in message for name in named)


def test_all_goes_on_where_one_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(vars(every)["_BRIEF"], "wire", ("--tokens", "many"))
    assert main(["bench", "all", "--quick", "--json", "--only", "wire,traces"]) == EXIT_FAILURE
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert found["failed"] == ["wire"]
    assert found["benches"]["wire"]["error"] == "it ended with 2"
    assert found["benches"]["traces"]["result"]["machine"] == found["machine"]
    assert found["benches"]["traces"]["cpu_seconds"] > 0


def test_all_ends_what_takes_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "all", "--json", "--only", "wire", "--timeout", "0.01"]) == EXIT_FAILURE
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["benches"]["wire"]["error"] == "not within 0.01 s"


def test_an_installed_package_says_where_the_benches_are(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="clone RouterShift"):
        bench("learner", [], tmp_path)
