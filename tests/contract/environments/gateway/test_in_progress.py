"""Requests of an episode that are still answered when it ends, or for longer than its agent may take."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Unpack

import httpx2
import pytest

from routershift.client.requests import Sampling
from routershift.trajectory import Completion
from services.environments.playing.failures import EpisodeFailedError
from services.environments.playing.limits import EpisodeLimits
from tests.support.gateway import Scripted, player, prompt, save_tokenizer, served


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tiny"
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_request_that_outlives_its_episode_is_cancelled_and_says_so(words: Path, streamed: bool) -> None:
    policy = Scripted(words, ["too late"], waits=asyncio.Event())
    async with served(policy, words) as (url, gateway), httpx2.AsyncClient(base_url=url, timeout=60) as http:
        playing = asyncio.create_task(player(policy, gateway, words).play(prompt(n=1)))
        episode = (await http.post("/episodes")).json()
        asks = {"model": "tiny", "messages": episode["messages"], "stream": streamed}
        asked = asyncio.create_task(http.post(f"{episode['base_url']}/chat/completions", json=asks))
        await policy.was_asked.wait()
        assert (await http.delete(f"/episodes/{episode['id']}")).status_code == 200
        answer = await asked
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "episode_ended")
        assert policy.was_cancelled.is_set()
        with pytest.raises(EpisodeFailedError, match="closed an episode"):
            await playing


class Halting(Scripted):
    """Pauses after the first token of each stream."""

    async def stream(
        self, prompt: Sequence[int], *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[Completion]:
        async for piece in super().stream(prompt, return_router=return_router, **sampling):
            yield piece
            if piece.finish_reason is None:
                await asyncio.sleep(1.0)


async def test_a_stream_may_take_longer_than_an_agent(words: Path) -> None:
    """Only the agent has turn_seconds: while its answer is streamed, it waits for us."""
    policy = Halting(words, ["ab"])
    limits = EpisodeLimits(turn_seconds=0.9)
    async with served(policy, words, limits=limits) as (url, gateway), httpx2.AsyncClient(timeout=60) as http:
        playing = asyncio.create_task(player(policy, gateway, words, limits).play(prompt(n=1)))
        episode = (await http.post(f"{url}/episodes")).json()
        asks = {"model": "tiny", "messages": episode["messages"], "stream": True}
        answer = await http.post(f"{episode['base_url']}/chat/completions", json=asks)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert (await http.post(f"{url}/episodes/{episode['id']}/reward", json={"reward": 1.0})).status_code == 200
        assert (await playing).trajectories[0].score.reward == 1.0
