"""Locked doors as callers meet them: real servers, real certificates, and each refusal with its status code."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import learner_pb2, reward_pb2
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import reward_pb2_grpc as rew_grpc
from routershift.v1 import trajectory_pb2 as pb
from shared.clients import GenerationClient, RewardClient
from shared.errors import (
    DeadlineError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
)
from shared.rpc.access import ROLES, Role
from shared.rpc.channel import open_channel, raise_typed
from shared.rpc.credentials import is_loopback
from shared.rpc.server import Server
from shared.settings import AccessSettings, Door
from tests.support.certificates import Authority

SAMPLER, SCORER, OPERATOR, STRANGER = (letter * 32 for letter in "abcd")
CODE = grpc.StatusCode

REQUESTS: dict[str, Any] = {
    "Generate": gen.GenerateRequest(text="?"),
    "GenerateStream": gen.GenerateStreamRequest(),
    "GetStatus": gen.GenerationServiceGetStatusRequest(),
    "UpdateWeights": gen.UpdateWeightsRequest(),
}


class Generation(gen_grpc.GenerationServiceServicer):
    """Answers at once; `hold` keeps streams open."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()

    async def Generate(self, request: gen.GenerateRequest, context: Any) -> gen.GenerateResponse:  # noqa: N802
        return gen.GenerateResponse()

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[gen.GenerateStreamResponse]:  # noqa: N802
        yield gen.GenerateStreamResponse()
        await self.hold.wait()

    async def GetStatus(self, request: Any, context: Any) -> gen.GenerationServiceGetStatusResponse:  # noqa: N802
        return gen.GenerationServiceGetStatusResponse(version=7)

    async def UpdateWeights(self, request: Any, context: Any) -> gen.UpdateWeightsResponse:  # noqa: N802
        return gen.UpdateWeightsResponse()


class Reward(rew_grpc.RewardServiceServicer):
    async def Score(self, request: Any, context: Any) -> rew.ScoreResponse:  # noqa: N802
        return rew.ScoreResponse()

    async def ListVerifiers(self, request: Any, context: Any) -> rew.ListVerifiersResponse:  # noqa: N802
        return rew.ListVerifiersResponse()


@asynccontextmanager
async def door(access: AccessSettings | None = None, limits: Door | None = None) -> AsyncIterator[tuple[str, Server]]:
    """The address of a server with both services."""
    server, generation = Server(access, limits), Generation()
    gen_grpc.add_GenerationServiceServicer_to_server(generation, server.grpc)
    rew_grpc.add_RewardServiceServicer_to_server(Reward(), server.grpc)
    port = await server.listen("127.0.0.1", 0, ["routershift.v1.GenerationService", "routershift.v1.RewardService"])
    await server.serving()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        generation.hold.set()
        await server.stop(0)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "own")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"# who\n\nsample {SAMPLER}\nscore,sample {SCORER}\noperate {OPERATOR}\n")
    return file


def showing(tmp_path: Path, token: str) -> AccessSettings:
    file = tmp_path / f"token-{token[0]}"
    file.write_text(f"{token}\n")
    return AccessSettings(token=file)


def locked(authority: Authority, name: str = "door", **more: Any) -> AccessSettings:
    certificate, key = authority.sign(name)
    return AccessSettings(certificate=certificate, key=key, authority=authority.certificate, **more)


async def code_of(
    address: str, access: AccessSettings | None = None, method: str = "Generate", **call: Any
) -> grpc.StatusCode:
    """What a generation method answers, asked once by a connection of its own."""
    alone = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with open_channel(address, access, alone) as channel:
        asked = getattr(gen_grpc.GenerationServiceStub(channel), method)(REQUESTS[method], timeout=10, **call)
        try:
            await (asked.read() if method == "GenerateStream" else asked)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return CODE.OK


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def test_every_method_has_its_roles() -> None:
    files = (gen.DESCRIPTOR, reward_pb2.DESCRIPTOR, learner_pb2.DESCRIPTOR)
    methods = {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert {name for name in ROLES if name.startswith("/routershift.")} == methods
    assert all(Role.OPERATE in roles for roles in ROLES.values())


@pytest.mark.parametrize(
    ("token", "allowed"),
    [
        (SAMPLER, {"Generate", "GenerateStream", "GetStatus"}),
        (SCORER, {"Generate", "GenerateStream", "GetStatus"}),
        (OPERATOR, set(REQUESTS)),
    ],
)
async def test_a_token_opens_the_methods_of_its_roles(tokens: Path, token: str, allowed: set[str]) -> None:
    async with door(AccessSettings(tokens=tokens)) as (address, _):
        answers = {name: await code_of(address, method=name, metadata=bearer(token)) for name in REQUESTS}
    assert answers == {name: CODE.OK if name in allowed else CODE.PERMISSION_DENIED for name in REQUESTS}


@pytest.mark.parametrize(
    "metadata", [(), bearer(STRANGER), bearer(SAMPLER[:-1]), bearer(""), (("authorization", f"Basic {SAMPLER}"),)]
)
@pytest.mark.parametrize("method", REQUESTS)
async def test_who_shows_no_known_token_is_unauthenticated(tokens: Path, method: str, metadata: Any) -> None:
    async with door(AccessSettings(tokens=tokens)) as (address, _):
        assert await code_of(address, method=method, metadata=metadata) is CODE.UNAUTHENTICATED


async def test_clients_show_their_token_and_raise_typed_errors(tokens: Path, tmp_path: Path) -> None:
    async with door(AccessSettings(tokens=tokens)) as (address, _):
        async with GenerationClient(address, 10, showing(tmp_path, SAMPLER)) as client:
            assert (await client.status()).version == 7
            with pytest.raises(ForbiddenError, match="UpdateWeights is for operate; this token is for sample"):
                await client.update_weights(pb.WeightsManifest())
        async with RewardClient(address, 10, showing(tmp_path, SCORER)) as reward:
            assert await reward.score("countdown", "", [], struct_pb2.Struct()) == []
        async with GenerationClient(address, 10) as client:
            with pytest.raises(UnauthenticatedError, match=r"set access\.token"):
                await client.status()
            with pytest.raises(UnauthenticatedError, match=r"set access\.token"):
                await anext(client.stream("?"))


async def test_tokens_are_replaced_without_a_restart(tokens: Path, tmp_path: Path) -> None:
    mine = showing(tmp_path, SAMPLER)
    async with door(AccessSettings(tokens=tokens)) as (address, _), GenerationClient(address, 10, mine) as client:
        await client.status()
        tokens.write_text(f"sample {SAMPLER}\nsample {STRANGER}\n")
        await client.status()  # both are valid
        assert mine.token is not None
        mine.token.write_text(STRANGER)
        tokens.write_text(f"sample {STRANGER}\n")
        await client.status()
        assert await code_of(address, metadata=bearer(SAMPLER)) is CODE.UNAUTHENTICATED
        tokens.write_text("sample too-short\n")  # half an edit locks nobody out, and lets nobody in
        await client.status()
        assert await code_of(address, metadata=bearer("too-short")) is CODE.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (f"rule {SAMPLER}", "line 1 of .* is not of the form"),
        (SAMPLER, "line 1 of .* is not of the form"),
        ("sample short", "the token in line 1 of .* has 5 characters; expected at least 32"),
    ],
)
def test_a_file_of_tokens_that_is_none_is_refused_at_the_start(tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "tokens").write_text(line)
    with pytest.raises(InvalidInputError, match=text) as caught:
        Server(AccessSettings(tokens=tmp_path / "tokens"))
    assert SAMPLER not in str(caught.value)
    with pytest.raises(NotFoundError, match=r"check the table \[access\]"):
        Server(AccessSettings(tokens=tmp_path / "none"))


async def test_tokens_never_cross_a_network_in_clear_text(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="clear text"):
        await Server(AccessSettings(tokens=tokens)).listen("0.0.0.0", 0, [])  # noqa: S104
    with pytest.raises(InvalidInputError, match="clear text"):
        GenerationClient("dns:///generation:50051", 10, showing(tmp_path, SAMPLER))


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", "dns:///127.8.0.1:1", "[::1]:1", "::1", "unix:/x"])
def test_loopback(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize("target", ["10.0.0.1:1", "dns:///reward:1", "0.0.0.0:1", "[::]:1", "localhost.example:1"])
def test_not_loopback(target: str) -> None:
    assert not is_loopback(target)


async def test_mutual_tls_takes_its_own_and_nobody_else(authority: Authority, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "other")
    forged_certificate, forged_key = other.sign("door")
    own = locked(authority, "client")
    async with door(locked(authority, mutual=True)) as (address, _):
        assert await code_of(address, own) is CODE.OK
        refused = {
            "no certificate": AccessSettings(authority=authority.certificate),
            "another's certificate": AccessSettings(
                certificate=forged_certificate, key=forged_key, authority=authority.certificate
            ),
            "clear text": AccessSettings(),
            "trusts another": own.model_copy(update={"authority": other.certificate}),
        }
        for what, access in refused.items():
            assert await code_of(address, access) is CODE.UNAVAILABLE, what
        async with GenerationClient(address, 1, refused["another's certificate"]) as client:
            with pytest.raises(DeadlineError):
                await client.status()


async def test_a_door_of_another_name_is_not_trusted(authority: Authority) -> None:
    caller = AccessSettings(authority=authority.certificate)
    async with door(locked(authority)) as (address, _):
        assert await code_of(address, caller) is CODE.OK
        assert await code_of(address, caller.model_copy(update={"server_name": "localhost"})) is CODE.OK
        assert await code_of(address, caller.model_copy(update={"server_name": "elsewhere"})) is CODE.UNAVAILABLE


async def test_certificates_are_replaced_without_a_restart(tmp_path: Path) -> None:
    old, new = Authority.make(tmp_path / "old"), Authority.make(tmp_path / "new")
    of_old, of_new = locked(old, "client"), locked(new, "client")
    mounted = locked(old, mutual=True)
    async with door(mounted) as (address, _):
        assert await code_of(address, of_old) is CODE.OK
        assert await code_of(address, of_new) is CODE.UNAVAILABLE
        certificate, key = new.sign("door")
        for into, out_of in (
            (mounted.certificate, certificate),
            (mounted.key, key),
            (mounted.authority, new.certificate),
        ):
            assert into is not None
            into.write_bytes(out_of.read_bytes())
        assert await code_of(address, of_new) is CODE.OK
        # `of_old` names the file that was replaced, so that it now trusts the door; the door no longer trusts it.
        assert await code_of(address, of_old) is CODE.UNAVAILABLE


async def test_files_that_are_no_certificates_are_refused(authority: Authority, tmp_path: Path) -> None:
    access = locked(authority)
    (tmp_path / "key").write_text("no key")
    with pytest.raises(InvalidInputError, match="expected PEM files"):
        await Server(access.model_copy(update={"key": tmp_path / "key"})).listen("127.0.0.1", 0, [])
    with pytest.raises(NotFoundError, match=r"check the table \[access\]"):
        await Server(access.model_copy(update={"key": tmp_path / "none"})).listen("127.0.0.1", 0, [])


async def test_health_is_for_everybody_and_has_a_port_without_tls(authority: Authority, tokens: Path) -> None:
    access, caller = locked(authority, mutual=True, tokens=tokens), locked(authority, "client")
    async with door(access, Door(health_port=0)) as (address, server):
        for target, shown in ((address, caller), (f"127.0.0.1:{server.health_port}", None)):
            async with open_channel(target, shown) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert await code_of(f"127.0.0.1:{server.health_port}") is CODE.UNIMPLEMENTED  # nothing else is there
        await server.drain()
        async with open_channel(f"127.0.0.1:{server.health_port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def reflected(address: str, **call: Any) -> grpc.StatusCode:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with open_channel(address) as channel:
        asked = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([request]), timeout=10, **call
        )
        try:
            async for answer in asked:
                assert any(s.name.endswith("RewardService") for s in answer.list_services_response.service)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return CODE.OK


async def test_reflection_asks_for_a_token_and_can_be_off(tokens: Path) -> None:
    access = AccessSettings(tokens=tokens)
    async with door(access) as (address, _):
        assert await reflected(address) is CODE.UNAUTHENTICATED
        assert await reflected(address, metadata=bearer(SAMPLER)) is CODE.OK
    async with door(access, Door(reflection=False)) as (address, _):
        assert await reflected(address, metadata=bearer(OPERATOR)) is CODE.UNIMPLEMENTED


async def test_a_message_above_the_limit_is_refused_unread() -> None:
    once = [("grpc.enable_retries", 0)]
    limits = Door(max_request_bytes=1 << 10)
    async with door(limits=limits) as (address, _), open_channel(address, None, once) as channel:
        generate = gen_grpc.GenerationServiceStub(channel).Generate
        await generate(gen.GenerateRequest(text="x" * 900), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(gen.GenerateRequest(text="x" * 2000), timeout=10)
    assert caught.value.code() is CODE.RESOURCE_EXHAUSTED
    assert "larger than max" in str(caught.value.details())


async def test_more_calls_at_once_than_the_limit_are_refused_and_told_when_to_come_back() -> None:
    async with door(limits=Door(max_calls=2)) as (address, _), open_channel(address) as channel:
        stub = gen_grpc.GenerationServiceStub(channel)
        streams = [stub.GenerateStream(gen.GenerateStreamRequest(), timeout=30) for _ in range(2)]
        for stream in streams:
            await stream.read()
        assert await code_of(address) is CODE.RESOURCE_EXHAUSTED
        for stream in streams:
            stream.cancel()
        async with asyncio.timeout(10):
            while await code_of(address) is not CODE.OK:  # noqa: ASYNC110  # the server's side of a cancellation
                await asyncio.sleep(0.02)


async def test_the_rate_is_each_callers_own(tokens: Path, tmp_path: Path) -> None:
    limits = Door(calls_per_second=1e-3)  # one call, and the next in a quarter of an hour
    async with door(AccessSettings(tokens=tokens), limits) as (address, _):
        assert await code_of(address, metadata=bearer(SAMPLER)) is CODE.OK
        assert await code_of(address, metadata=bearer(SAMPLER)) is CODE.RESOURCE_EXHAUSTED
        assert await code_of(address, metadata=bearer(SCORER)) is CODE.OK
        assert await code_of(address, metadata=bearer(STRANGER)) is CODE.UNAUTHENTICATED
        alone = [("grpc.enable_retries", 0)]
        async with open_channel(address, None, alone) as channel:
            call = gen_grpc.GenerationServiceStub(channel).Generate(
                gen.GenerateRequest(text="?"), timeout=10, metadata=bearer(SAMPLER)
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
    with pytest.raises(OverloadedError, match=r"calls_per_second = 0\.001") as typed:
        raise_typed(caught.value, "Generate")
    assert 900 < typed.value.retry_after <= 1000


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"certificate": "a.pem"}, "certificate and key go together"),
        ({"mutual": True}, "mutual needs certificate, key and authority"),
    ],
)
def test_settings_that_do_not_fit_together(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AccessSettings.model_validate(values)
