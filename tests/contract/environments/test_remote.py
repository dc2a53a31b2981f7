"""Environments behind a gRPC server: a turn is done once, and what goes wrong has a type."""

import asyncio
from typing import Any

import pytest

from routershift.trajectory import FinishReason
from services.environments.base import Action, Step, TextObservation
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.registry import Configured, make_environments
from shared.errors import InvalidInputError, NotFoundError, UnavailableError
from tests.support.environment_server import environment_server
from tests.support.episodes import Script, player, prompt, scripted
from tests.support.models import build_tokenizer
from tests.support.torchrun import free_port


async def done(action: Action, turn: int) -> Step:
    if turn == 0:
        return Step(TextObservation("42,"), reward=0.25)
    return Step(reward=1.0, is_done=True, parts={"correct": 1.0})


def serving(kind: Any) -> dict[str, Configured]:
    return {"there": Configured("there", kind, kind.Settings())}


async def configured(port: int, **changes: Any) -> dict[str, Configured]:
    table = {"kind": "remote", "address": f"grpc://127.0.0.1:{port}", "environment": "there", **changes}
    return await asyncio.to_thread(make_environments, {"scripted": table})


async def play(environments: dict[str, Configured], script: Script, **limits: Any) -> Any:
    return await player(script, environments, build_tokenizer(), **limits).play(prompt(n=2, task={"numbers": [6, 7]}))


async def test_a_remote_environment_plays_as_one_that_is_here() -> None:
    tokenizer = build_tokenizer()
    kind = scripted(done, stop=("!",))
    async with environment_server(serving(kind)) as (port, _):
        script = Script(tokenizer, ["6*7", "42"])
        there = await play(await configured(port), script)
    here_script = Script(tokenizer, ["6*7", "42"])
    here = await player(here_script, scripted(done, stop=("!",)), tokenizer).play(prompt(n=2, task={"numbers": [6, 7]}))
    assert script.asked == here_script.asked
    assert [t.completion.token_ids for t in there.trajectories] == [t.completion.token_ids for t in here.trajectories]
    assert [t.score.reward for t in there.trajectories] == [1.25, 1.25]
    assert [t.score.verifier_version for t in there.trajectories] == ["1", "1"], "that of the environment itself"
    assert kind.made[-1].reset_with is not None
    assert kind.made[-1].reset_with[0] == {"numbers": [6, 7]}
    assert kind.open == 0


async def test_a_turn_whose_answer_was_lost_is_not_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = scripted(done)
    async with environment_server(serving(kind)) as (port, servicer):
        environments = await configured(port, backoff_seconds=0.01)
        answered, lost = servicer.Step, []

        async def loses(request: Any, context: Any) -> Any:
            response = await answered(request, context)
            if request.turn not in lost:
                lost.append(request.turn)
                raise UnavailableError("the connection is gone")
            return response

        monkeypatch.setattr(servicer, "Step", loses)
        environment = environments["scripted"].make()
        await environment.reset({}, 0)
        assert (await environment.step(Action("a", FinishReason.STOP))).reward == 0.25
        assert (await environment.step(Action("b", FinishReason.STOP))).is_done
        await environment.close()
    assert [action.text for action in kind.made[-1].actions] == ["a", "b"]
    assert kind.open == 0


async def raises(action: Action, turn: int) -> Step:
    raise KeyError("gone wrong")


async def hangs(action: Action, turn: int) -> Step:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    ("answer", "seconds", "reason", "message"),
    [
        (raises, 60.0, Reason.ENVIRONMENT_FAILED, "KeyError: 'gone wrong'"),
        (hangs, 0.5, Reason.ENVIRONMENT_TIMED_OUT, "has not answered within"),
    ],
)
async def test_a_failure_there_is_a_failure_here(answer: Any, seconds: float, reason: Reason, message: str) -> None:
    kind = scripted(answer)
    async with environment_server(serving(kind), turn_seconds=seconds) as (port, _):
        with pytest.raises(EpisodeFailedError, match=message) as failed:
            await play(await configured(port), Script(build_tokenizer(), ["22"]))
    assert failed.value.reason is reason
    assert kind.open == 0


async def test_a_task_that_is_none_there_is_bad_input_here() -> None:
    async def no_task() -> None:
        raise InvalidInputError("task.size is 0; expected 2 to 9")

    async with environment_server(serving(scripted(done, no_task))) as (port, _):
        with pytest.raises(InvalidInputError, match=r"task\.size is 0"):
            await play(await configured(port), Script(build_tokenizer(), ["22"]))


async def test_a_server_that_is_lost_in_the_middle_fails_the_episode() -> None:
    kind = scripted(done)
    async with environment_server(serving(kind)) as (port, _):
        environments = await configured(port, attempts=2, call_seconds=4.0, backoff_seconds=0.01)
        environment = environments["scripted"].make()
        await environment.reset({}, 0)
    with pytest.raises(EpisodeFailedError, match="Step"):
        await environment.step(Action("a", FinishReason.STOP))
    async with environment_server(serving(kind), port):
        with pytest.raises(NotFoundError, match="no such episode is open"):
            await environment.step(Action("a", FinishReason.STOP))
        await environment.close()


async def test_what_is_wrong_with_the_settings_is_said_at_the_start() -> None:
    async with environment_server(serving(scripted(done))) as (port, _):
        with pytest.raises(NotFoundError, match=r"has no environment 'theer'; it has there; did you mean 'there'"):
            await configured(port, environment="theer")
    with pytest.raises(Exception, match=r"environments\.named\.scripted: ListEnvironments of grpc://127"):
        await configured(free_port(), start_seconds=0.5)
    for changes, message in (
        ({"address": "http://a:1"}, "String should match pattern"),
        ({"address": "grpcs://a:1"}, "ca_file goes with grpcs://"),
        ({"address": "grpc://a:1", "token_file": "t"}, "token_file would go in clear text to a:1"),
        ({"adress": "grpc://a:1"}, r"did you mean 'environments\.named\.scripted\.address'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            await configured(1, **changes)
