"""The vLLM engine on each family of MoE models that RouterShift names: samples, routes and updates."""

import asyncio
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from routershift.trajectory import RouterExport
from services.generation.engines.base import Files
from services.generation.engines.vllm import updates
from services.generation.engines.vllm.child.taps import BufferTaps, RowPacker
from shared.errors import PreconditionError, UnavailableError
from tests.bench.parity import (
    FAMILIES,
    PROMPT,
    SAMPLING,
    Reference,
    check_parity,
    measure,
    start,
)
from tests.support.models import save_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm"),
]

# tests/contract/generation/engines/test_vllm_processors.py has these, with every kind of kernel.
BY_PROCESSOR = ("qwen3_moe", "deepseek_v3")


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*BY_PROCESSOR}))
async def test_family(tmp_path: Path, family: str) -> None:
    check_parity(family, await measure(family, tmp_path))


async def test_float16_sinks_are_the_new_ones_after_an_update(tmp_path: Path) -> None:
    """vLLM's attention on CPU computes with a copy of them in float32."""
    first, other = (Reference(tmp_path / name, "gpt_oss", seed) for seed, name in enumerate("AB"))
    engine = await start(first.folder, dtype="float16")
    await engine.generate(PROMPT, SAMPLING)
    await engine.update_weights(1, Files(other.files))
    updated = await engine.generate(PROMPT, SAMPLING)
    await engine.close()
    engine = await start(other.folder, dtype="float16")
    for sample, loaded in zip(updated, await engine.generate(PROMPT, SAMPLING), strict=True):
        np.testing.assert_array_equal(sample.logprobs, loaded.logprobs)
    await engine.close()


async def test_nobody_samples_from_half_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were an update not seen to lack weights before it is loaded, it would be while it is."""
    model = Reference(tmp_path / "A", "gpt_oss", 0)
    tensors = {name: tensor for file in model.files for name, tensor in load_file(file).items()}
    lost = ("layers.0.self_attn.sinks", "layers.1.mlp.experts", "layers.2.input_layernorm")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in lost)}
    save_file(kept, tmp_path / "half.safetensors")
    monkeypatch.setattr(updates, "check_weights", lambda shapes, paths: None)
    engine = await start(tmp_path / "A")
    waiting = asyncio.create_task(engine.generate(PROMPT, replace(SAMPLING, n=400)))
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="got no weights") as refused:
        await engine.update_weights(1, Files([tmp_path / "half.safetensors"]))
    for layer in ("layers.0.attn", "layers.1.mlp.experts.routed_experts", "layers.2.input_layernorm"):
        assert layer in str(refused.value)
    with pytest.raises(UnavailableError):
        await waiting
    with pytest.raises(UnavailableError, match="halfway"):
        await engine.generate(PROMPT, SAMPLING)
    assert not await engine.healthy()
    await engine.close()


def test_model_runner_v2_keeps_a_step_until_it_is_copied() -> None:
    """Its calls, in its order, by a fake: the runner itself needs a GPU."""
    from services.generation.engines.vllm.child.runners import V2Adapter

    class Router:
        global_num_experts, top_k = 8, 2

        def _compute_routing(self, hidden: Any, logits: torch.Tensor) -> Any:
            weights, ids = logits.topk(self.top_k)
            return weights, ids

    router, runner = Router(), SimpleNamespace(aux_output_connector=None)
    taps = BufferTaps([router], True, 16, torch.device("cpu"))
    V2Adapter(runner, RowPacker(taps, RouterExport.TOPK, "softmax", 8))
    first, second = torch.randn(2, 4, 8, generator=torch.manual_seed(0))
    batch = SimpleNamespace(logits_indices=torch.tensor([1, 3]), num_tokens=4, req_ids=["a", "b"])
    connector: Any = runner.aux_output_connector
    connector.begin_step(None)
    router._compute_routing(None, first)
    pending = connector.prepare_output(batch)
    router._compute_routing(None, second)  # the next step begins while the rows are on their way
    pending.enqueue_cpu_copy(num_sampled=None, num_rejected=None)
    output = pending.process_output()
    assert output.index_of == {"a": 0, "b": 1}
    ids = [list(output.rows[start : start + 2]) for start in (0, output.row_bytes)]
    assert ids == first[[1, 3]].topk(2).indices.tolist()


@pytest.mark.parametrize("kind", ["glm_moe_dsa", "minimax_m2"])
async def test_what_vllm_serves_on_gpus_alone_is_refused_on_cpu(tmp_path: Path, kind: str) -> None:
    with pytest.raises(PreconditionError, match=f"on CPU: it has what '{kind}' needs for GPUs alone"):
        await start(save_model(tmp_path, kind))
