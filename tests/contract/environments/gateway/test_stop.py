"""The gateway stops: what is in progress is answered, and nothing of it is an error of the service."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.entries import until
from tests.support.gateway import Scripted, gateway, player, prompt, save_tokenizer, served

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
STOPPING = {
    "message": "the service stops; send the request again when it is back",
    "type": "service_unavailable_error",
    "param": None,
    "code": "service_unavailable",
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tiny"
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/episodes", {"wait_seconds": 600}),
        ("/v1/chat/completions", HELLO),
        ("/v1/chat/completions", {**HELLO, "stream": True}),
    ],
)
async def test_a_request_in_progress_is_answered_503(
    words: Path, caplog: pytest.LogCaptureFixture, path: str, body: dict[str, Any]
) -> None:
    policy = Scripted(words, ["ab"], waits=asyncio.Event())
    async with httpx2.AsyncClient(timeout=60) as http:
        with caplog.at_level(logging.INFO):
            async with served(policy, words) as (url, made):
                waiting = asyncio.create_task(http.post(f"{url}{path}", json=body))

                async def is_in_progress() -> bool:
                    return bool(made.requests)

                await until(is_in_progress)
            answer = await waiting
    assert (answer.status_code, answer.json()["error"]) == (503, STOPPING)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert "the gateway stops: 1 requests in progress" in caplog.text


async def test_a_stream_that_has_begun_ends_with_the_error(words: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = Halting(words, ["some words"])
    async with httpx2.AsyncClient(timeout=60) as http:
        async with gateway(policy, words) as url:
            asking = http.stream("POST", f"{url}/v1/chat/completions", json={**HELLO, "stream": True})
            answer = await asking.__aenter__()
            lines = answer.aiter_lines()
            assert json.loads((await anext(lines)).removeprefix("data: "))["object"] == "chat.completion.chunk"
        told = [json.loads(line.removeprefix("data: ")) async for line in lines if line]
        await asking.__aexit__(None, None, None)
    assert told[-1] == {"error": STOPPING}
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_what_ends_in_time_is_answered(words: Path) -> None:
    policy = Scripted(words, ["ab"], waits=asyncio.Event())
    async with httpx2.AsyncClient(timeout=60) as http:
        async with gateway(policy, words) as url:
            waiting = asyncio.create_task(http.post(f"{url}/v1/chat/completions", json=HELLO))
            await policy.was_asked.wait()
            assert policy.waits is not None
            policy.waits.set()
        answer = await waiting
    assert answer.json()["choices"][0]["message"]["content"] == "ab"


async def test_an_agent_that_went_away_while_it_waited_claims_nothing(words: Path) -> None:
    policy = Scripted(words, ["ab"])
    async with served(policy, words) as (url, made), httpx2.AsyncClient(timeout=60) as http:
        async with asyncio.timeout(60):
            leaving = asyncio.create_task(http.post(f"{url}/episodes", json={"wait_seconds": 600}))

            async def is_in_progress() -> bool:
                return bool(made.requests)

            await until(is_in_progress)
            leaving.cancel()

            async def has_left() -> bool:
                return not made.requests

            await until(has_left)
            playing = asyncio.create_task(player(policy, made, words, claim_seconds=60).play(prompt(n=1)))
            episode = (await http.post(f"{url}/episodes", json={"wait_seconds": 60})).json()
            asked = {"model": "tiny", "messages": episode["messages"]}
            await http.post(f"{url}/episodes/{episode['id']}/v1/chat/completions", json=asked)
            await http.post(f"{url}/episodes/{episode['id']}/reward", json={"reward": 1.0})
            assert (await playing).trajectories[0].score.reward == 1.0


class Halting(Scripted):
    """Says one token, and never another."""

    async def stream(self, prompt: Any, **sampling: Any) -> Any:
        async for piece in super().stream(prompt, **sampling):
            yield piece
            await asyncio.Event().wait()
