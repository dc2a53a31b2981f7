"""vLLM chooses kernels, and how it packs weights for them, by the processor: each choice is exact, updates included."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from routershift.trajectory import Completion, RouterExport
from services.generation.engines.base import EngineOptions, Files
from services.generation.engines.vllm.engine import VllmEngine
from services.generation.engines.vllm.settings import VllmSettings
from shared.errors import PreconditionError
from tests.bench.parity import PROMPT, SAMPLING, Reference, check_parity, measure
from tests.support.processors import LIBRARIES, pretend

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm"),
]


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("level", LIBRARIES)
async def test_float32_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, family: str) -> None:
    pretend(level, monkeypatch)
    check_parity(family, await measure(family, tmp_path))


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("level", LIBRARIES)
async def test_bfloat16_is_the_new_weights_after_an_update_and_the_old_bits_after_a_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, family: str
) -> None:
    """There, small weights, experts and attention are packed for AMX where the processor has it, and only there."""
    pretend(level, monkeypatch)
    first, other = (Reference(tmp_path / name, family, seed) for seed, name in enumerate("AB"))
    settings = VllmSettings(kv_cache_bytes=64 << 20, dtype="bfloat16")
    engine = VllmEngine(first.folder, EngineOptions(max_num_seqs=8, router_export=RouterExport.FULL), settings)
    await engine.start()
    try:
        loaded = {Path(part.path).name for child in psutil.Process().children() for part in child.memory_maps()}
        assert set(LIBRARIES.values()) & loaded == {LIBRARIES[level]}
        before = await engine.generate(PROMPT, SAMPLING)
        await engine.update_weights(1, Files(other.files))
        updated = await engine.generate(PROMPT, SAMPLING)
        await engine.update_weights(2, Files(first.files))
        back = await engine.generate(PROMPT, SAMPLING)
    finally:
        await engine.close()
    for old, new in zip(before, back, strict=True):
        assert old.token_ids.tolist() == new.token_ids.tolist()
        np.testing.assert_array_equal(old.logprobs, new.logprobs)
        assert old.router_trace is not None
        assert new.router_trace is not None
        np.testing.assert_array_equal(old.router_trace.scores, new.router_trace.scores)
    # Rounding to bfloat16 sends some tokens to other experts: exact is not to be had, nearer than the other model is.
    for samples, own, strange in ((before, first, other), (updated, other, first)):
        assert typical_error(own, samples) < typical_error(strange, samples) / 4


def typical_error(reference: Reference, samples: list[Completion]) -> float:
    """The mean over samples of the largest error of a log-prob of a sampled token, nats."""
    return float(np.mean([reference.compare(sample).max_logprob_error for sample in samples]))


@pytest.mark.parametrize(
    ("family", "backend", "exact"),
    [
        ("qwen3_moe", "FLASH_ATTN", "CPU_ATTN"),
        ("qwen3_moe", "CPU_MLA", "CPU_ATTN"),
        ("deepseek_v3", "CPU_ATTN", "CPU_MLA"),
        ("deepseek_v3", "AMX_MLA", "CPU_MLA"),
    ],
)
async def test_attention_that_is_not_exact_is_refused(tmp_path: Path, family: str, backend: str, exact: str) -> None:
    folder = Reference(tmp_path, family, 0).folder
    engine = VllmEngine(folder, EngineOptions(), VllmSettings(attention_backend=backend))
    with pytest.raises(PreconditionError, match=f"attention_backend is '{backend}'; set it to auto: .* only {exact}"):
        await engine.start()
    await engine.close()
