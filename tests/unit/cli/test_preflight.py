"""What is refused before any service starts, and what `routershift doctor` makes of the same checks."""

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from services.cli.main import main
from services.cli.preflight import CHECKS, preflight
from services.cli.recipe import Recipe
from services.generation.engines.vllm import limits
from shared.errors import RouterShiftError
from shared.recipes import load
from shared.settings import SERVICES
from tests.support.command import RECIPE

CONFIG = {"model_type": "qwen3_moe", "max_position_embeddings": 64}
COUNTDOWN = RECIPE.parent / "countdown/model"
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
FREE = [f"{service}.{key}=0" for service in SERVICES for key in ("port", "metrics_port")]


def model(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file({"weight": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")
    return folder


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
        ({}, ["generation.device=banana"], "generation.device is 'banana', which this machine does not have"),
        ({}, ["run.folder=/dev/null"], "run.folder is /dev/null, and /dev/null is no folder"),
        ({}, ["access.tokens=/none/tokens"], "/none/tokens cannot be read"),
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
        ({"sliding_window": 16}, [], "so set it to at most the model's sliding_window of 16"),
        ({"sliding_window": 16}, ["generation.max_model_len=32"], "generation.max_model_len is 32"),
        ({"model_type": "qwen3_5_moe"}, ["learner.algorithm=gmpo"], "cannot be trained: its linear-attention layers"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    tmp_path: Path, config: dict[str, Any], flags: list[str], said: str
) -> None:
    with pytest.raises(RouterShiftError) as refused:
        check(f"run.model={model(tmp_path, **config)}", *flags)
    assert said in str(refused.value)


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


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        ({"model_type": "minimax_m2"}, [], "cannot serve model folder"),
        ({"model_type": "gpt_oss"}, [], "which cannot take new weights for a 'gpt_oss' while it serves"),
        ({}, ["generation.vllm.data_parallel_size=2"], "generation.vllm.data_parallel_size is 2; set it to 1"),
        ({}, ["generation.vllm.speculative_tokens=1"], "generation.vllm.speculative_tokens is 1; set it to 0"),
        ({}, ["generation.vllm.attention_backend=FLASH_ATTN"], "generation.vllm.attention_backend is 'FLASH_A"),
        ({}, ["generation.vllm.enable_chunked_prefill=true"], "generation.vllm.enable_chunked_prefill is true"),
        (
            {"num_attention_heads": 4},
            ["generation.vllm.tensor_parallel_size=3"],
            "generation.vllm.tensor_parallel_size is 3, and the model has 4 attention heads",
        ),
        ({"num_attention_heads": 4, "hidden_size": 64}, [], "has attention heads of size 16, and vLLM has CPU"),
        (
            {},
            ["generation.vllm.max_num_batched_tokens=100"],
            "generation.vllm.max_num_batched_tokens is 100, and generation.max_num_seqs 128 sequences",
        ),
        (
            {},
            ["generation.vllm.max_num_batched_tokens=48", "generation.max_num_seqs=2"],
            "generation.vllm.max_num_batched_tokens is 48, and a prompt may have up to 64 tokens",
        ),
        (
            {**HEADS, "num_hidden_layers": 4, "max_position_embeddings": 4096},
            ["generation.vllm.kv_cache_bytes=1048576"],
            "generation.vllm.kv_cache_bytes is 1048576, too little for one sequence of 4096 tokens",
        ),
    ],
)
def test_what_vllm_would_refuse_after_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], flags: list[str], said: str
) -> None:
    monkeypatch.setattr(limits, "built_for_cpu", lambda: True)
    named = [*FREE, "generation.engine=vllm", "run.task=countdown", f"run.model={model(tmp_path, **config)}"]
    with pytest.raises(RouterShiftError) as refused:
        CHECKS["limits"](load(Recipe, None, {}, [*named, *flags]))
    assert said in str(refused.value)


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    check(f"run.model={model(tmp_path, sliding_window=16, use_sliding_window=False)}")


@pytest.mark.parametrize(
    ("bad", "flags", "said"),
    [
        (1, [], "data.train.0: 1 of 20 rows cannot be used, more than data.max_bad_share = 0.01: "),
        (1, ["data.max_bad_share=0.1"], ""),
        (3, ["data.max_bad_share=0.1"], "data.train.0: 3 of 20 rows cannot be used"),
        (20, ["data.max_bad_share=1"], "data.train has 0 usable problems"),
    ],
)
def test_too_many_rows_that_cannot_be_used_are_refused_before_anything_starts(
    tmp_path: Path, bad: int, flags: list[str], said: str
) -> None:
    rows = [{"q": "" if index < bad else f"what is {index} + {index}", "a": "1"} for index in range(20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = [*FREE, "generation.engine=torch", f"run.model={COUNTDOWN}", *ROWS, f"data.train.0.source={file}"]
    named += ["data.train.0.columns.answer=a", "data.train.0.chat_template=false"]
    recipe = load(Recipe, None, {}, [*named, *flags])
    if not said:
        assert CHECKS["data"](recipe).startswith("1")
        return
    with pytest.raises(RouterShiftError) as refused:
        preflight(recipe)
    assert said in str(refused.value)


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
