"""What engines and the curriculum would refuse after their start, refused before it."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.machine import MACHINE_CHECKS
from services.cli.preflight import CHECKS, preflight
from services.cli.recipe import Recipe
from services.generation.engines.vllm import limits
from shared.errors import RouterShiftError
from shared.recipes import load
from tests.support.command import RECIPE
from tests.support.preflight import FREE, model

COUNTDOWN = RECIPE.parent / "countdown/model"
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
ROWS = ["data.train.0.source=rows.csv", "data.train.0.columns.prompt=q", "data.train.0.verifier=math"]


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        ({"model_type": "minimax_m2"}, [], "cannot serve model folder"),
        ({}, ["generation.vllm.data_parallel_size=2"], "generation.vllm.data_parallel_size is 2; set it to 1"),
        ({}, ["generation.vllm.speculative_tokens=1"], "generation.vllm.speculative_tokens is 1; set it to 0"),
        ({}, ["generation.vllm.attention_backend=FLASH_ATTN"], "generation.vllm.attention_backend is 'FLASH_A"),
        ({}, ["generation.vllm.enable_chunked_prefill=true"], "generation.vllm.enable_chunked_prefill is true"),
        (
            {"num_attention_heads": 4},
            ["generation.vllm.tensor_parallel_size=3"],
            "generation.vllm.tensor_parallel_size is 3, and the model has 4 attention heads",
        ),
        ({"num_attention_heads": 4, "hidden_size": 64}, [], "has head_dim 16, and vLLM has CPU"),
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
    recipe = load(Recipe, None, {}, [*named, *flags])

    def check() -> None:
        CHECKS["limits"](recipe)
        MACHINE_CHECKS["kernels"](recipe)

    with pytest.raises(RouterShiftError) as refused:
        check()
    assert said in str(refused.value)


def test_a_family_that_the_torch_engine_lacks_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path, model_type="llama4_text")
    recipe = load(Recipe, None, {}, [*FREE, "generation.engine=torch", f"run.model={folder}"])
    with pytest.raises(RouterShiftError, match="does not run on the torch engine; set it to vllm"):
        CHECKS["limits"](recipe)


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
