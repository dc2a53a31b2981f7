"""Who may come in, and how much at once: the limits that hold before a request is read."""

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from openai import AsyncOpenAI

from services.environments.gateway.server import GatewayServer
from services.environments.gateway.settings import GatewaySettings
from shared.errors import InvalidInputError, PortTakenError
from shared.rpc.server import Server
from shared.settings import AccessSettings, ServerSettings
from tests.support.access import OPERATOR, SAMPLER, SCORER, STRANGER
from tests.support.certificates import Authority
from tests.support.gateway import Scripted, gateway, save_tokenizer

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tiny"
    save_tokenizer(folder)
    return folder


async def code_of(url: str, **call: Any) -> tuple[int, str]:
    async with httpx2.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/chat/completions", **({"json": HELLO} | call))
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code != 200 else "ok"


async def test_tokens_have_roles_here_too(words: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"sample {SAMPLER}\nscore {SCORER}\noperate {OPERATOR}\n")
    async with gateway(Scripted(words, ["ab", "ab"]), words, AccessSettings(tokens=tokens)) as url:
        for token, code in (
            (SAMPLER, (200, "ok")),
            (OPERATOR, (200, "ok")),
            (SCORER, (403, "insufficient_permissions")),
            (STRANGER, (401, "invalid_api_key")),
        ):
            assert await code_of(url, headers={"authorization": f"Bearer {token}"}) == code
        assert await code_of(url) == (401, "invalid_api_key")
        async with httpx2.AsyncClient(base_url=url) as client:
            assert (await client.get("/v1/models")).status_code == 401
            assert (await client.get("/v1/nothing")).status_code == 401, "who is not known learns nothing of the paths"


async def test_tls_of_the_table_access_and_certificates_that_change(words: Path, tmp_path: Path) -> None:
    authority, other = Authority.make(tmp_path / "a"), Authority.make(tmp_path / "b")
    certificate, key = authority.sign("server")
    access = AccessSettings(certificate=certificate, key=key)
    async with gateway(Scripted(words, ["ab", "ab"]), words, access) as url:
        assert url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(authority.certificate))
        async with (
            httpx2.AsyncClient(verify=trusting) as http,
            AsyncOpenAI(base_url=f"{url}/v1", api_key="any", http_client=http, max_retries=0) as client,
        ):
            assert (await client.chat.completions.create(**HELLO)).choices[0].message.content == "ab"
        for new, old in zip(other.sign("server"), (certificate, key), strict=True):
            old.write_bytes(new.read_bytes())
        renewed = ssl.create_default_context(cafile=str(other.certificate))
        async with httpx2.AsyncClient(base_url=url, verify=renewed) as http:
            assert (await http.post("/v1/chat/completions", json=HELLO)).status_code == 200
        async with httpx2.AsyncClient(base_url=url, verify=trusting) as http:
            with pytest.raises(httpx2.ConnectError):
                await http.get("/v1/models")


async def test_mutual_tls_asks_for_a_certificate(words: Path, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "a")
    certificate, key = authority.sign("server")
    access = AccessSettings(certificate=certificate, key=key, authority=authority.certificate, mutual=True)
    async with gateway(Scripted(words, []), words, access) as url:
        bare = ssl.create_default_context(cafile=str(authority.certificate))
        async with httpx2.AsyncClient(base_url=url, verify=bare) as http:
            with pytest.raises(httpx2.TransportError):
                await http.get("/v1/models")
        known = ssl.create_default_context(cafile=str(authority.certificate))
        known.load_cert_chain(*authority.sign("client"))
        async with httpx2.AsyncClient(base_url=url, verify=known) as http:
            assert (await http.get("/v1/models")).status_code == 200


def test_tokens_do_not_go_in_clear_text_over_a_network(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"sample {SAMPLER}\n")
    server = GatewayServer(_nothing, GatewaySettings(), AccessSettings(tokens=tokens), ServerSettings(host="0.0.0.0"))  # noqa: S104
    with pytest.raises(InvalidInputError, match=r"clear text.*access\.certificate"):
        server.listen()


async def test_a_port_that_is_taken_is_named() -> None:
    taken = Server()
    port = await taken.listen("127.0.0.1", 0, [])
    try:
        with pytest.raises(PortTakenError, match=r"environments\.gateway\.port"):
            GatewayServer(_nothing, GatewaySettings(port=port), AccessSettings(), ServerSettings()).listen()
    finally:
        await taken.stop(0)


async def test_a_body_that_is_too_long_is_refused_before_it_is_read(words: Path) -> None:
    async def endless() -> Any:
        while True:
            yield b"x" * 65536

    async with gateway(Scripted(words, []), words, max_body_bytes=4096) as url:
        assert await code_of(url, json=HELLO | {"user": "x" * 5000}) == (413, "request_too_large")
        async with httpx2.AsyncClient(base_url=url) as client:
            try:
                answer = await client.post("/v1/chat/completions", content=endless())
                assert answer.status_code == 413
            except httpx2.TransportError:
                pass  # it hung up while this was still sending


async def test_more_requests_than_allowed_are_told_when_to_come_back(words: Path) -> None:
    policy = Scripted(words, ["ab"], waits=asyncio.Event())
    async with gateway(policy, words, max_requests=1) as url:
        first = asyncio.create_task(code_of(url))
        await policy.was_asked.wait()
        async with httpx2.AsyncClient(base_url=url) as client:
            second = await client.get("/v1/models")
        assert second.status_code == 429
        assert second.json()["error"]["code"] == "rate_limit_exceeded"
        assert float(second.headers["retry-after"]) > 0
        assert policy.waits is not None
        policy.waits.set()
        assert await first == (200, "ok")
        async with httpx2.AsyncClient(base_url=url) as client:
            assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize(
    ("begun", "requests"), [(b"", 0), (b"GET /v1/models HTTP/1.1\r\n", 0), (b"GET /v1/models HTTP/1.1\r\n", 1)]
)
async def test_a_header_that_does_not_come_costs_no_connection(words: Path, begun: bytes, requests: int) -> None:
    async with gateway(Scripted(words, []), words, receive_seconds=0.2) as url, asyncio.timeout(30):
        place = urlsplit(url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        for _ in range(requests):
            writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"]}")
        writer.write(begun)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_a_body_that_does_not_come_is_answered(words: Path) -> None:
    async with gateway(Scripted(words, []), words, receive_seconds=0.2) as url:
        place = urlsplit(url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nconnection: close\r\n\r\n{")
        async with asyncio.timeout(30):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"gateway.receive_seconds" in answer
        writer.close()


async def test_more_connections_than_allowed_are_closed(words: Path) -> None:
    async with gateway(Scripted(words, []), words, max_connections=1) as url:
        place = urlsplit(url)
        _, first = await asyncio.open_connection(place.hostname, place.port)
        reader, second = await asyncio.open_connection(place.hostname, place.port)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        first.close()
        second.close()


async def _nothing(scope: Any, receive: Any, send: Any) -> None: ...
