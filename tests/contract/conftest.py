"""The engines under test, one of each kind for a whole module: vLLM takes half a minute to start. And secrets."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.generation.engines.base import Engine, EngineOptions, UpdatePolicy
from services.generation.engines.torch.engine import TorchEngine
from services.generation.engines.vllm.engine import VllmEngine
from services.generation.engines.vllm.settings import VllmSettings
from shared.errors import MissingDependencyError
from tests.support.access import OPERATOR, SAMPLER, SCORER
from tests.support.certificates import Authority
from tests.support.engines import SLOTS, MakeEngine
from tests.support.models import MAX_MODEL_LEN, save_model
from tests.support.reference import Reference

OPTIONS = EngineOptions(max_model_len=MAX_MODEL_LEN, max_num_seqs=SLOTS)

# What the tests know by name. A and B share an architecture, whose first layer is dense; so do DENSE and DENSE_B.
_MODELS = {
    "A": ("qwen3_moe_dense_first", 1),
    "B": ("qwen3_moe_dense_first", 2),
    "DENSE": ("qwen3_dense", 3),
    "DENSE_B": ("qwen3_dense", 4),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_model(root / name, kind, seed) for name, (kind, seed) in _MODELS.items()}


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Reference]:
    return {name: Reference(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module", params=["torch", pytest.param("vllm", marks=pytest.mark.vllm)])
def make_engine(request: pytest.FixtureRequest) -> MakeEngine:
    """Makes engines of the kind under test."""

    def make(folder: Path, **changes: Any) -> Engine:
        options = replace(OPTIONS, **changes)
        if request.param == "torch":
            return TorchEngine(folder, options)
        try:
            caches = options.update_policy is not UpdatePolicy.KEEP_CACHE
            return VllmEngine(folder, options, VllmSettings(kv_cache_bytes=64 << 20, enable_prefix_caching=caches))
        except MissingDependencyError as error:
            pytest.skip(str(error))

    return make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(make_engine: MakeEngine, folders: dict[str, Path]) -> AsyncIterator[Engine]:
    """Serves model A."""
    engine = make_engine(folders["A"])
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dense_engine(make_engine: MakeEngine, folders: dict[str, Path]) -> AsyncIterator[Engine]:
    """Serves model DENSE, whose head is tied to its embedding."""
    engine = make_engine(folders["DENSE"])
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "own")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"# who\n\nsample {SAMPLER}\nscore,sample {SCORER}\noperate {OPERATOR}\n")
    return file
