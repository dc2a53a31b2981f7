"""Engines on model folders with more, or less, than the model has, and on weights that overflow."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.generation.engines.base import Engine, Files
from shared.errors import InvalidInputError
from tests.support.engines import PROMPT, MakeEngine, params, publish, restored, started
from tests.support.models import EOS
from tests.support.reference import Reference, check

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_what_the_model_does_not_have_is_ignored_and_every_end_ends(
    make_engine: MakeEngine, folders: dict[str, Path], references: dict[str, Reference], tmp_path: Path
) -> None:
    """A tied head that is there twice, a buffer that is computed, a strange key: the learner's versions fit none."""
    shutil.copytree(folders["DENSE"], tmp_path, dirs_exist_ok=True)
    tensors = load_file(folders["DENSE"] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    sampling = params(n=30, temperature=2.0)
    async with started(make_engine(folders["DENSE"])) as engine:
        free = [sample.token_ids.tolist() for sample in await engine.generate(PROMPT, sampling)]
    also = free[0][3]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, also]}))
    async with started(make_engine(tmp_path)) as engine:
        assert engine.info.eos_token_ids == (EOS, also)
        for sample, tokens in zip(await engine.generate(PROMPT, sampling), free, strict=True):
            end = next((t + 1 for t, token in enumerate(tokens) if token in (EOS, also)), None)
            assert sample.token_ids.tolist() == tokens[:end]
        await publish(engine, folders["DENSE_B"])
        (sample,) = await engine.generate(PROMPT, params())
        check(sample, PROMPT, params(), {1: references["DENSE_B"]})


@pytest.mark.parametrize("fault", ["missing", "other shape", "whole numbers"])
async def test_a_folder_that_lacks_what_its_model_has_is_refused(
    make_engine: MakeEngine, folders: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    shutil.copytree(folders["A"], tmp_path, dirs_exist_ok=True)
    tensors, name = load_file(folders["A"] / "model.safetensors"), "model.layers.1.self_attn.q_proj.weight"
    tensor = tensors.pop(name)
    if fault != "missing":
        tensors[name] = tensor[1:].clone() if fault == "other shape" else tensor.to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    engine = make_engine(tmp_path)
    with pytest.raises(InvalidInputError, match=re.escape(name)):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize("named", ["norm.weight", "down_proj.weight"])
async def test_weights_that_overflow_are_refused_and_the_old_ones_serve_on(
    make_engine: MakeEngine,
    engine: Engine,
    folders: dict[str, Path],
    references: dict[str, Reference],
    tmp_path: Path,
    named: str,
) -> None:
    """Each number of them is finite. Samples that run go on, on the weights that they began with."""
    tensors = load_file(folders["B"] / "model.safetensors")
    for name in tensors:
        if name.endswith(named):
            tensors[name] = tensors[name].sign() * 3e38
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    sampling = params(n=12, temperature=0.9, max_tokens=200)
    async with restored(engine, folders["A"]):
        for name in "AB":
            version = await publish(engine, folders[name])
            running = asyncio.create_task(engine.generate(PROMPT, sampling))
            stream = engine.stream(PROMPT, params(temperature=0.0, max_tokens=100))
            await anext(stream)
            with pytest.raises(InvalidInputError, match="finite"):
                await engine.update_weights(version + 1, Files([tmp_path / "model.safetensors"]))
            await stream.aclose()  # type: ignore[attr-defined]
            assert engine.version == version
            for sample in await running:
                check(sample, PROMPT, sampling, {version: references[name]})
            (sample,) = await engine.generate(PROMPT, params())
            check(sample, PROMPT, params(), {version: references[name]})
    for file in ("config.json", "generation_config.json"):
        shutil.copy(folders["B"] / file, tmp_path)
    refused = make_engine(tmp_path)
    with pytest.raises(InvalidInputError, match="finite"):
        await refused.start()
    await refused.close()
