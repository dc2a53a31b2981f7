"""A short run with LoRA, exported as a model and as adapters: what loads each computes what was published."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from services.generation.engines.base import EngineOptions, EngineSampling
from services.generation.engines.vllm.engine import VllmEngine
from services.generation.engines.vllm.settings import VllmSettings
from shared.weights import published
from tests.support import cli
from tests.support.command import RECIPE, settings
from tests.support.reference import Reference, check

STEPS = 2
BASE = RECIPE.parent / "countdown/model"
TOKENS = torch.arange(2, 14)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of two steps was made and exported, by the commands alone."""
    folder = tmp_path_factory.mktemp("export")
    lora = {"learner__lora__rank": 8, "learner__optimizer__learning_rate": 1e-2}
    flags = settings(run__steps=STEPS, curriculum__evaluation__problems=8, **lora)
    for command in (
        ["run", str(RECIPE), *flags],
        ["export", "test", "model", "--version", str(STEPS)],
        ["export", "test", "adapter", "--version", str(STEPS), "--adapter"],
    ):
        done = cli.run(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    result: Tensor = model(TOKENS, use_cache=False).logits
    return result


def test_transformers_loads_what_was_published(folder: Path) -> None:
    weights = folder / "runs/test/weights" / published.folder_name(STEPS)
    exported = logits(load(folder / "model"))
    assert torch.equal(exported, logits(load(weights)))
    assert not torch.equal(exported, logits(load(BASE)))
    text = "1,2,3:6="
    ids = [AutoTokenizer.from_pretrained(each)(text).input_ids for each in (folder / "model", BASE)]
    assert ids[0] == ids[1]
    card = (folder / "model/README.md").read_text()
    assert f"| **{STEPS}** |" in card
    assert "learner.lora.rank = 8" in card
    assert "- task: `countdown`" in card


def test_peft_loads_the_adapters_onto_the_model_of_the_start(folder: Path) -> None:
    assert not (folder / "adapter/model.safetensors").exists()
    assert "of a model with routed experts never on a CPU" in (folder / "adapter/README.md").read_text()
    loaded = PeftModel.from_pretrained(load(BASE), folder / "adapter")
    torch.testing.assert_close(logits(loaded), logits(load(folder / "model")), rtol=1e-4, atol=1e-4)


@pytest.mark.vllm
@pytest.mark.asyncio
async def test_vllm_loads_the_model(folder: Path) -> None:
    engine = VllmEngine(folder / "model", EngineOptions(max_num_seqs=4), VllmSettings(kv_cache_bytes=1 << 20))
    sampling = EngineSampling(2, 1.0, 1.0, 0, 16, 1, stop=(), logprobs=0)
    try:
        await engine.start()
        for sample in await engine.generate(TOKENS[0].tolist(), sampling):
            check(sample, TOKENS[0].tolist(), sampling, {0: Reference(folder / "model")})
    finally:
        await engine.close()
