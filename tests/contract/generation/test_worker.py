"""The stream worker of generation: the torch engine on a real Redis."""

import asyncio
from pathlib import Path

from routershift import wire
from routershift.trajectory import FinishReason
from services.generation import metrics
from services.generation.engines.base import EngineLoad, EngineSampling, Files, UpdatePolicy
from shared.process.service import background
from shared.streams.run import Run
from tests.support.generation import PROMPT
from tests.support.generation_worker import SAMPLES, SLOTS, admit, groups, metric, torch_engine, until, worker
from tests.support.models import MAX_MODEL_LEN, save_model


async def test_the_worker_keeps_the_engine_busy_and_little_waiting(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path)
    await admit(run, 24, max_tokens=30)
    loads: list[EngineLoad] = []
    counters = ("rollouts_total", "group_seconds_count", "router_bytes_total")
    before = [metric(name) for name in counters], [metric("tokens_total", kind=kind) for kind in ("prompt", "response")]
    async with torch_engine(model) as engine:
        consumer, generation = worker(run, engine, model)

        def room() -> int:
            loads.append(engine.load)
            return generation.room()

        async with background(consumer.each(generation.handle, room, asyncio.Event())):
            made = await groups(run, 24)
            await until(lambda: metric("rollouts_total") == before[0][0] + 24 * SAMPLES)
    assert {len(group.trajectories) for group in made} == {SAMPLES}
    assert max(load.running for load in loads) == SLOTS
    # All slots, an eighth of them ahead, and what rounding up to whole groups adds.
    assert max(load.running + load.waiting for load in loads) <= SLOTS + 1 + SAMPLES
    assert (await run.ledger()).in_flight == 24 * SAMPLES
    completions = [trajectory.completion for group in made for trajectory in group.trajectories]
    traces = [(c.router_trace.expert_ids, c.router_trace.log_scores) for c in completions]
    exported = sum(len(tensor.data) for trace in traces for tensor in trace)
    assert [metric(name) for name in counters] == [
        value + more for value, more in zip(before[0], (24 * SAMPLES, 24, exported), strict=True)
    ]
    tokens = 24 * len(PROMPT), sum(c.token_ids.shape[0] for c in completions)
    assert [metric("tokens_total", kind=kind) for kind in ("prompt", "response")] == [
        value + more for value, more in zip(before[1], tokens, strict=True)
    ]


async def test_what_an_update_aborts_is_sampled_again_from_the_new_weights(run: Run, tmp_path: Path) -> None:
    model, other = save_model(tmp_path / "a"), save_model(tmp_path / "b", seed=1)
    again = metrics.SAMPLED_AGAIN._value.get()
    await admit(run, 1, max_tokens=200, seed=7)
    async with torch_engine(model, UpdatePolicy.ABORT) as engine:
        consumer, generation = worker(run, engine, model)
        async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
            await until(lambda: engine.load.tokens > 8)
            await engine.update_weights(1, Files([other / "model.safetensors"]))
            (group,) = await groups(run, 1)
        tokens = list(group.prompt.token_ids)
        alone = await engine.generate(tokens, EngineSampling(SAMPLES, 1.0, 1.0, 0, 200, 7))
    samples = [wire.decode_completion(trajectory.completion) for trajectory in group.trajectories]
    assert [sample.index for sample in samples] == list(range(SAMPLES))
    assert FinishReason.ABORTED not in {sample.finish_reason for sample in samples}
    renewed = [sample.index for sample in samples if sample.versions[0].version == 1]
    assert len(renewed) == metrics.SAMPLED_AGAIN._value.get() - again > 0
    for index in renewed:
        assert samples[index].token_ids.tolist() == alone[index].token_ids.tolist()


async def test_a_group_aborted_too_often_is_dropped_and_counted(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path)
    dropped = metrics.DROPPED.labels("aborted")._value.get()
    await admit(run, 1, max_tokens=200, seed=7)
    async with torch_engine(model, UpdatePolicy.ABORT) as engine:
        consumer, generation = worker(run, engine, model, attempts=2)
        async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
            for version in (1, 2):
                seen = engine.load.tokens
                await until(lambda seen=seen: engine.load.tokens > seen + 4)  # type: ignore[misc]  # a lambda's default
                await engine.update_weights(version, Files([model / "model.safetensors"]))
            await until(lambda: consumer.held == 0)
    ledger = await run.ledger()
    assert ledger.dropped == {"aborted": SAMPLES}
    assert ledger.in_flight == 0
    assert metrics.DROPPED.labels("aborted")._value.get() == dropped + SAMPLES


async def test_a_prompt_that_the_model_cannot_take_is_a_dead_letter_and_the_next_is_served(
    run: Run, tmp_path: Path
) -> None:
    model = save_model(tmp_path)
    await admit(run, 1, max_tokens=MAX_MODEL_LEN)
    await admit(run, 1, max_tokens=4)
    async with torch_engine(model) as engine:
        consumer, generation = worker(run, engine, model)
        async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
            (group,) = await groups(run, 1)
            await until(lambda: consumer.held == 0)
    assert group.prompt.prompt_id == f"{1:08d}"
    ledger = await run.ledger()
    assert (ledger.dead, ledger.in_flight) == ({"bad_prompt": SAMPLES}, SAMPLES)
