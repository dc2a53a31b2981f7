"""What is refused before any service starts, and what `routershift doctor` makes of the same checks."""

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from services.cli import machine
from services.cli.main import main
from services.cli.preflight import CHECKS, preflight
from services.cli.recipe import Recipe
from services.planner.model import read
from shared.errors import MissingDependencyError, PreconditionError, RouterShiftError
from shared.recipes import load
from shared.tracing import start
from tests.support.preflight import FREE, model


def check(*flags: object) -> None:
    preflight(load(Recipe, None, {}, [*FREE, "run.task=countdown", "generation.engine=torch", *map(str, flags)]))


def test_a_recipe_that_fits_passes(tmp_path: Path) -> None:
    check(f"run.model={model(tmp_path)}", "rollout.max_tokens=63")


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        (
            {},
            ["rollout.max_tokens=64"],
            "rollout.max_tokens is 64, and the model's max_position_embeddings leaves room for 64",
        ),
        ({}, ["rollout.max_tokens=32", "generation.max_model_len=32"], "generation.max_model_len leaves room for 32"),
        ({"text_config": {"max_position_embeddings": 24}}, [], "leaves room for 24"),
        ({}, ["streams.max_bytes=65536"], "streams.max_bytes is 65536, and a step takes run.groups_per_step 32"),
        (
            {},
            ["streams.max_bytes=1000000000"],
            "Redis has maxmemory 2147483648; raise that",
        ),
        (
            {},
            ["generation.engine=vllm", "generation.max_model_len=65"],
            "generation.max_model_len is 65, and the model's max_position_embeddings is 64",
        ),
        ({}, ["learner.device=cuda:99"], "learner.device is 'cuda:99', which this machine does not have"),
        (
            {"dtype": "float32"},
            ["learner.optimizer.offload=masters", "learner.precision=bfloat16"],
            "learner.optimizer.offload is 'masters' and run.model is in float32, which bfloat16 would round",
        ),
        ({}, ["generation.device=banana"], "generation.device is 'banana', which this machine does not have"),
        ({}, ["run.folder=/dev/null"], "run.folder is /dev/null, and /dev/null is no folder"),
        ({}, ["access.tokens=/none/tokens"], "/none/tokens cannot be read"),
        (
            {},
            ["traces.endpoint=https://collector", "traces.headers_file=/none/headers"],
            "traces.headers_file is /none/headers, which cannot be read",
        ),
        ({}, ["access.certificate=/none/pem", "access.key=/none/key"], "/none/pem cannot be read"),
        ({}, ["run.task=sodoku"], "run.task is 'sodoku'; known: countdown"),
        (
            {},
            ["data.train.0.source=a.jsonl", "data.train.0.preset=gsm8k"],
            "run.task is 'countdown', and there is [[data.train]]; take one of both out",
        ),
        ({}, ["generation.engine=tensorrt"], "generation.engine is 'tensorrt'; known: vllm, torch"),
        ({}, ["reward.verifiers.mine.kind=regx"], "did you mean 'regex'?"),
        ({}, ["generation.router_export=none"], "generation.router_export is 'none'"),
        (
            {},
            ["generation.router_scores=uint8", "learner.router_shift.layer_aggregation=product"],
            "generation.router_scores is 'uint8'; learner.router_shift.layer_aggregation product needs float16",
        ),
        ({}, ["generation.router_layers=99"], "generation.router_layers is 99, and the model has"),
        (
            {},
            ["generation.router_layers=1", "learner.routing_replay=r3"],
            "generation.router_layers is 1; learner.routing_replay r3 needs the routes of all layers",
        ),
        ({"model_type": "qwen3"}, [], "'qwen3' is dense or unknown"),
        ({"model_type": "nemotron_h"}, [], "'nemotron_h' cannot be trained: its Mamba layers"),
        (
            {},
            ["curriculum.evaluation.sampling.max_tokens=64"],
            "curriculum.evaluation.sampling.max_tokens is 64, and the model's max_position_embeddings leaves room for",
        ),
        (
            {},
            ["curriculum.evaluation.problems=1000000"],
            "curriculum.evaluation.problems is 1000000: held-out count is 1000000; there are 1353 such problems",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, [], "has a quantization_config (quant_method 'fp8')"),
        ({"model_type": "qwen3_5_moe"}, ["learner.algorithm=gmpo"], "cannot be trained: its linear-attention layers"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    tmp_path: Path, config: dict[str, Any], flags: list[str], said: str
) -> None:
    with pytest.raises(RouterShiftError) as refused:
        check(f"run.model={model(tmp_path, **config)}", *flags)
    assert said in str(refused.value)


def test_a_learner_that_holds_more_than_the_machine_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two ranks copies its half for a checkpoint, 12 bytes for each weight, of the memory that both share.

    A file of weights and its bytes on their way to disk are there beside, once.
    """
    parameters = read(folder := model(tmp_path)).parameters
    flags = f"run.model={folder}", "learner.parallel.processes=2"
    needed = 2 * parameters * (4 + 4 + 8 + 4 + 8) // 2 + 2 * read(folder).width * parameters
    monkeypatch.setattr(machine, "device_bytes", lambda device: needed)
    check(*flags)
    monkeypatch.setattr(machine, "device_bytes", lambda device: needed - 1)
    with pytest.raises(PreconditionError, match=r"the learner holds .* of cpu, at least; .* change learner\."):
        check(*flags)


ROWS = ["data.train.0.source=rows.csv", "data.train.0.columns.prompt=q", "data.train.0.verifier=math"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            [],
            "data.train.0: verifier math reads answer of a reference, and columns names no such field; set columns.an",
        ),
        (["data.train.0.verifier=mth"], "data.train.0: verifier is 'mth'; known:"),
        (["data.train.0.source=none.csv"], "data.train.0: source none.csv: no such file"),
        (["data.train.0.source=no*.csv"], "data.train.0: source no*.csv: no file matches it"),
        (["data.train.0.columns.answer=a"], ""),
        (["data.train.0.columns.reference=a"], ""),
        (["data.train.0.verifier=format"], ""),
        (["data.train.0.verifier=format", "data.train.0.environment=calculator"], ""),
        (
            ["data.train.0.verifier=format", "data.train.0.environment=calc"],
            "data.train.0: environment is 'calc'; known",
        ),
    ],
)
def test_what_data_lack_is_told_before_a_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").touch()
    recipe = load(Recipe, None, {}, [*FREE, "generation.engine=torch", f"run.model={model(tmp_path)}", *ROWS, *flags])
    if not said:
        CHECKS["task"](recipe)
        return
    with pytest.raises(RouterShiftError) as refused:
        CHECKS["task"](recipe)
    assert said in str(refused.value)


def test_an_environment_that_rewards_needs_no_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").touch()
    tables = [*FREE, "generation.engine=torch", f"run.model={model(tmp_path)}", *ROWS[:2]]
    maze = load(Recipe, None, {}, [*tables, "data.train.0.environment=maze"])
    assert CHECKS["task"](maze) == "rows, played in environment maze, rewarded there"
    calculator = load(Recipe, None, {}, [*tables, "data.train.0.environment=calculator"])
    with pytest.raises(RouterShiftError, match=r"data\.train\.0: environment calculator rewards no episodes"):
        CHECKS["task"](calculator)


def test_scaled_positions_are_left_to_the_engine(tmp_path: Path) -> None:
    check(f"run.model={model(tmp_path, rope_scaling={'factor': 4})}", "rollout.max_tokens=200")


def test_a_dense_model_trains_without_routers(tmp_path: Path) -> None:
    check(f"run.model={model(tmp_path, model_type='qwen3')}", "learner.algorithm=gmpo")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Qwen/Qwen3-30B-A3B", "hf download Qwen/Qwen3-30B-A3B --local-dir models/Qwen3-30B-A3B"),
        ("nowhere", ""),
        (".", "no config.json there"),
    ],
)
def test_a_model_that_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RouterShiftError) as refused:
        check(f"run.model={name}")
    assert str(refused.value).startswith(f"run.model is {name}; ")
    assert hint in str(refused.value)
    assert ("hf download" in str(refused.value)) == ("download" in hint)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\0"])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RouterShiftError, match=r"config\.json"):
        check(f"run.model={tmp_path}")


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, tuple[str, str]]]:
    code = main(["doctor", *map(str, arguments)])
    lines = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    return code, {name: (mark, text) for mark, name, text in lines}


def flags(*values: object) -> list[str]:
    return [part for value in (*FREE, *values) for part in ("--set", str(value))]


def test_doctor_without_a_recipe_looks_at_the_settings_it_is_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    code, found = rows(capsys, *flags("generation.engine=torch"))
    assert code == 0, found
    assert "model" not in found
    assert found["engine"] == ("ok", "torch")
    code, found = rows(capsys, *flags("generation.engine=torch", "run.model=/nope"))
    assert code == 2
    assert found["model"][0] == "FAIL"
    assert found["model"][1].startswith("run.model is /nope")


def test_doctor_asks_for_the_engine_that_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "vllm" else find(name, *more))
    code, found = rows(capsys, *flags("generation.engine=torch"))
    assert code == 0, found
    code, found = rows(capsys, *flags())
    assert code == 2
    assert found["engine"][0] == "FAIL"
    assert "vllm is not installed" in found["engine"][1]


def test_doctor_sees_ports_disk_and_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch = "generation.engine=torch"
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        code, found = rows(capsys, *flags(torch, f"reward.port={port}"))
    assert code == 2
    assert f"reward.port = {port}" in found["ports"][1]
    file = tmp_path / "file"
    file.touch()
    code, found = rows(capsys, *flags(torch, "run.folder=/proc/1/nothing"))
    assert code == 2
    assert found["disk"][0] == "FAIL"
    code, found = rows(capsys, *flags("learner.optimiser.learning_rate=1"))
    assert code == 2
    assert "did you mean 'learner.optimizer" in found["settings"][1]


def test_doctor_reads_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[run]\nmodel = "{model(tmp_path / "model")}"\ntask = "countdown"\n[generation]\nengine = "torch"\n'
    )
    assert rows(capsys, "--recipe", recipe, *flags())[0] == 0
    code, found = rows(capsys, "--recipe", recipe, *flags("rollout.max_tokens=64"))
    assert code == 2
    assert "rollout.max_tokens is 64" in found["model"][1]


def test_traces_without_their_extra_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(start, "find_spec", lambda name: None if name.startswith("opentelemetry") else find(name))
    check(f"run.model={model(tmp_path)}")
    with pytest.raises(
        MissingDependencyError, match=r"traces.endpoint is 'http://x'.*pip install 'routershift\[traces\]'"
    ):
        check(f"run.model={model(tmp_path)}", "traces.endpoint=http://x")
