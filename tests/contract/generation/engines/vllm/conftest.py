"""One vLLM engine for a whole module: it takes half a minute to start."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.generation.engines.vllm.engine import VllmEngine
from tests.support.reference import Reference
from tests.support.vllm import new_engine, save_endless


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_endless(root / name, seed) for seed, name in enumerate("AB")}


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Reference]:
    return {name: Reference(folder) for name, folder in folders.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folders: dict[str, Path]) -> AsyncIterator[VllmEngine]:
    """Serves A or B; a test publishes what it needs."""
    engine = new_engine(folders["A"])
    await engine.start()
    yield engine
    await engine.close()
