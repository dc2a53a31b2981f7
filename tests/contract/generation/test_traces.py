"""What generation records of a group: what it took, and why there is none."""

import asyncio
from pathlib import Path

from routershift.v1 import trajectory_pb2 as pb
from shared.process.service import background
from shared.streams.run import Run
from tests.support.collector import Collector
from tests.support.generation import PROMPT
from tests.support.generation_worker import SAMPLES, groups, torch_engine, until, worker
from tests.support.models import MAX_MODEL_LEN, save_model

TRACES = [f"{number:032x}" for number in (1, 2)]
SPAN = "00f067aa0ba902b7"


async def test_a_group_says_what_it_took_and_a_bad_prompt_why_there_is_none(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path)
    with Collector() as collector, collector.tracing("generation"):
        for index, (trace, tokens) in enumerate(zip(TRACES, (MAX_MODEL_LEN, 4), strict=True)):
            sampling = pb.SamplingParams(n=SAMPLES, max_tokens=tokens)
            prompt = pb.Prompt(prompt_id=f"{index:08d}", text=PROMPT, sampling=sampling)
            assert await run.admit(index, prompt, 1000, traceparent=f"00-{trace}-{SPAN}-01") == "ok"
        async with torch_engine(model) as engine:
            consumer, generation = worker(run, engine, model)
            async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
                (group,) = await groups(run, 1)
                await until(lambda: consumer.held == 0)
    bad, good = ([span for span in collector.spans if span.trace == trace] for trace in TRACES)
    assert {span.parent for span in (*bad, *good)} == {SPAN}
    assert [(span.name, span.failed) for span in bad if span.failed] == [
        ("generate group", "InvalidInputError"),
        ("dead", "bad_prompt"),
    ]
    lengths = [trajectory.completion.token_ids.shape[0] for trajectory in group.trajectories]
    (generate,) = [span for span in good if span.name == "generate group"]
    assert generate.attributes == {
        "samples": SAMPLES, "prompt_tokens": len(group.prompt.token_ids), "response_tokens": sum(lengths),
        "longest_tokens": max(lengths), "oldest_version": 0, "newest_version": 0, "sampled_again": 0,
    }  # fmt: skip
