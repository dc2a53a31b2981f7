"""The gRPC servers as a caller sees them: real servers on loopback, typed errors, health and reflection.

Long because every kind of error is shown of every server.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from redis.asyncio import Redis

from routershift.client.channel import open_channel
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import reward_pb2_grpc as rew_grpc
from routershift.v1 import trajectory_pb2 as pb
from services.generation.server import GenerationServicer
from services.reward.service import RewardService
from services.reward.settings import RewardSettings
from services.reward.settings import Settings as RewardTables
from shared.clients import GenerationClient, RewardClient
from shared.errors import (
    CorruptDataError,
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from shared.rpc.server import Server
from shared.settings import RunSettings
from shared.streams.run import Run
from tests.support.generation import PROMPT, generation_server, serve
from tests.support.generation_worker import manifest
from tests.support.models import save_model


@pytest.fixture
async def generation(tmp_path: Path, run: Run) -> AsyncIterator[str]:
    async with generation_server(run, tmp_path) as address:
        yield address


@pytest.fixture
async def reward(tmp_path: Path, run: Run) -> AsyncIterator[str]:
    settings = RewardSettings(max_queued=200, verifiers={"easy": {"kind": "countdown"}})
    service = RewardService(
        RewardTables(run=RunSettings(id="contract", folder=tmp_path, model=tmp_path), reward=settings)
    )
    server, address = await serve(service, run)
    yield address
    await server.stop(0)
    await service.close()


async def test_text_and_token_ids_say_the_same(generation: str) -> None:
    async with GenerationClient(generation) as client:
        (by_text,) = await client.generate(PROMPT, seed=3)
        ids = [3 + 2, 12]
        (by_ids,) = await client.generate(ids, seed=3, n=1)
    assert by_text.router_trace is None
    assert by_ids.logprobs.size == by_ids.token_ids.size


async def test_the_router_comes_when_it_is_asked_for(generation: str) -> None:
    async with GenerationClient(generation) as client:
        completions = await client.generate(PROMPT, n=3, seed=1, return_router=True)
    assert [c.index for c in completions] == [0, 1, 2]
    for completion in completions:
        assert completion.router_trace is not None
        assert completion.router_trace.expert_ids.shape[0] == completion.token_ids.size


async def test_a_stream_adds_up_to_the_whole(generation: str) -> None:
    async with GenerationClient(generation) as client:
        (whole,) = await client.generate(PROMPT, seed=5, return_router=True)
        pieces = [piece async for piece in client.stream(PROMPT, seed=5, return_router=True)]
    assert [t for piece in pieces for t in piece.token_ids.tolist()] == whole.token_ids.tolist()
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == whole.finish_reason
    assert pieces[-1].router_trace is not None
    assert whole.router_trace is not None
    assert pieces[-1].router_trace.expert_ids.tolist() == whole.router_trace.expert_ids.tolist()


@pytest.mark.parametrize(
    ("prompt", "sampling", "text"),
    [
        (PROMPT, {"n": 0}, "sampling.n is 0; allowed: 1 to"),
        (PROMPT, {"temperature": -0.5}, "sampling.temperature is -0.5"),
        (PROMPT, {"temperature": float("nan")}, "sampling.temperature is nan"),
        (PROMPT, {"top_p": 0.0}, "sampling.top_p is 0.0"),
        (PROMPT, {"temperature": 0.001}, r"sampling.temperature is 0.001"),
        (PROMPT, {"top_k": 25}, "sampling.top_k is 25"),
        (PROMPT, {"min_p": -0.25}, "sampling.min_p is -0.25; allowed: 0 (none) to 1"),
        (PROMPT, {"stop": [""]}, "sampling.stop is holding a text of 0 characters; allowed: texts of 1 to 256"),
        (PROMPT, {"stop": ["7"] * 65}, "sampling.stop is 65 long; allowed: up to 64 entries"),
        (PROMPT, {"stop_token_ids": [24]}, "sampling.stop_token_ids is holding 24; allowed: ids below 24"),
        (PROMPT, {"logprobs": 21}, "sampling.logprobs is 21; allowed: 0 (none) to 20"),
        (PROMPT, {"max_tokens": 0}, "sampling.max_tokens is 0"),
        (PROMPT, {"max_tokens": 10_000}, "the model holds 256 tokens"),
        (PROMPT * 40, {}, "below the model's 256"),
        ("1" * 20_000, {}, "text is 20000 characters long; allowed: up to 16384"),
        ([{"role": "user", "content": "1" * 20_000}], {}, "chat.messages is 20000 characters long"),
        ([9_999], {}, "token_ids is holding 9999"),
        ([], {}, "prompt is empty"),
        (PROMPT, {"tempreature": 1.0}, "the parameters are n, temperature"),
        ([3.5], {}, "prompt of type list"),
        ([-1], {}, "prompt of type list"),
        ([{"role": "user", "text": "?"}], {}, "expected text, token ids or messages of role and content"),
        ([{"role": "", "content": "?"}], {}, "chat.messages[0].role is empty"),
    ],
)
async def test_a_bad_request_names_field_value_and_limit(
    generation: str, prompt: Any, sampling: Any, text: str
) -> None:
    async with GenerationClient(generation) as client:
        with pytest.raises(InvalidInputError) as caught:
            await client.generate(prompt, **sampling)
        assert text in str(caught.value)
        assert len(await client.generate(PROMPT, n=1)) == 1  # unharmed


async def test_a_request_without_input_is_an_invalid_argument(generation: str) -> None:
    async with open_channel(generation) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gen_grpc.GenerationServiceStub(channel).Generate(gen.GenerateRequest(), timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "set text, token_ids or chat" in str(caught.value.details())


async def test_a_cancelled_stream_frees_the_engine(generation: str) -> None:
    async with GenerationClient(generation) as client:
        async for _ in client.stream(PROMPT, n=8, max_tokens=200):
            break
        for _ in range(100):
            if (await client.status()).running_requests == 0:
                return
            await asyncio.sleep(0.05)
    raise AssertionError("the engine still samples for a caller that left")


async def test_weights_that_cannot_be_taken_are_refused_by_kind(generation: str, run: Run) -> None:
    async with GenerationClient(generation) as client:
        with pytest.raises(PreconditionError, match="none goes backwards"):
            await client.update_weights(pb.WeightsManifest(version=0))
        outside = pb.WeightsManifest(version=1, folder="../secrets")
        await run.announce(outside)
        with pytest.raises(CorruptDataError, match=r"manifest\.folder is '\.\./secrets'"):
            await client.update_weights(outside)
        manifest = pb.WeightsManifest(version=1, folder="v1", files=[pb.WeightsFile(name="a.safetensors")])
        await run.announce(manifest)
        with pytest.raises(NotFoundError, match="is missing"):
            await client.update_weights(manifest)
        assert (await client.status()).version == 0


@pytest.mark.parametrize("version", [3, 4, 2**62, 2**63 - 1])
async def test_weights_that_the_learner_has_not_announced_are_refused_and_later_ones_are_taken(
    generation: str, run: Run, tmp_path: Path, version: int
) -> None:
    root = tmp_path / "contract" / "weights"
    made_up = manifest(root, version, save_model(tmp_path / "other"))
    async with GenerationClient(generation) as client:
        with pytest.raises(PreconditionError, match=f"manifest.version is {version}; .* it has announced none"):
            await client.update_weights(made_up)
        await run.announce(manifest(root, 2, tmp_path / "model"))
        with pytest.raises(PreconditionError, match="and the newest is version 2"):
            await client.update_weights(made_up)
        announced = manifest(root, 3, tmp_path / "model")
        await run.announce(announced)
        others = pb.WeightsManifest(version=3, folder=made_up.folder, files=made_up.files)
        others.files[0].sha256 = "0" * 64
        with pytest.raises(PreconditionError, match=r"with these files|none goes backwards"):
            await client.update_weights(others)
        with contextlib.suppress(PreconditionError):  # it follows announcements by itself too
            await client.update_weights(announced)
        assert (await client.status()).version == 3


async def test_an_unknown_verifier_is_not_found(reward: str) -> None:
    async with RewardClient(reward) as client:
        with pytest.raises(NotFoundError, match="verifier is 'nope'; known: countdown"):
            await client.score("nope", "", ["1"], {})


async def test_a_reference_that_cannot_be_used_is_refused_and_has_no_reward(reward: str) -> None:
    async with RewardClient(reward) as client:
        (score,) = await client.score("countdown", "", ["1"], {})
    assert score.outcome == pb.OUTCOME_REFUSED
    assert not score.HasField("reward")
    assert "reference of countdown" in score.error


async def test_scores_come_in_order_from_the_verifiers_of_the_recipe(reward: str) -> None:
    reference = {"numbers": [1, 2], "target": 3}
    async with RewardClient(reward) as client:
        scores = await client.score("easy", "", ["2+1", "1", "1*2"] * 40, reference)
    assert [s.reward for s in scores] == [1.0, 0.0, 0.1] * 40
    assert {s.verifier for s in scores} == {"easy"}


async def test_more_than_the_queue_holds_is_refused(reward: str) -> None:
    items = [rew.ScoreItem(response="1")] * 150
    # A client of ours would try again; this one tells what the service said.
    async with grpc.aio.insecure_channel(reward, options=[("grpc.enable_retries", 0)]) as channel:
        stub = rew_grpc.RewardServiceStub(channel)
        calls = [stub.Score(rew.ScoreRequest(verifier="easy", items=items), timeout=30) for _ in range(8)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [a for a in answers if isinstance(a, grpc.aio.AioRpcError)]
    assert 0 < len(refused) < 8
    for answer in refused:
        assert answer.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "reward.max_queued = 200" in str(answer.details())
        assert ("grpc-retry-pushback-ms", "1000") in tuple(answer.trailing_metadata())


async def test_health_and_reflection(reward: str) -> None:
    async with open_channel(reward) as channel:
        for name in ("", "routershift.v1.RewardService"):
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def reflected() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(reward, options=[("grpc.enable_http_proxy", 0)]) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol("routershift.v1.RewardService")
            other = database.FindFileByName("routershift/v1/trajectory.proto")
            comments = [at.leading_comments for each in (file, other) for at in each.source_code_info.location]
            return list(database.get_services()), comments

    services, comments = await asyncio.to_thread(reflected)
    assert "routershift.v1.RewardService" in services
    assert any("never a reward of 0" in comment for comment in comments)
    assert any("Names one trajectory for ever" in comment for comment in comments)


async def test_verifiers_say_the_form_of_what_they_read_and_give(reward: str) -> None:
    async with open_channel(reward) as channel:
        listed = await rew_grpc.RewardServiceStub(channel).ListVerifiers(rew.ListVerifiersRequest())
    forms = {verifier.name: json_format.MessageToDict(verifier) for verifier in listed.verifiers}
    assert {"countdown", "math", "code", "exact", "choice", "regex", "json_schema"} <= set(forms)
    for form in forms.values():
        for schema in (form["referenceSchema"], form["partsSchema"]):
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["type"] == "object"
    good: dict[str, list[dict[str, Any]]] = {
        "countdown": [{"numbers": [3, 7], "target": 10}],
        "easy": [{"numbers": [3, 7], "target": 10}],
        "math": [{"answer": "1/2"}, {"answer": 0.5}],
        "exact": [{"answer": "a"}, {"answer": ["a", "b"]}],
        "choice": [{"answer": "B"}, {"answer": ["A", "C"]}, {"answer": "A", "choices": ["Rome", "Paris"]}],
        "json_schema": [{"schema": {"type": "object"}}],
        "regex": [{"pattern": "a+"}],
    }
    bad: dict[str, list[dict[str, Any]]] = {
        "countdown": [{}, {"numbers": ["x"], "target": 1}, {"numbers": [1.5], "target": 1}],
        "math": [{}, {"answer": ""}, {"answer": [1]}, {"answer": True}],
        "exact": [{}, {"answer": []}, {"answer": 3}],
        "choice": [{}, {"answer": "b"}, {"answer": []}, {"answer": "A", "choices": "Rome"}],
        "json_schema": [{}, {"schema": "x"}],
        "regex": [{"pattern": 3}],
    }
    async with RewardClient(reward) as client:
        for references, outcome in ((good, pb.OUTCOME_SCORED), (bad, pb.OUTCOME_REFUSED)):
            for name, each in references.items():
                form = forms[name]
                for reference in each:
                    (score,) = await client.score(name, "", ["B"], reference)
                    assert score.outcome == outcome, (name, reference, score.error)
                    fits = jsonschema.Draft202012Validator(form["referenceSchema"]).is_valid(reference)
                    assert fits == (outcome == pb.OUTCOME_SCORED), (name, reference)
                    if fits:
                        jsonschema.validate(dict(score.parts), form["partsSchema"])


async def test_a_service_that_is_not_there_is_unavailable_within_the_deadline() -> None:
    async with GenerationClient("127.0.0.1:1", timeout=0.5) as client:
        with pytest.raises((UnavailableError, DeadlineError)):
            await client.status()


async def test_calls_before_the_start_are_unavailable(redis: Redis) -> None:
    server, servicer = Server(), GenerationServicer()
    gen_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc)
    port = await server.listen("127.0.0.1", 0, [])
    async with open_channel(f"127.0.0.1:{port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    async with GenerationClient(f"127.0.0.1:{port}", timeout=5) as client:
        with pytest.raises(UnavailableError, match="still loading"):
            await client.status()
    await server.stop(0)


async def test_a_taken_port_is_refused() -> None:
    first, second = Server(), Server()
    port = await first.listen("127.0.0.1", 0, [])
    with pytest.raises(PreconditionError, match=f"port = {port}"):
        await second.listen("127.0.0.1", port, [])
    await first.stop(0)
