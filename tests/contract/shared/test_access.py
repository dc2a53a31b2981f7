"""Tokens and roles as callers see them: real servers, and each refusal with its status code."""

import socket
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from routershift.client.channel import open_channel
from routershift.loopback import is_loopback
from routershift.v1 import environment_pb2, learner_pb2, reward_pb2
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import trajectory_pb2 as pb
from shared.clients import GenerationClient, RewardClient
from shared.errors import ForbiddenError, InvalidInputError, NotFoundError, UnauthenticatedError
from shared.rpc.access import ROLES, AccessControl, Role
from shared.rpc.server import Server
from shared.settings import AccessSettings, ServerSettings
from tests.support.access import CODE, OPERATOR, REQUESTS, SAMPLER, SCORER, STRANGER, bearer, code_of, serving, showing


def test_every_method_has_its_roles() -> None:
    files = (gen.DESCRIPTOR, environment_pb2.DESCRIPTOR, reward_pb2.DESCRIPTOR, learner_pb2.DESCRIPTOR)
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
    async with serving(AccessSettings(tokens=tokens)) as (address, _):
        answers = {name: await code_of(address, method=name, metadata=bearer(token)) for name in REQUESTS}
    assert answers == {name: CODE.OK if name in allowed else CODE.PERMISSION_DENIED for name in REQUESTS}


@pytest.mark.parametrize(
    "metadata", [(), bearer(STRANGER), bearer(SAMPLER[:-1]), bearer(""), (("authorization", f"Basic {SAMPLER}"),)]
)
@pytest.mark.parametrize("method", REQUESTS)
async def test_who_shows_no_known_token_is_unauthenticated(tokens: Path, method: str, metadata: Any) -> None:
    async with serving(AccessSettings(tokens=tokens)) as (address, _):
        assert await code_of(address, method=method, metadata=metadata) is CODE.UNAUTHENTICATED


async def test_clients_show_their_token_and_raise_typed_errors(tokens: Path, tmp_path: Path) -> None:
    async with serving(AccessSettings(tokens=tokens)) as (address, _):
        async with GenerationClient(address, 10, showing(tmp_path, SAMPLER)) as client:
            assert (await client.status()).version == 7
            with pytest.raises(ForbiddenError, match="UpdateWeights is for operate; this token is for sample"):
                await client.update_weights(pb.WeightsManifest())
        async with RewardClient(address, 10, showing(tmp_path, SCORER)) as reward:
            assert await reward.score("countdown", "", [], {}) == []
        async with GenerationClient(address, 10) as client:
            with pytest.raises(UnauthenticatedError, match=r"set access\.token"):
                await client.status()
            with pytest.raises(UnauthenticatedError, match=r"set access\.token"):
                await anext(client.stream("?"))


async def test_tokens_are_replaced_without_a_restart(tokens: Path, tmp_path: Path) -> None:
    mine = showing(tmp_path, SAMPLER)
    async with serving(AccessSettings(tokens=tokens)) as (address, _), GenerationClient(address, 10, mine) as client:
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


@pytest.mark.parametrize(
    "peer", ["ipv4:10.1.2.3:5000", "ipv6:%5Bfd00::2%5D:5000", "ipv6:%5B::ffff:10.1.2.3%5D:5000", ""]
)
@pytest.mark.parametrize("method", sorted(name for name, roles in ROLES.items() if roles == {Role.OPERATE}))
def test_without_tokens_an_operators_method_is_for_the_servers_own_machine(method: str, peer: str) -> None:
    control = AccessControl(AccessSettings(), ServerSettings())
    with (
        pytest.raises(ForbiddenError, match=r"from its own machine alone.*set access\.tokens"),
        control.admit(method, (), peer),
    ):
        pass
    for near in ("ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000", "ipv6:%5B::ffff:127.0.0.1%5D:5000", "unix:"):
        with control.admit(method, (), near):
            pass


@pytest.mark.parametrize("method", sorted(name for name, roles in ROLES.items() if roles != {Role.OPERATE}))
def test_without_tokens_all_other_methods_are_for_everybody(method: str) -> None:
    with AccessControl(AccessSettings(), ServerSettings()).admit(method, (), "ipv4:10.1.2.3:5000"):
        pass


async def test_who_may_sample_from_afar_cannot_change_the_weights() -> None:
    """As a pod with the label of a client of generation, where there are no tokens."""
    afar = next((each for each in _own_addresses() if not is_loopback(each)), None)
    if afar is None:
        pytest.skip("this machine has no address beyond loopback")
    async with serving(host="0.0.0.0") as (address, _):  # noqa: S104  # for as long as the test lasts
        far = f"{afar}:{address.rpartition(':')[2]}"
        answers = {name: await code_of(far, method=name) for name in REQUESTS}
    assert answers == {name: CODE.PERMISSION_DENIED if name == "UpdateWeights" else CODE.OK for name in REQUESTS}


def _own_addresses() -> list[str]:
    found = [each.address for them in psutil.net_if_addrs().values() for each in them if each.family == socket.AF_INET]
    return sorted(found)


async def test_tokens_never_cross_a_network_in_clear_text(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="clear text"):
        await Server(AccessSettings(tokens=tokens)).listen("0.0.0.0", 0, [])  # noqa: S104
    with pytest.raises(InvalidInputError, match="clear text"):
        GenerationClient("dns:///generation:50051", 10, showing(tmp_path, SAMPLER))


@pytest.mark.parametrize(
    "target", ["127.0.0.1:1", "localhost:1", "dns:///127.8.0.1:1", "[::1]:1", "::1", "[::ffff:127.0.0.1]:1", "unix:/x"]
)
def test_loopback(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target", ["10.0.0.1:1", "dns:///reward:1", "0.0.0.0:1", "[::]:1", "localhost.example:1", "[::ffff:10.0.0.1]:1"]
)
def test_not_loopback(target: str) -> None:
    assert not is_loopback(target)


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
    async with serving(access) as (address, _):
        assert await reflected(address) is CODE.UNAUTHENTICATED
        assert await reflected(address, metadata=bearer(SAMPLER)) is CODE.OK
    async with serving(access, ServerSettings(reflection=False)) as (address, _):
        assert await reflected(address, metadata=bearer(OPERATOR)) is CODE.UNIMPLEMENTED
