"""The verifier `remote`: a Reward service by gRPC and an HTTP endpoint, well and unwell."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from routershift.v1 import reward_pb2_grpc as rew_grpc
from services.reward.early import EarlyScores
from services.reward.outcomes import Outcome
from services.reward.scoring import Scorer
from services.reward.server import RewardServicer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import Item, Verdict
from services.reward.verifiers.registry import make_verifiers
from services.reward.verifiers.remote.verifier import RemoteSettings, RemoteVerifier
from shared.errors import (
    CorruptDataError,
    DeadlineError,
    ForbiddenError,
    InvalidInputError,
    PreconditionError,
    RouterShiftError,
    UnavailableError,
)
from shared.rpc.server import Server
from shared.settings import AccessSettings
from tests.support.certificates import Authority
from tests.support.judges import GOOD, ITEM, Fixed


@asynccontextmanager
async def reward_server(access: AccessSettings | None = None) -> AsyncIterator[int]:
    """The port of a Reward service with every verifier that needs no settings."""
    scorer = Scorer(make_verifiers({}), RewardSettings(processes=1))
    server = Server(access)
    rew_grpc.add_RewardServiceServicer_to_server(RewardServicer(scorer, EarlyScores(scorer, 100)), server.grpc)
    port = await server.listen("127.0.0.1", 0, [])
    yield port
    await server.stop(0)
    await scorer.close()


@pytest.fixture
async def grpc_address() -> AsyncIterator[str]:
    async with reward_server() as port:
        yield f"grpc://127.0.0.1:{port}"


async def test_a_reward_service_behind_mutual_tls_and_a_token(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "tls")
    (certificate, key), own = authority.sign("reward"), authority.sign("caller")
    (tmp_path / "tokens").write_text(f"score {'s' * 32}\nsample {'t' * 32}\n")
    locked = AccessSettings(
        certificate=certificate, key=key, authority=authority.certificate, mutual=True, tokens=tmp_path / "tokens"
    )
    async with reward_server(locked) as port:
        server: dict[str, Any] = {"address": f"grpcs://127.0.0.1:{port}", "verifier": "exact", "attempts": 1}
        server |= {"ca_file": authority.certificate, "certificate_file": own[0], "key_file": own[1]}
        token = tmp_path / "token"
        token.write_text("s" * 32)
        assert (await ask(**server, token_file=token)).reward == 1.0
        token.write_text("t" * 32)
        with pytest.raises(ForbiddenError, match="is for operate and score"):
            await ask(**server, token_file=token)


async def ask(item: Item = ITEM, **settings: Any) -> Verdict:
    verifier = RemoteVerifier(RemoteSettings.model_validate({"backoff_seconds": 0.01, **settings}))
    try:
        return await verifier.verify(item, Fixed())
    finally:
        await verifier.close()


async def test_a_reward_service_elsewhere(grpc_address: str) -> None:
    verdict = await ask(address=grpc_address, verifier="exact")
    assert verdict == Verdict(1.0, {"correct": 1.0, "valid": 1.0})
    with pytest.raises(InvalidInputError, match="reference of exact"):
        await ask(Item("", "4", {}), address=grpc_address, verifier="exact")
    with pytest.raises(RouterShiftError, match="nowhere"):
        await ask(address=grpc_address, verifier="nowhere")


async def test_no_reward_service_elsewhere() -> None:
    with pytest.raises((UnavailableError, DeadlineError)):
        await ask(address="grpc://127.0.0.1:1", verifier="exact", attempts=1, attempt_seconds=0.5)


@dataclass
class Endpoint:
    """An HTTP server that gives these answers, in turn, and keeps what it was sent. The last answer repeats."""

    answers: list[tuple[int, bytes]] = field(default_factory=list)
    requests: list[tuple[dict[str, str], Any]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            served.requests.append((dict(self.headers), json.loads(body)))
            status, answer = served.answers[min(len(served.requests), len(served.answers)) - 1]
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            for piece in (answer[:10], answer[10:]):
                if piece:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        served.address = f"http://127.0.0.1:{server.server_address[1]}/score"
        yield served
        server.shutdown()
        thread.join()


def body(answer: Any) -> bytes:
    return json.dumps(answer).encode()


EPISODE = Item("2+2?", "4", {"answer": "4"}, (), [("assistant", "add(2, 2)"), ("tool", "4"), ("assistant", "4")])


async def test_messages_of_an_episode_go_along(tmp_path: Path, endpoint: Endpoint) -> None:
    (tmp_path / "turns.py").write_text("def score(response, messages): return 10 * len(messages) + float(response)")
    scorer = Scorer(make_verifiers({"turns": {"file": str(tmp_path / "turns.py")}}), RewardSettings(processes=1))
    server = Server(None)
    rew_grpc.add_RewardServiceServicer_to_server(RewardServicer(scorer, EarlyScores(scorer, 100)), server.grpc)
    port = await server.listen("127.0.0.1", 0, [])
    try:
        assert (await ask(EPISODE, address=f"grpc://127.0.0.1:{port}", verifier="turns")).reward == 34
        assert (await ask(address=f"grpc://127.0.0.1:{port}", verifier="turns")).reward == 14
    finally:
        await server.stop(0)
        await scorer.close()
    endpoint.answers = [(200, body({"reward": 1, "parts": {"correct": 1}}))]
    await ask(EPISODE, address=endpoint.address)
    await ask(address=endpoint.address)
    bodies = [body for _, body in endpoint.requests]
    assert [message["role"] for message in bodies[0]["messages"]] == ["assistant", "tool", "assistant"]
    assert "messages" not in bodies[1]


async def test_an_http_endpoint(endpoint: Endpoint, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    endpoint.answers = [(200, body(GOOD))]
    verdict = await ask(address=endpoint.address, token_file=token)
    assert verdict == Verdict(0.75, {"correct": 1.0, "style": 0.5})
    ((headers, sent),) = endpoint.requests
    assert sent == {"prompt": "2+2?", "response": "4", "reference": {"answer": "4"}}
    assert headers["Authorization"] == "Bearer s3cret"


async def test_a_busy_endpoint_is_asked_again(endpoint: Endpoint) -> None:
    endpoint.answers = [(503, b"later"), (429, b"slowly"), (200, body(GOOD))]
    assert (await ask(address=endpoint.address)).reward == 0.75
    assert len(endpoint.requests) == 3


async def test_attempts_are_counted(endpoint: Endpoint) -> None:
    endpoint.answers = [(503, b"later")]
    with pytest.raises(UnavailableError, match="answers 503: later"):
        await ask(address=endpoint.address, attempts=2)
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    ("status", "answer", "error", "text"),
    [
        (422, b"no answer in the reference", InvalidInputError, "refuses the item: no answer"),
        (401, b"who are you", PreconditionError, "answers 401"),
        (302, b"", PreconditionError, "answers 302"),  # followed, it would take the token elsewhere
        (200, b"<html>", CorruptDataError, "not JSON"),
        (200, b"[" * 100_000, CorruptDataError, "not JSON"),
        (200, b"x" * (2 << 20), CorruptDataError, "more than 1048576 bytes"),
        (200, body({"reward": "1", "parts": {"correct": 1}}), PreconditionError, "expected {'reward': number"),
        (200, b'{"reward": NaN, "parts": {"correct": 1}}', PreconditionError, "expected {'reward': number"),
        (200, body({"reward": 1, "parts": {}}), PreconditionError, "expected 'correct' among them"),
    ],
)
async def test_answers_that_are_no_verdict(
    endpoint: Endpoint, status: int, answer: bytes, error: type[Exception], text: str
) -> None:
    endpoint.answers = [(status, answer)]
    with pytest.raises(error, match=text):
        await ask(address=endpoint.address)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"SSH-2.0\r\n", CorruptDataError),
        (b"", UnavailableError),
        (b"HTTP/1.1 200\r\nContent-Length: 9\r\n\r\n{", UnavailableError),
    ],
)
async def test_servers_that_break_off(answer: bytes, error: type[Exception]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(error):
            await ask(address=f"http://127.0.0.1:{port}/", attempts=2)


async def test_a_silent_server_meets_the_deadline() -> None:
    async with await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DeadlineError, match=r"no answer within 0\.2 s"):
            await ask(address=f"http://127.0.0.1:{port}/", attempts=2, attempt_seconds=0.2)
        verifiers = make_verifiers({"far": {"kind": "remote", "address": f"http://127.0.0.1:{port}/"}})
        scorer = Scorer(verifiers, RewardSettings(timeout_seconds=0.2))
        (scored,) = await scorer.score("far", [ITEM])
        await scorer.close()
        assert scored.outcome is Outcome.TIMED_OUT


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"address": "ftp://host"}, "should match pattern"),
        ({"address": "http://user:password@host"}, "should match pattern"),
        ({"address": "grpc://host:1"}, "verifier is the name at a grpc:// address"),
        ({"address": "http://host", "verifier": "math"}, "verifier is the name at a grpc:// address"),
        ({"address": "http://host", "token_file": "token"}, "in clear text to host"),
        ({"address": "grpc://host:1", "verifier": "math", "token_file": "token"}, "in clear text to host"),
        ({"address": "grpcs://host:1", "verifier": "math"}, "a grpcs:// address needs it"),
        ({"address": "grpc://host:1", "verifier": "math", "ca_file": "ca.pem"}, "goes with grpcs://"),
        ({"address": "https://host", "certificate_file": "a.pem", "key_file": "a.key"}, "are for grpcs://"),
    ],
)
def test_remote_settings_that_make_no_sense(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        RemoteSettings.model_validate(settings)


async def test_a_token_file_that_is_no_token(endpoint: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="cannot be read"):
        await ask(address=endpoint.address, token_file=tmp_path / "none")
    file = tmp_path / "token"
    file.write_text("one\r\nX-Other: two\n")
    with pytest.raises(PreconditionError, match="holds no token"):
        await ask(address=endpoint.address, token_file=file)
    assert endpoint.requests == []
