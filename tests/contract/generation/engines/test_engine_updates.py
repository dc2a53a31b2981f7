"""New weights, export modes and update policies: what every engine promises of them."""

import asyncio
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from routershift.trajectory import FinishReason, RouterExport
from services.generation.engines.base import Engine, Files, UpdatePolicy
from services.generation.weights.loader import WeightsLoader
from shared.errors import InvalidInputError
from tests.support.engines import PROMPT, PROMPTS, SLOTS, MakeEngine, busy, joined, params, publish, restored, started
from tests.support.generation_worker import metric, publish_mixture
from tests.support.models import save_model
from tests.support.reference import Reference, check

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_updates_there_and_back(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    async with restored(engine, folders["A"]):
        for name in ("B", "A", "B"):
            version = await publish(engine, folders[name])
            for sampling in (params(n=2), params(temperature=0.0)):
                for sample in await engine.generate(PROMPT, sampling):
                    assert [span.version for span in sample.versions] == [version]
                    check(sample, PROMPT, sampling, {version: references[name]})


async def test_weights_made_by_a_delta_are_those_of_the_files_bit_by_bit(
    engine: Engine, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The same versions, read whole and as what changed: with one seed there is no other bit in what is sampled."""
    root, loader = tmp_path / "weights", WeightsLoader(engine, tmp_path / "weights")
    first, sampled = engine.version + 1, []
    async with restored(engine, folders["A"]):
        for version, base in ((first, None), (first + 1, first), (first + 2, first + 1), (first + 3, None)):
            share = min(0.1 * (version - first), 0.2)  # the last two are the same weights
            manifest = publish_mixture(root, version, folders["A"], folders["B"], share, base)
            assert manifest.HasField("delta") == (base is not None)
            before = metric("weights_bytes_total", kind="delta")
            await loader.load(manifest)
            moved = metric("weights_bytes_total", kind="delta") - before
            assert moved == sum(file.size_bytes for file in manifest.delta.files)
            (sample,) = await engine.generate(PROMPT, params())
            assert [span.version for span in sample.versions] == [version]
            sampled.append((sample.token_ids.tolist(), sample.logprobs.tolist()))
    assert sampled[2] == sampled[3]
    assert sampled[0] != sampled[1] != sampled[2]


async def test_each_token_of_a_running_request_is_from_the_version_it_names(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    sampling = params(n=7, max_tokens=200)
    by_version = {engine.version: references["A"]}
    async with restored(engine, folders["A"]):
        running = asyncio.create_task(engine.generate(PROMPTS[3], sampling))
        clock = engine.stream(PROMPT, params(temperature=0.0, max_tokens=200))
        for name in ("B", "A"):
            for _ in range(5):
                await anext(clock, None)
            by_version[await publish(engine, folders[name])] = references[name]
        for _ in range(5):
            await anext(clock, None)
        await clock.aclose()  # type: ignore[attr-defined]
        samples = await running
    assert {span.version for sample in samples for span in sample.versions} == by_version.keys()
    assert max(len(sample.versions) for sample in samples) == len(by_version), "no sample lived through both updates"
    for sample in samples:
        check(sample, PROMPTS[3], sampling, by_version)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("wider", "lm_head.weight"),
        ("missing", "model.layers.1.mlp.experts.3.up_proj.weight"),
        ("extra", "model.layers.1.mlp.gate.bias"),
        ("infinite", "model.layers.2.mlp.gate.weight"),
    ],
)
async def test_other_weights_are_refused_and_the_old_ones_serve_on(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference], tmp_path: Path, fault: str, named: str
) -> None:
    tensors = load_file(folders["B"] / "model.safetensors")
    if fault == "wider":
        tensors = load_file(save_model(tmp_path / "wider", hidden_size=128) / "model.safetensors")
    elif fault == "missing":
        del tensors[named]
    elif fault == "infinite":
        tensors[named][0, 0] = torch.inf
    else:
        tensors[named] = tensors["model.norm.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    version = engine.version
    with pytest.raises(InvalidInputError, match=re.escape(named)):
        await engine.update_weights(version + 1, Files([tmp_path / "model.safetensors"]))
    assert engine.version == version
    (sample,) = await engine.generate(PROMPT, params())
    check(sample, PROMPT, params(), {version: references["A"]})


async def test_full_export_and_updates_that_wait(
    make_engine: MakeEngine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    options = {"router_export": RouterExport.FULL, "update_policy": UpdatePolicy.WAIT}
    async with started(make_engine(folders["A"], **options)) as engine:
        sampling = params(n=3 * SLOTS, max_tokens=100)
        clock = engine.stream(PROMPT, params(temperature=0.0, max_tokens=100))
        await anext(clock)
        early = asyncio.create_task(engine.generate(PROMPTS[3], sampling))
        await anext(clock)
        update = asyncio.create_task(publish(engine, folders["B"]))
        pieces = [piece async for piece in clock]
        assert {span.version for piece in pieces for span in piece.versions} == {0}, "it had begun, and went on"
        assert await update == 1
        (late,) = await engine.generate(PROMPT, params())
        by_version = {0: references["A"], 1: references["B"]}
        samples = await early
        versions = [span.version for sample in samples for span in sample.versions]
        assert len(versions) == len(samples), "one version each"
        assert set(versions) == {0, 1}, "some had begun, some had not"
        for sample in (samples[0], samples[1], samples[-2], samples[-1]):
            assert sample.router_trace is not None
            assert sample.router_trace.logits is not None
            check(sample, PROMPTS[3], sampling, by_version)
        check(late, PROMPT, params(), {1: references["B"]})


async def test_ids_export_and_updates_that_abort(
    make_engine: MakeEngine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    options = {"router_export": RouterExport.IDS, "update_policy": UpdatePolicy.ABORT}
    async with started(make_engine(folders["A"], **options)) as engine:
        greedy, sampling = params(temperature=0.0, max_tokens=240), params(n=3 * SLOTS, max_tokens=200, logprobs=2)
        stream = engine.stream(PROMPT, greedy)
        pieces = [await anext(stream)]
        running = asyncio.create_task(engine.generate(PROMPTS[3], sampling))
        pieces += [await anext(stream) for _ in range(5)]
        await publish(engine, folders["B"])
        pieces += [piece async for piece in stream]
        samples = await running
        assert pieces[-1].finish_reason is FinishReason.ABORTED
        check(joined(pieces), PROMPT, greedy, {0: references["A"]})
        for sample in samples:
            assert sample.router_trace is not None
            assert sample.router_trace.log_scores is None
            assert sample.finish_reason in (FinishReason.ABORTED, FinishReason.STOP)
            assert len(sample.router_trace.expert_ids) == len(sample.token_ids)
        for sample in (samples[0], samples[1], samples[-1]):
            check(sample, PROMPTS[3], sampling, {0: references["A"]})
        aborted = [len(s.token_ids) for s in samples if s.finish_reason is FinishReason.ABORTED]
        assert min(aborted) == 0, "some had not begun"
        assert max(aborted) > 0, "some had"
        assert busy(engine) == (0, 0)
        (sample,) = await engine.generate(PROMPT, params())
        check(sample, PROMPT, params(), {1: references["B"]})


async def test_neither_export_nor_tokenizer(
    make_engine: MakeEngine, folders: dict[str, Path], references: dict[str, Reference], tmp_path: Path
) -> None:
    for file in folders["A"].iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).symlink_to(file)
    async with started(make_engine(tmp_path, router_export=RouterExport.NONE)) as engine:
        with pytest.raises(InvalidInputError, match=r"sampling\.stop .*tokenizer\.json"):
            await engine.generate(PROMPT, params(stop=("a",)))
        for version, name in enumerate(("A", "B")):
            if version:
                await publish(engine, folders[name])
            for sample in await engine.generate(PROMPT, params(n=3, stop_token_ids=(5,))):
                assert sample.router_trace is None
                check(sample, PROMPT, params(), {version: references[name]})


async def test_a_dense_model_has_no_trace(
    dense_engine: Engine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    assert dense_engine.info.router_layout is None
    async with restored(dense_engine, folders["DENSE"]):
        for name in ("DENSE", "DENSE_B"):
            version = await publish(dense_engine, folders[name])
            for sample in await dense_engine.generate(PROMPT, params(n=3)):
                assert sample.router_trace is None
                check(sample, PROMPT, params(), {version: references[name]})
