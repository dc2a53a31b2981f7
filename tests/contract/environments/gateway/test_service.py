"""The service with its gateway: agents that it starts play groups of the stream, and end with it."""

import asyncio
import sys
from pathlib import Path

import psutil

from routershift import wire
from routershift.v1 import environment_pb2 as env
from routershift.v1 import trajectory_pb2 as pb
from services.environments.gateway.settings import GatewaySettings
from services.environments.service import EnvironmentsService
from services.environments.settings import EnvironmentsSettings, Settings
from shared.clients import EnvironmentClient
from shared.settings import RolloutSettings, RunSettings
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.gateway import prompt, save_agent_model
from tests.support.generation import generation_server, serve
from tests.support.pages import blocks

PAGE = Path("docs/how-to/train-an-openai-agent.md")


async def test_the_agent_of_the_page_trains_on_prompts_of_the_stream(run: Run, tmp_path: Path) -> None:
    (script,) = (text for language, _, text in blocks(PAGE) if language == "python")
    (tmp_path / "agent.py").write_text(script)
    model = save_agent_model(tmp_path / "tiny")
    agent = {"kind": "agent", "command": [sys.executable, str(tmp_path / "agent.py")], "processes": 2}
    index = await run.next_prompt()
    asked = prompt(n=2, prompt_id=f"{index:08d}")
    asked.sampling.max_tokens = 24
    asked.reference.CopyFrom(wire.encode_struct({"answer": "42"}))  # as the rows of the page have it
    async with generation_server(run, tmp_path, model, max_model_len=1024) as address:
        settings = EnvironmentsSettings(
            generation_address=address,
            gateway=GatewaySettings(enabled=True),
            named={"helper": agent},
            turn_seconds=120,
            drain_seconds=1,
        )
        tables = Settings(
            run=RunSettings(id="contract", folder=tmp_path, model=model),
            rollout=RolloutSettings(n=2, max_tokens=24),
            environments=settings,
        )
        service, stop = EnvironmentsService(tables), asyncio.Event()
        server, grpc = await serve(service, run)
        working = asyncio.create_task(service.work(stop))
        try:
            assert await run.admit(index, asked, 10) == "ok"
            reader = run.consumer(Stream.SCORED)
            async with asyncio.timeout(60):
                entries = await reader.read(1)
                while not entries:
                    assert not working.done(), working
                    entries = await reader.read(1)
            children = [child for child in psutil.Process().children() if "agent.py" in " ".join(child.cmdline())]
            assert len(children) == 2
            async with EnvironmentClient(grpc) as client:
                told = await client.open_episode(env.OpenEpisodeRequest(text="What is 6 times 7?"))
                await client.close_episode(told.episode_id)
                assert (await client.get_episode(told.episode_id)).end == env.EPISODE_END_CLOSED
        finally:
            stop.set()
            await working
            await server.stop(0)
            await service.close()
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    group = pb.TrajectoryGroup.FromString(entries[0].payload)
    assert len(group.trajectories) == 2
    for message in group.trajectories:
        assert message.score.outcome == pb.OUTCOME_SCORED
        assert message.score.verifier == "helper"
        completion = wire.decode_trajectory(message).completion
        assert 1 <= completion.token_ids.size <= 24, "of all turns together"
        assert completion.router_trace is not None
        assert len(completion.router_trace.expert_ids) == completion.token_ids.size == completion.logprobs.size
