"""Turns of episodes wait for a generation that has no room or is started again; other requests are told so at once."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shared.errors import OverloadedError, UnavailableError
from tests.support.gateway import Scripted, player, prompt, save_tokenizer, served


class Away(Scripted):
    """Refuses the first two of any three requests."""

    def __init__(self, folder: Path, says: list[str], error: Exception) -> None:
        super().__init__(folder, says)
        self.error, self.requests = error, 0

    async def generate(self, prompt: Any, **options: Any) -> Any:
        self.requests += 1
        if self.requests % 3:
            raise self.error
        return await super().generate(prompt, **options)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("error", [UnavailableError("it is started again"), OverloadedError("it is full", 0.01)])
async def test_a_turn_waits_for_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool, error: Exception
) -> None:
    monkeypatch.setattr("services.environments.playing.policy._PAUSE_SECONDS", 0.01)
    save_tokenizer(tmp_path / "tiny")
    policy = Away(tmp_path / "tiny", ["ab", "cd"], error)
    async with served(policy, tmp_path / "tiny") as (url, gateway), httpx2.AsyncClient(timeout=60) as http:
        playing = asyncio.create_task(player(policy, gateway, tmp_path / "tiny").play(prompt(n=1)))
        episode = (await http.post(f"{url}/episodes", json={"wait_seconds": 60})).json()
        messages = list(episode["messages"])
        for turn in range(2):
            body = {"model": "tiny", "messages": messages, "stream": streamed}
            answer = await http.post(f"{url}/episodes/{episode['id']}/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert policy.requests == 3 * (turn + 1)
            messages += [{"role": "assistant", "content": policy.said[-1].text}, {"role": "user", "content": "Go on."}]
        await http.post(f"{url}/episodes/{episode['id']}/reward", json={"reward": 1.0})
        (played,) = (await playing).trajectories
        assert [segment.sampled for segment in played.segments] == [True, False, True]
        alone = await http.post(f"{url}/v1/chat/completions", json={**body, "messages": messages[:1]})
        assert alone.status_code in (429, 503)
        assert policy.requests == 7
