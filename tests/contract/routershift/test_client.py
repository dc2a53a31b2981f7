"""The library's clients against real services: both kinds say the same, and errors have the status of the call."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from routershift import errors, wire
from routershift.client import (
    Access,
    AsyncEnvironmentClient,
    AsyncGenerationClient,
    AsyncRewardClient,
    Completion,
    EnvironmentClient,
    GenerationClient,
    Message,
    RewardClient,
)
from routershift.v1 import environment_pb2 as env
from routershift.v1 import trajectory_pb2 as pb
from services.environments.registry import make_environments
from services.reward.service import RewardService
from services.reward.settings import Settings as RewardTables
from shared.settings import AccessSettings, RunSettings
from shared.streams.run import Run
from tests.support.access import SAMPLER, SCORER, locked, serving
from tests.support.certificates import Authority
from tests.support.environment_server import environment_server
from tests.support.generation import PROMPT, generation_server, serve

ResultT = TypeVar("ResultT")


@pytest.fixture
async def generation(tmp_path: Path, run: Run) -> AsyncIterator[str]:
    async with generation_server(run, tmp_path) as address:
        yield address


async def blocking(address: str, ask: Callable[[GenerationClient], ResultT], timeout: float = 60.0) -> ResultT:
    """What a blocking client is answered; the server is in our own event loop."""

    def call() -> ResultT:
        with GenerationClient(address, timeout) as client:
            return ask(client)

    return await asyncio.to_thread(call)


def same(one: Completion, other: Completion) -> None:
    assert (one.index, one.text, one.finish_reason, one.versions) == (
        other.index,
        other.text,
        other.finish_reason,
        other.versions,
    )
    np.testing.assert_array_equal(one.token_ids, other.token_ids)
    assert one.router_trace is not None
    assert other.router_trace is not None
    np.testing.assert_array_equal(one.router_trace.expert_ids, other.router_trace.expert_ids)


async def test_both_kinds_of_client_say_the_same(generation: str) -> None:
    found = await blocking(generation, lambda client: client.generate(PROMPT, n=3, seed=1, return_router=True))
    async with AsyncGenerationClient(generation) as client:
        others = await client.generate(PROMPT, n=3, seed=1, return_router=True)
        assert (await client.status()).version == (await blocking(generation, GenerationClient.status)).version
    assert len(found) == 3
    for one, other in zip(found, others, strict=True):
        same(one, other)


async def test_a_blocking_stream_gives_the_pieces_of_a_whole_response(generation: str) -> None:
    pieces = await blocking(generation, lambda client: list(client.stream(PROMPT, seed=5, return_router=True)))
    (whole,) = await blocking(generation, lambda client: client.generate(PROMPT, seed=5, return_router=True))
    assert len(pieces) > 1
    assert "".join(piece.text for piece in pieces) == whole.text
    np.testing.assert_array_equal(np.concatenate([piece.token_ids for piece in pieces]), whole.token_ids)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].router_trace is not None
    assert pieces[-1].router_trace.expert_ids.shape[0] == whole.token_ids.size


async def test_leaving_a_blocking_stream_cancels_the_request(generation: str) -> None:
    first = await blocking(generation, lambda client: next(iter(client.stream(PROMPT, max_tokens=40, seed=2))))
    assert first.token_ids.size >= 1
    async with AsyncGenerationClient(generation) as client:
        async with asyncio.timeout(30):
            while (await client.status()).running_requests:  # noqa: ASYNC110  # the engine is asked by calls
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("ask", "kind", "status", "said"),
    [
        (
            lambda client: client.generate(PROMPT, max_tokens=10**6),
            errors.InvalidInputError,
            "INVALID_ARGUMENT",
            "sampling.max_tokens is 1000000",
        ),
        (
            lambda client: list(client.stream(PROMPT, temperature=-1)),
            errors.InvalidInputError,
            "INVALID_ARGUMENT",
            "sampling.temperature is -1",
        ),
        (
            lambda client: client.generate([{"role": "user", "content": "?"}]),
            errors.PreconditionError,
            "FAILED_PRECONDITION",
            "has no chat_template",
        ),
        (lambda client: client.generate(PROMPT, heat=1), errors.InvalidInputError, None, "the parameters are n, temp"),
        (lambda client: client.generate(3.5), errors.InvalidInputError, None, "prompt of type float"),
    ],
)
async def test_errors_are_typed_and_have_the_status_of_the_call(
    generation: str,
    ask: Callable[[GenerationClient], object],
    kind: type[errors.RouterShiftError],
    status: str,
    said: str,
) -> None:
    with pytest.raises(kind, match=said) as refused:
        await blocking(generation, ask)
    assert refused.value.status == status


async def test_a_service_that_is_not_there_is_waited_for_until_the_deadline() -> None:
    address = "127.0.0.1:1"
    with pytest.raises(errors.DeadlineError) as late:
        await blocking(address, GenerationClient.status, timeout=0.5)
    assert late.value.status == "DEADLINE_EXCEEDED"
    with pytest.raises(errors.DeadlineError):
        await blocking(address, lambda client: list(client.stream(PROMPT)), timeout=0.5)


async def test_rewards(tmp_path: Path, run: Run) -> None:
    tables = RewardTables(run=RunSettings(id="contract", folder=tmp_path, model=tmp_path))
    service = RewardService(tables)
    server, address = await serve(service, run)
    asked = ("countdown", PROMPT, ["3*7+5", "3"], {"numbers": [3, 7, 5], "target": 26})

    def blocked() -> tuple[list[pb.Score], list[str]]:
        with RewardClient(address) as client:
            return client.score(*asked), [verifier.name for verifier in client.verifiers()]

    try:
        scores, names = await asyncio.to_thread(blocked)
        async with AsyncRewardClient(address) as client:
            others = await client.score(*asked)
            with pytest.raises(errors.NotFoundError, match="countdwn") as unknown:
                await client.score("countdwn", PROMPT, ["3"], {})
            tool, last = Message(role="tool", content="3*7+5"), Message(role="assistant", content="3")
            (episode,) = await client.score("countdown", PROMPT, [[tool, last]], asked[3])
            for odd, said in (
                ([tool], "1 messages and none of the role"),
                ([{"text": "3"}], "list: .*role and content"),
            ):
                with pytest.raises(errors.InvalidInputError, match=said):
                    await client.score("countdown", PROMPT, [odd], asked[3])  # type: ignore[list-item]  # what it says
    finally:
        await server.stop(0)
        await service.close()
    assert [score.parts["correct"] for score in scores] == [1, 0]
    assert [score.reward for score in scores] == [score.reward for score in others]
    assert episode.parts["correct"] == 0  # what the tool said is no answer of the model's
    assert "countdown" in names
    assert unknown.value.status == "NOT_FOUND"


async def test_tokens_and_tls_come_from_the_environment_of_a_service(
    authority: Authority, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, wrong = tmp_path / "mine", tmp_path / "wrong"
    mine.write_text(SAMPLER + "\n")
    wrong.write_text(SCORER[::-1].replace("b", "x") + "\n")
    async with serving(locked(authority, tokens=tokens)) as (address, _):
        monkeypatch.setenv("ROUTERSHIFT_ACCESS__AUTHORITY", str(authority.certificate))
        with pytest.raises(errors.UnauthenticatedError) as refused:
            await blocking(address, GenerationClient.status)
        assert refused.value.status == "UNAUTHENTICATED"
        monkeypatch.setenv("ROUTERSHIFT_ACCESS__TOKEN", str(mine))
        assert (await blocking(address, GenerationClient.status)).version == 7
        async with AsyncGenerationClient(address) as client:
            assert (await client.status()).version == 7
        shown = Access(authority=authority.certificate, token=wrong)
        async with AsyncGenerationClient(address, access=shown) as client:
            with pytest.raises(errors.UnauthenticatedError):
                await client.status()


def test_what_access_names_is_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        errors.NotFoundError, match=r"none cannot be read .*; check the table \[access\], or what Access names"
    ):
        GenerationClient("127.0.0.1:1", access=Access(token=tmp_path / "none"))
    with pytest.raises(errors.InvalidInputError, match=r"access\.certificate and access\.key go together"):
        Access(certificate=tmp_path / "pem")
    token = tmp_path / "token"
    token.write_text(SAMPLER)
    with pytest.raises(errors.InvalidInputError, match="tokens would go in clear text to or from example"):
        AsyncGenerationClient("example.org:50051", access=Access(token=token))


def test_the_environment_has_the_names_of_the_table_access() -> None:
    named = {name: f"/{name}" for name in ("authority", "certificate", "key", "token")}
    environment = {f"ROUTERSHIFT_ACCESS__{name.upper()}": value for name, value in named.items()}
    found = Access.from_environment({**environment, "ROUTERSHIFT_ACCESS__SERVER_NAME": "rollouts"})
    assert {name: str(getattr(found, name)) for name in named} == named
    assert found.server_name == "rollouts"
    assert set(Access.__dataclass_fields__) <= set(AccessSettings.model_fields)
    assert Access.from_environment({}) == Access()


async def test_environments() -> None:
    task = wire.encode_struct({"size": 1})

    def blocked(address: str) -> tuple[list[str], env.StepResponse, env.StepResponse]:
        with EnvironmentClient(address) as client:
            names = [environment.name for environment in client.environments()]
            episode = client.reset(env.ResetRequest(environment="calculator", seed=1)).episode_id
            step = env.StepRequest(episode_id=episode, text="3*7+5?")
            once, again = client.step(step), client.step(step)
            client.close(episode)
            with pytest.raises(errors.NotFoundError, match="no such episode is open"):
                client.step(step)
            return names, once, again

    async with environment_server(make_environments({})) as (port, _):
        address = f"127.0.0.1:{port}"
        names, once, again = await asyncio.to_thread(blocked, address)
        async with AsyncEnvironmentClient(address, 5) as client:
            assert [environment.name for environment in await client.environments()] == names
            with pytest.raises(errors.InvalidInputError) as refused:
                await client.reset(env.ResetRequest(environment="maze", task=task))
            with pytest.raises(errors.NotFoundError, match="did you mean 'calculator'"):
                await client.play(pb.Prompt(environment="calculater"))
    assert once == again
    assert once.observation.text == "26;"
    assert refused.value.status == "INVALID_ARGUMENT"
