"""TLS as callers see it: real certificates, and each refusal with its status code."""

from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from routershift.client.channel import open_channel
from shared.clients import GenerationClient
from shared.errors import DeadlineError, InvalidInputError, NotFoundError
from shared.rpc.server import Server
from shared.settings import AccessSettings, ServerSettings
from tests.support.access import CODE, code_of, locked, serving
from tests.support.certificates import Authority


async def test_mutual_tls_takes_its_own_and_nobody_else(authority: Authority, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "other")
    forged_certificate, forged_key = other.sign("server")
    own = locked(authority, "client")
    async with serving(locked(authority, mutual=True)) as (address, _):
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


async def test_a_server_of_another_name_is_not_trusted(authority: Authority) -> None:
    caller = AccessSettings(authority=authority.certificate)
    async with serving(locked(authority)) as (address, _):
        assert await code_of(address, caller) is CODE.OK
        assert await code_of(address, caller.model_copy(update={"server_name": "localhost"})) is CODE.OK
        assert await code_of(address, caller.model_copy(update={"server_name": "elsewhere"})) is CODE.UNAVAILABLE


async def test_certificates_are_replaced_without_a_restart(tmp_path: Path) -> None:
    old, new = Authority.make(tmp_path / "old"), Authority.make(tmp_path / "new")
    of_old, of_new = locked(old, "client"), locked(new, "client")
    mounted = locked(old, mutual=True)
    async with serving(mounted) as (address, _):
        assert await code_of(address, of_old) is CODE.OK
        assert await code_of(address, of_new) is CODE.UNAVAILABLE
        certificate, key = new.sign("server")
        for into, out_of in (
            (mounted.certificate, certificate),
            (mounted.key, key),
            (mounted.authority, new.certificate),
        ):
            assert into is not None
            into.write_bytes(out_of.read_bytes())
        assert await code_of(address, of_new) is CODE.OK
        # `of_old` names the file that was replaced, so that it now trusts the server; the server no longer trusts it.
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
    async with serving(access, ServerSettings(health_port=0)) as (address, server):
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
