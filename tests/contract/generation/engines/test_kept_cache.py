"""Requests that keep their KV cache when new weights come."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from routershift.trajectory import versions_of
from services.generation.engines.base import EngineSampling, UpdatePolicy
from tests.support.engines import PROMPT, MakeEngine, collect, joined, publish, started
from tests.support.models import MAX_MODEL_LEN
from tests.support.reference import Reference, check

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAMPLING = EngineSampling(4, 1.0, 1.0, 0, 24, 1)
LONG = replace(SAMPLING, n=6, max_tokens=MAX_MODEL_LEN - len(PROMPT))


async def test_log_probs_after_an_update_are_of_the_new_weights_over_keys_and_values_of_the_old(
    make_engine: MakeEngine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    old, new = references["A"].model, references["B"].model
    async with started(make_engine(folders["A"], update_policy=UpdatePolicy.KEEP_CACHE)) as engine:
        running = asyncio.create_task(collect(engine, PROMPT, LONG))
        while engine.load.tokens < 3 * LONG.n:  # noqa: ASYNC110  # another thread's progress has no event
            await asyncio.sleep(0.001)
        assert await publish(engine, folders["B"]) == 1
        samples = [joined(pieces) for pieces in (await running).values()]
        for sample in await engine.generate(PROMPT, SAMPLING):  # which finds nothing cached
            check(sample, PROMPT, SAMPLING, {1: references["B"]})
    through = [sample for sample in samples if {*versions_of(sample.versions).tolist()} == {0, 1}]
    assert through, "no sample lived through the update"
    gaps = []
    for sample in through:
        tokens = torch.tensor([[*PROMPT, *sample.token_ids.tolist()]])
        begun = int((versions_of(sample.versions) == 0).sum())
        first = len(PROMPT) + begun  # the first token that the new weights have drawn
        with torch.no_grad():
            cache = old(tokens[:, : first - 1], use_cache=True).past_key_values
            kept = new(tokens[:, first - 1 : -1], past_key_values=cache).logits[0].log_softmax(-1)
            again = new(tokens[:, :-1]).logits[0, first - 1 :].log_softmax(-1)
        at = torch.arange(len(kept)), tokens[0, first:]
        np.testing.assert_allclose(sample.logprobs[begun:], kept[at], atol=1e-4)
        gaps.append(np.abs(sample.logprobs[begun:] - again[at].numpy()).max())
    assert max(gaps) > 1e-3
