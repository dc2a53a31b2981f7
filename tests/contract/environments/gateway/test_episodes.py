"""Episodes that agents play with nothing but the `openai` package, and what the learner gets of them by token."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI

from routershift import wire
from routershift.trajectory import FinishReason, Trajectory
from routershift.v1 import trajectory_pb2 as pb
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.playing.limits import EpisodeLimits
from shared.clients import GenerationClient
from shared.streams.run import Run
from tests.support.gateway import Scripted, player, prompt, save_agent_model, save_tokenizer, served
from tests.support.generation import generation_server

TOOLS: list[Any] = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]
# Not as the template would write it: a join by text alone would lose what was sampled.
CALL = '<tool_call>\n{"name":"calculate","arguments":{"expression":"6*7"}}\n</tool_call>'


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tiny"
    save_tokenizer(folder)
    return folder


async def plain_agent(url: str, streamed: bool = False) -> float:
    """Plays one episode: asks, computes what the model calls for, and rewards the right answer."""
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        episode = (await http.post("/episodes", json={"environment": "helper"})).json()
        messages: list[Any] = list(episode["messages"])
        async with AsyncOpenAI(base_url=episode["base_url"], api_key="any", max_retries=0) as client:
            while True:
                asked: dict[str, Any] = {"model": "tiny", "messages": messages, "tools": TOOLS}
                if streamed:
                    async with client.chat.completions.stream(**asked) as events:
                        said: Any = (await events.get_final_completion()).choices[0].message
                else:
                    said = (await client.chat.completions.create(**asked)).choices[0].message
                if not said.tool_calls:
                    break
                calls = [call.model_dump(include={"id", "type", "function"}) for call in said.tool_calls]
                for call in calls:
                    call["function"].pop("parsed_arguments", None)
                messages.append({"role": "assistant", "content": said.content, "tool_calls": calls})
                messages += [{"role": "tool", "tool_call_id": call["id"], "content": "42"} for call in calls]
        reward = float(str(episode["task"]["answer"]) in (said.content or ""))
        ended = await http.post(
            f"/episodes/{episode['id']}/reward", json={"reward": reward, "parts": {"correct": reward}}
        )
        assert ended.status_code == 200, ended.text
        return reward


def trajectories(group: pb.TrajectoryGroup) -> list[Trajectory]:
    return [wire.decode_trajectory(trajectory) for trajectory in group.trajectories]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_group_is_recorded_as_it_was_sampled(words: Path, streamed: bool) -> None:
    policy = Scripted(words, [CALL, "It is 42.", CALL, "It is 7."])
    async with served(policy, words) as (url, gateway):
        playing = asyncio.create_task(player(policy, gateway, words).play(prompt()))
        assert await plain_agent(url, streamed) == 1.0
        assert await plain_agent(url, streamed) == 0.0
        group = await playing
    assert [t.score.reward for t in group.trajectories] == [1.0, 0.0]
    assert [dict(t.score.parts) for t in group.trajectories] == [{"correct": 1.0}, {"correct": 0.0}]
    asked = [ids for ids, _ in policy.asked]
    for sample, trajectory in enumerate(trajectories(group)):
        said = policy.said[2 * sample : 2 * sample + 2]
        first, second = asked[2 * sample : 2 * sample + 2]
        whole = [*group.prompt.token_ids, *trajectory.token_ids.tolist()]
        assert list(group.prompt.token_ids) == first
        assert whole == [*second, *said[1].token_ids.tolist()], "what the model read is what the learner reads"
        assert second[: len(first)] == first
        assert second[len(first) :][: said[0].token_ids.size] == said[0].token_ids.tolist(), (
            "nothing is tokenized twice"
        )
        completion = trajectory.completion
        assert completion.token_ids.tolist() == [token for each in said for token in each.token_ids]
        assert completion.logprobs.tolist() == [logprob for each in said for logprob in each.logprobs]
        assert completion.router_trace is not None
        rows = np.concatenate([each.router_trace.expert_ids for each in said if each.router_trace])
        assert (completion.router_trace.expert_ids == rows).all()
        assert sum(span.tokens for span in completion.versions) == completion.token_ids.size
        if not streamed:
            versions = [v for each in said for span in each.versions for v in [span.version] * span.tokens]
            assert [v for span in completion.versions for v in [span.version] * span.tokens] == versions
        given = policy.tokens.decode(trajectory.given_ids.tolist(), skip_special_tokens=False)
        assert given == "\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert [sampling["seed"] for _, sampling in policy.asked[::2]] == [5, 6], "the first turns as without an agent"


async def test_agents_play_a_real_policy_end_to_end(run: Run, tmp_path: Path) -> None:
    model = save_agent_model(tmp_path / "tiny")

    async def agent(url: str) -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
            episode = (await http.post("/episodes")).json()
            messages = list(episode["messages"])
            async with AsyncOpenAI(base_url=episode["base_url"], api_key="any", max_retries=0) as client:
                for _ in range(3):
                    answer = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=12)
                    messages.append({"role": "assistant", "content": answer.choices[0].message.content})
                    messages.append({"role": "user", "content": "Go on."})
            await http.post(f"/episodes/{episode['id']}/reward", json={"reward": 0.5})

    async with (
        generation_server(run, tmp_path, model, max_model_len=1024) as address,
        GenerationClient(address) as policy,
        served(policy, model) as (url, gateway),
    ):
        playing = asyncio.create_task(player(policy, gateway, model).play(prompt(n=2)))
        await asyncio.gather(agent(url), agent(url))
        group = await playing
    assert len(group.trajectories) == 2
    for trajectory in trajectories(group):
        sampled = [segment for segment in trajectory.segments if segment.is_sampled]
        assert len(sampled) == 3
        completion = trajectory.completion
        assert completion.router_trace is not None
        assert completion.router_trace.expert_ids.shape[0] == completion.token_ids.size == completion.logprobs.size


async def chat(client: AsyncOpenAI, messages: list[Any], **fields: Any) -> str:
    answer = await client.chat.completions.create(model="tiny", messages=messages, **fields)
    return answer.choices[0].message.content or ""


async def with_episode(
    policy: Scripted,
    words: Path,
    act: Callable[[AsyncOpenAI, httpx2.AsyncClient, dict[str, Any]], Awaitable[None]],
    limits: EpisodeLimits | None = None,
    **fields: Any,
) -> pb.TrajectoryGroup:
    """The group of one episode in which `act` happens."""
    async with served(policy, words, limits=limits) as (url, gateway):
        playing = asyncio.create_task(player(policy, gateway, words, limits).play(prompt(n=1, **fields)))
        async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
            episode = (await http.post("/episodes")).json()
            async with AsyncOpenAI(base_url=episode["base_url"], api_key="any", max_retries=0) as client:
                await act(client, http, episode)
        async with asyncio.timeout(60):
            return await playing


async def test_a_history_that_is_rewritten_is_a_branch_from_where_it_was(words: Path) -> None:
    policy = Scripted(words, ["the cat", "a b", "ab", "You said: the cat."])

    async def act(client: AsyncOpenAI, http: httpx2.AsyncClient, episode: dict[str, Any]) -> None:
        first = list(episode["messages"])
        one = [*first, {"role": "assistant", "content": await chat(client, first)}]
        two = [*one, {"role": "user", "content": "And?"}]
        assert await chat(client, two) == "a b"
        assert await chat(client, [{"role": "user", "content": "Another matter."}]) == "ab"
        again = [*one, {"role": "user", "content": "What did you say?"}]
        assert await chat(client, again) == "You said: the cat."
        await http.post(f"/episodes/{episode['id']}/reward", json={"reward": 1})

    (trajectory,) = trajectories(await with_episode(policy, words, act))
    texts = [segment.text for segment in trajectory.segments if segment.is_sampled]
    assert texts == ["the cat", "You said: the cat."], "the last branch, with the turn that it has in common"
    sampled = [*policy.said[0].token_ids, *policy.said[3].token_ids]
    assert trajectory.completion.token_ids.tolist() == sampled
    whole = [*policy.asked[0][0], *trajectory.token_ids.tolist()]
    assert whole == [*policy.asked[3][0], *policy.said[3].token_ids.tolist()]


async def test_thoughts_that_the_template_drops_stay_as_they_were_sampled(words: Path) -> None:
    policy = Scripted(words, ["<think>\nab\n</think>\nthe cat", "<think>\n b\n</think>\na b", "ab"])

    async def act(client: AsyncOpenAI, http: httpx2.AsyncClient, episode: dict[str, Any]) -> None:
        messages = list(episode["messages"])
        for _ in range(3):
            messages.append({"role": "assistant", "content": await chat(client, messages)})
            messages.append({"role": "user", "content": "Go on."})
        await http.post(f"/episodes/{episode['id']}/reward", json={"reward": 1})

    (trajectory,) = trajectories(await with_episode(policy, words, act))
    assert trajectory.completion.token_ids.tolist() == [t for each in policy.said for t in each.token_ids]
    whole = [*policy.asked[0][0], *trajectory.token_ids.tolist()]
    assert whole == [*policy.asked[2][0], *policy.said[2].token_ids.tolist()]
    text = policy.tokens.decode(whole, skip_special_tokens=False)
    assert text.count("<think>") == 2
    assert text.count("<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n") == 2


async def test_what_an_episode_does_not_take(words: Path) -> None:
    policy = Scripted(words, ["ab"] * 4)

    async def act(client: AsyncOpenAI, http: httpx2.AsyncClient, episode: dict[str, Any]) -> None:
        messages, path = list(episode["messages"]), f"/episodes/{episode['id']}"
        early = await http.post(f"{path}/reward", json={"reward": 1})
        assert (early.status_code, early.json()["error"]["code"]) == (409, "episode_without_turns")
        for field in ({"n": 2}, {"temperature": 0.3}, {"top_p": 0.9}, {"extra_body": {"top_k": 5}}):
            with pytest.raises(openai.BadRequestError) as refused:
                await chat(client, messages, **field)
            assert refused.value.code == "unsupported_parameter"
        assert await chat(client, messages, temperature=1.0, top_p=1.0) == "ab"
        for body in (
            b"{}",
            b'{"reward": "much"}',
            b'{"reward": NaN}',
            b'{"reward": 1e999}',
            b"",
            b'{"reward": 1, "x": 2}',
        ):
            assert (await http.post(f"{path}/reward", content=body)).status_code == 400, body
        long = {"reward": 1, "parts": {"x" * 65: 1}}
        assert (await http.post(f"{path}/reward", json=long)).status_code == 400
        assert (await http.post("/episodes/forged/reward", json={"reward": 1})).status_code == 404
        assert (await http.post("/episodes/forged/v1/chat/completions", json={})).status_code == 404
        assert (await http.delete("/episodes/forged")).status_code == 404
        assert (await http.post("/episodes", json={"wait_seconds": 0})).status_code == 204
        assert (await http.post("/episodes", json={"wait_seconds": -1})).status_code == 400
        assert (await http.post(f"{path}/reward", json={"reward": 1})).status_code == 200
        twice = await http.post(f"{path}/reward", json={"reward": 1})
        assert (twice.status_code, twice.json()["error"]["code"]) == (409, "episode_rewarded")
        with pytest.raises(openai.APIStatusError) as gone:
            await chat(client, messages)
        assert gone.value.status_code == 410
        assert (await http.delete(path)).status_code == 410

    group = await with_episode(policy, words, act)
    assert group.trajectories[0].score.reward == 1


async def test_an_episode_without_room_ends_as_one_that_was_cut(words: Path) -> None:
    policy = Scripted(words, ["ab", "ab"])

    async def act(client: AsyncOpenAI, http: httpx2.AsyncClient, episode: dict[str, Any]) -> None:
        messages = list(episode["messages"])
        messages.append({"role": "assistant", "content": await chat(client, messages)})
        messages.append({"role": "user", "content": "Go on."})
        with pytest.raises(openai.BadRequestError) as refused:
            await chat(client, messages)
        assert refused.value.code == "turn_limit_exceeded"
        await http.post(f"/episodes/{episode['id']}/reward", json={"reward": 0})

    (trajectory,) = trajectories(await with_episode(policy, words, act, EpisodeLimits(turns=1)))
    assert trajectory.completion.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("limits", "reason", "said"),
    [
        (EpisodeLimits(), Reason.ENVIRONMENT_FAILED, "closed an episode without a reward"),
        (EpisodeLimits(turn_seconds=0.3), Reason.ENVIRONMENT_TIMED_OUT, "environments.turn_seconds = 0.3"),
        (EpisodeLimits(episode_seconds=0.3), Reason.EPISODE_TIMED_OUT, "environments.episode_seconds = 0.3"),
    ],
)
async def test_an_agent_that_fails_is_a_typed_failure_of_its_group(
    words: Path, limits: EpisodeLimits, reason: Reason, said: str
) -> None:
    policy = Scripted(words, ["ab"])

    async def act(client: AsyncOpenAI, http: httpx2.AsyncClient, episode: dict[str, Any]) -> None:
        if reason is Reason.ENVIRONMENT_FAILED:
            await chat(client, list(episode["messages"]))
            assert (await http.delete(f"/episodes/{episode['id']}")).status_code == 200
            return
        deadline = asyncio.get_running_loop().time() + 60
        late = await http.get(f"/episodes/{episode['id']}/v1/models")
        while late.status_code == 200 and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
            late = await http.get(f"/episodes/{episode['id']}/v1/models")
        assert late.status_code == 410

    with pytest.raises(EpisodeFailedError, match=said) as failed:
        await with_episode(policy, words, act, limits)
    assert failed.value.reason is reason


async def test_nobody_comes_or_the_service_ends(words: Path) -> None:
    policy = Scripted(words, [])
    async with served(policy, words) as (url, gateway):
        with pytest.raises(EpisodeFailedError, match="no agent has claimed"):
            await player(policy, gateway, words, claim_seconds=0.1).play(prompt())
        playing = asyncio.create_task(player(policy, gateway, words).play(prompt()))
        async with httpx2.AsyncClient(base_url=url) as http:
            episode = (await http.post("/episodes")).json()
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            answer = await http.post(f"/episodes/{episode['id']}/reward", json={"reward": 1})
            assert answer.status_code == 410
            assert (await http.post("/episodes", json={"wait_seconds": 0})).status_code == 204, "none waits any more"
