"""The gRPC methods of environments as callers see them: a real server, real environments, and each refusal."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from routershift import wire
from routershift.client.channel import open_channel
from routershift.v1 import environment_pb2 as env
from routershift.v1 import environment_pb2_grpc as env_grpc
from routershift.v1 import trajectory_pb2 as pb
from services.environments import metrics
from services.environments.base import Action, Environment, EnvironmentSettings, Observation, Step, TextObservation
from services.environments.hosting import HostedEpisodes
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.registry import Configured, make_environments
from services.environments.server import EnvironmentsServicer
from services.environments.settings import EnvironmentsSettings, HostingSettings
from shared.clients import EnvironmentClient
from shared.errors import ForbiddenError, InvalidInputError
from shared.rpc.server import Server
from shared.settings import AccessSettings
from tests.support.access import SAMPLER, showing
from tests.support.entries import until
from tests.support.environment_server import environment_server

CODE = grpc.StatusCode
VOCAB = 100


class Counting(Environment):
    """Counts its steps, and fails as it is told: no environment that is shipped fails on demand."""

    name = "counting"
    version = "1"
    description = "counts"
    open = 0
    steps = 0

    async def reset(self, task: Mapping[str, Any], seed: int) -> Observation | None:
        Counting.open += 1
        if task.get("bad"):
            raise InvalidInputError("task.bad is set; take it out")
        return TextObservation(f"seed {seed}")

    async def step(self, action: Action) -> Step:
        Counting.steps += 1
        if action.text == "raise":
            raise RuntimeError("the maze has no exit")
        if action.text == "hang":
            await asyncio.sleep(60)
        if action.text == "flood":
            return Step(TextObservation("x" * 10_000_000))
        if action.text == "end":
            return Step(reward=1.0, is_done=True, parts={"correct": 1.0})
        return Step(TextObservation(f"{Counting.steps}"), reward=0.25)

    async def close(self) -> None:
        Counting.open -= 1


class Plays:
    """What plays groups, for a server whose generation is not the matter here."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hold = asyncio.Event()

    async def play(self, prompt: pb.Prompt, *, return_router: bool = True) -> pb.TrajectoryGroup:
        await self.hold.wait()
        if self.error:
            raise self.error
        return pb.TrajectoryGroup(prompt=prompt)


ENVIRONMENTS = {"counting": Configured("counting", Counting, EnvironmentSettings()), **make_environments({})}


@asynccontextmanager
async def serving(**changes: Any) -> AsyncIterator[tuple[Any, EnvironmentsServicer]]:
    settings = EnvironmentsSettings(turn_seconds=0.5, **changes)
    servicer = EnvironmentsServicer(ENVIRONMENTS, settings)
    hosted = HostedEpisodes(ENVIRONMENTS, settings, VOCAB)
    servicer.open(hosted)
    server = Server()
    env_grpc.add_EnvironmentServiceServicer_to_server(servicer, server.grpc)
    port = await server.listen("127.0.0.1", 0, ["routershift.v1.EnvironmentService"])
    watching = asyncio.create_task(hosted.watch())
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    Counting.open = Counting.steps = 0
    try:
        async with open_channel(f"127.0.0.1:{port}", None, options) as channel:
            yield env_grpc.EnvironmentServiceStub(channel), servicer
    finally:
        watching.cancel()
        await servicer.close()
        await server.stop(0)
        assert Counting.open == 0


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


def act(episode_id: str, turn: int, text: str = "go", **more: Any) -> env.StepRequest:
    return env.StepRequest(episode_id=episode_id, turn=turn, text=text, **more)


async def begun(stub: Any) -> str:
    return str((await stub.Reset(env.ResetRequest(environment="counting", seed=7))).episode_id)


async def test_an_episode_from_reset_to_its_end() -> None:
    async with serving() as (stub, _):
        answer = await stub.Reset(env.ResetRequest(environment="counting", seed=7))
        assert len(answer.episode_id) >= 32
        assert answer.observation == env.Observation(role=pb.ROLE_TOOL, text="seed 7")
        first = await stub.Step(act(answer.episode_id, 0))
        assert (first.observation.text, first.reward, first.done) == ("1", 0.25, False)
        last = await stub.Step(act(answer.episode_id, 1, "end"))
        assert (last.HasField("observation"), last.reward, last.done) == (False, 1.0, True)
        assert dict(last.parts) == {"correct": 1.0}
        code, said = await refused(stub.Step(act(answer.episode_id, 2)))
        assert (code, said) == (CODE.FAILED_PRECONDITION, "the episode is done with turn 1; reset begins another")
        await stub.Close(env.CloseRequest(episode_id=answer.episode_id))
        await stub.Close(env.CloseRequest(episode_id=answer.episode_id))  # again is no error
        code, said = await refused(stub.Step(act(answer.episode_id, 2)))
        assert code is CODE.NOT_FOUND


async def test_a_step_that_is_asked_for_twice_is_done_once() -> None:
    async with serving() as (stub, _):
        episode = await begun(stub)
        both = await asyncio.gather(*(stub.Step(act(episode, 0)) for _ in range(2)))
        assert both[0] == both[1] == await stub.Step(act(episode, 0))
        assert Counting.steps == 1
        code, said = await refused(stub.Step(act(episode, 0, "other")))
        assert (code, said) == (CODE.FAILED_PRECONDITION, "turn 0 was done with another action; the next is 1")
        for turn in (2, 9):
            code, said = await refused(stub.Step(act(episode, turn)))
            assert code is CODE.FAILED_PRECONDITION
            assert f"turn is {turn}; expected 1" in said


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("raise", CODE.INTERNAL, "environment counting: step raised RuntimeError: the maze has no exit"),
        ("hang", CODE.DEADLINE_EXCEEDED, "step has not answered within environments.turn_seconds = 0.5"),
        ("flood", CODE.INTERNAL, "observation_tokens"),
    ],
)
async def test_an_environment_that_fails_is_named_and_its_episode_ends(
    text: str, code: grpc.StatusCode, said: str
) -> None:
    failed = metrics.HOSTED_ENDS.labels("failed")._value.get()
    async with serving() as (stub, _):
        episode = await begun(stub)
        found, why = await refused(stub.Step(act(episode, 0, text)))
        assert found is code
        assert said in why
        assert (await refused(stub.Step(act(episode, 0, text))))[0] is CODE.NOT_FOUND
        assert Counting.open == 0
    assert metrics.HOSTED_ENDS.labels("failed")._value.get() == failed + 1


async def test_what_cannot_be_asked_is_refused_with_its_name() -> None:
    async with serving(hosting=HostingSettings(max_episodes=2, max_kb=1)) as (stub, _):
        code, said = await refused(stub.Reset(env.ResetRequest(environment="countin")))
        assert code is CODE.NOT_FOUND
        assert "did you mean 'counting'" in said
        code, said = await refused(
            stub.Reset(env.ResetRequest(environment="counting", task=wire.encode_struct({"bad": True})))
        )
        assert (code, said) == (CODE.INVALID_ARGUMENT, "task.bad is set; take it out")
        episode = await begun(stub)
        code, said = await refused(stub.Step(act(episode, 0, "x" * 2000)))
        assert code is CODE.INVALID_ARGUMENT
        assert "environments.hosting.max_kb = 1" in said
        code, said = await refused(stub.Step(act(episode, 0, finish_reason=pb.FINISH_REASON_ABORTED)))
        assert code is CODE.INVALID_ARGUMENT
        code, said = await refused(stub.Step(act(episode, 0, tool_calls=[env.ToolCall(id="1", name="f")])))
        assert "tool_calls[0] has neither arguments nor error" in said
        await begun(stub)
        code, said = await refused(stub.Reset(env.ResetRequest(environment="counting")))
        assert code is CODE.RESOURCE_EXHAUSTED
        assert "environments.hosting.max_episodes = 2" in said
        await stub.Close(env.CloseRequest(episode_id=episode))
        await begun(stub)  # there is room again


async def is_closed() -> bool:
    return Counting.open == 0


async def test_episodes_of_callers_that_are_silent_are_closed() -> None:
    idle = metrics.HOSTED_ENDS.labels("idle")._value.get()
    async with serving(hosting=HostingSettings(idle_seconds=0.2)) as (stub, _):
        episode = await begun(stub)
        await until(is_closed)
        assert (await refused(stub.Step(act(episode, 0))))[0] is CODE.NOT_FOUND
    assert metrics.HOSTED_ENDS.labels("idle")._value.get() == idle + 1


async def is_playing() -> bool:
    return bool(metrics.PLAYING._value.get())


async def test_play_waits_for_generation_and_has_limits() -> None:
    plays, played = Plays(), env.PlayRequest(prompt=pb.Prompt(environment="counting"))
    async with serving(max_plays=1) as (stub, servicer):
        code, said = await refused(stub.Play(played))
        assert (code, said) == (CODE.UNAVAILABLE, "generation does not serve yet; try again when it does")
        servicer.play_with(plays)
        assert (await refused(stub.Play(env.PlayRequest(prompt=pb.Prompt(environment="x")))))[0] is CODE.NOT_FOUND
        first = stub.Play(played)
        await until(is_playing)
        code, said = await refused(stub.Play(played))
        assert code is CODE.RESOURCE_EXHAUSTED
        assert "environments.max_plays = 1" in said
        plays.hold.set()
        assert (await first).group.prompt.environment == "counting"
        plays.error = EpisodeFailedError("environment counting: it rains")
        assert await refused(stub.Play(played)) == (CODE.INTERNAL, "environment counting: it rains")
        plays.error = EpisodeFailedError("too late", Reason.EPISODE_TIMED_OUT)
        assert await refused(stub.Play(played)) == (CODE.DEADLINE_EXCEEDED, "too late")


async def test_environments_say_what_they_are() -> None:
    async with serving() as (stub, _):
        listed = {each.name: each for each in (await stub.ListEnvironments(env.ListEnvironmentsRequest())).environments}
    assert listed.keys() == ENVIRONMENTS.keys()
    assert not listed["calculator"].rewards
    assert list(listed["calculator"].stop) == ["?"]
    assert wire.decode_struct(listed["counting"].task_schema) == {"type": "object"}


async def test_a_token_for_play_opens_every_method_and_one_for_samples_none(tmp_path: Path) -> None:
    player = "p" * 32
    (tmp_path / "tokens").write_text(f"play {player}\nsample {SAMPLER}\n")
    async with environment_server(ENVIRONMENTS, access=AccessSettings(tokens=tmp_path / "tokens")) as (port, _):
        address = f"127.0.0.1:{port}"
        async with EnvironmentClient(address, 10, showing(tmp_path, SAMPLER)) as client:
            for asked in (
                client.environments(),
                client.reset(env.ResetRequest(environment="counting")),
                client.step(act("x", 0)),
                client.close("x"),
                client.play(pb.Prompt(environment="counting")),
            ):
                with pytest.raises(ForbiddenError, match="is for operate and play; this token is for sample"):
                    await asked
        async with EnvironmentClient(address, 10, showing(tmp_path, player)) as client:
            episode = (await client.reset(env.ResetRequest(environment="counting"))).episode_id
            await client.step(act(episode, 0))
            await client.close(episode)
