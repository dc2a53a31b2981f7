"""Episodes that callers open for themselves over HTTP and gRPC: recorded by token, bounded, and never trained on.

Long because HTTP and gRPC are held to the same rules.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from routershift import wire
from routershift.v1 import environment_pb2 as env
from routershift.v1 import trajectory_pb2 as pb
from services.environments.gateway import metrics
from services.environments.gateway.gateway import Gateway
from services.environments.gateway.settings import RecordsSettings
from services.environments.playing.limits import EpisodeLimits
from services.environments.registry import make_environments
from shared.clients import EnvironmentClient, GenerationClient
from shared.errors import InvalidInputError, NotFoundError, OverloadedError, PreconditionError
from shared.streams.run import Run
from tests.support.entries import until
from tests.support.environment_server import environment_server
from tests.support.gateway import LONGEST, Scripted, player, prompt, save_agent_model, save_tokenizer, served
from tests.support.generation import generation_server

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "6 * 7?"}], "task": {"answer": 42}}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tiny"
    save_tokenizer(folder)
    return folder


async def ask(episode: dict[str, Any], messages: list[Any], streamed: bool = False, **fields: Any) -> str:
    asked: dict[str, Any] = {"model": "tiny", "messages": messages, **fields}
    async with AsyncOpenAI(base_url=episode["base_url"], api_key="any", max_retries=0) as client:
        if streamed:
            async with client.chat.completions.stream(**asked) as events:
                return (await events.get_final_completion()).choices[0].message.content or ""
        return (await client.chat.completions.create(**asked)).choices[0].message.content or ""


@asynccontextmanager
async def opened(
    policy: Scripted, words: Path, limits: EpisodeLimits | None = None, **records: Any
) -> AsyncIterator[tuple[httpx2.AsyncClient, dict[str, Any]]]:
    settings = RecordsSettings(**records)
    async with (
        served(policy, words, limits=limits, records=settings) as (url, _),
        httpx2.AsyncClient(base_url=url, timeout=60) as http,
    ):
        answer = await http.post("/episodes", json=QUESTION)
        assert answer.status_code == 201, answer.text
        yield http, answer.json()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_record_has_every_token_of_every_turn(words: Path, streamed: bool) -> None:
    policy = Scripted(words, ["the cat", "It is 42."])
    async with opened(policy, words) as (http, episode):
        assert (episode["messages"], episode["task"]) == (QUESTION["messages"], QUESTION["task"])
        path, messages = f"/episodes/{episode['id']}", list(episode["messages"])
        before = (await http.get(path)).json()
        assert (before["state"], before["end"], before["turns"]) == ("open", None, 0)
        messages.append({"role": "assistant", "content": await ask(episode, messages, streamed, temperature=0.25)})
        messages.append({"role": "user", "content": "Sure?"})
        assert await ask(episode, messages, streamed, seed=3) == "It is 42."
        assert [sampling.get("temperature") for _, sampling in policy.asked] == [0.25, None], "as each request says"
        assert (await http.post(f"{path}/reward", json={"turn": 0, "reward": 0.25})).status_code == 200
        ended = await http.post(f"{path}/reward", json={"turn_rewards": [None, 0.5], "parts": {"correct": 1}})
        assert ended.json() == {"id": episode["id"], "end": "rewarded", "reward": 0.75}
        record = (await http.get(path)).json()
        assert (await http.post("/episodes", json={"wait_seconds": 0})).status_code == 204, "nobody can claim it"
    assert (record["state"], record["end"], record["turns"]) == ("ended", "rewarded", 2)
    assert (record["reward"], record["parts"], record["task"]) == (0.75, {"correct": 1}, {"answer": 42})
    (first, _), (second, _) = policy.asked
    assert record["prompt_token_ids"] == first
    said, given, last = record["segments"]
    assert first + said["token_ids"] + given["token_ids"] == second
    for segment, completion, reward in ((said, policy.said[0], 0.25), (last, policy.said[1], 0.5)):
        assert segment["token_ids"] == completion.token_ids.tolist()
        assert segment["logprobs"] == completion.logprobs.tolist()
        assert (segment["sampled"], segment["role"], segment["reward"]) == (True, "assistant", reward)
        assert sum(span["tokens"] for span in segment["versions"]) == len(segment["token_ids"])
        if not streamed:
            spans = [{"version": span.version, "tokens": span.tokens} for span in completion.versions]
            assert segment["versions"] == spans
    assert (given["sampled"], given["role"], given["text"]) == (False, "user", "Sure?")


async def test_the_record_of_a_real_policy_is_what_it_answered(run: Run, tmp_path: Path) -> None:
    model = save_agent_model(tmp_path / "tiny")
    async with (
        generation_server(run, tmp_path, model, max_model_len=1024) as address,
        GenerationClient(address) as policy,
        served(policy, model) as (url, _),
        httpx2.AsyncClient(base_url=url, timeout=60) as http,
    ):
        episode = (await http.post("/episodes", json=QUESTION)).json()
        messages, answers = list(episode["messages"]), []
        async with AsyncOpenAI(base_url=episode["base_url"], api_key="any", max_retries=0) as client:
            for temperature in (0.0, 0.7):
                answer = await client.chat.completions.create(
                    model="tiny", messages=messages, max_tokens=12, temperature=temperature, logprobs=True,
                    extra_body={"return_token_ids": True},
                )  # fmt: skip
                answers.append(answer.choices[0])
                messages.append({"role": "assistant", "content": answer.choices[0].message.content})
                messages.append({"role": "user", "content": "Go on."})
        assert (await http.post(f"/episodes/{episode['id']}/reward", json={})).status_code == 200
        record = (await http.get(f"/episodes/{episode['id']}")).json()
    sampled = [segment for segment in record["segments"] if segment["sampled"]]
    assert [segment["token_ids"] for segment in sampled] == [
        (answer.model_extra or {})["token_ids"] for answer in answers
    ]
    for segment, choice in zip(sampled, answers, strict=True):
        assert choice.logprobs is not None
        told = [token.logprob for token in choice.logprobs.content or ()]
        assert segment["logprobs"] == told
        assert sum(span["tokens"] for span in segment["versions"]) == len(told)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "hi", "messages": QUESTION["messages"]}, "messages", "set one of them"),
    ({"prompt": "hi", "wait_seconds": 3}, "wait_seconds", "waits for nobody"),
    ({"task": {}}, "task", "set prompt or messages"),
    ({"max_tokens": 5}, "max_tokens", "set prompt or messages"),
    ({"prompt": ""}, "prompt", "at least 1"),
    ({"prompt": "hi", "max_tokens": 0}, "max_tokens", "0"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "robot"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "None"),
    ({"prompt": "hi", "n": 2}, "n", "take it out"),
    ({"prompt": "hi", "environment": "calculator"}, "environment", "plays itself"),
    ({"prompt": "x" * 3000}, "prompt", f"below generation.max_model_len = {LONGEST}"),
    ({"prompt": "hi", "task": {"a": 10**400}}, "task", "does not travel"),
    ({"prompt": "hi", "task": {"a": "\ud800"}}, "task", ""),
]


async def test_what_no_episode_is_opened_for(words: Path) -> None:
    deep: Any = {}
    for _ in range(60):
        deep = {"a": deep}
    async with served(Scripted(words, []), words) as (url, _), httpx2.AsyncClient(base_url=url) as http:
        for body, param, said in [*BAD, ({"prompt": "hi", "task": deep}, "task", "few levels")]:
            answer = await http.post("/episodes", content=json.dumps(body))
            assert answer.status_code == 400, (body, answer.text)
            error = answer.json()["error"]
            assert said in error["message"], (body, error)
            assert error["param"] in (param, None), (body, error)
        unknown = await http.post("/episodes", json={"prompt": "hi", "environment": "helpr"})
        assert unknown.status_code == 404
        assert "did you mean 'helper'" in unknown.json()["error"]["message"]
        assert metrics.OWN._value.get() == 0


async def test_rewards_that_no_turn_has(words: Path) -> None:
    async with opened(Scripted(words, ["ab"]), words) as (http, episode):
        path = f"/episodes/{episode['id']}/reward"
        await ask(episode, list(episode["messages"]))
        for body, status, code in (
            ({"turn": 1, "reward": 1}, 400, "invalid_value"),
            ({"turn": -1, "reward": 1}, 400, "invalid_value"),
            ({"turn": 0}, 400, "invalid_value"),
            ({"turn": 0, "reward": True}, 400, "invalid_value"),
            ({"turn": 0.5, "reward": 1}, 400, "invalid_value"),
            ({"turn": 0, "reward": 1, "parts": {"a": 1}}, 400, "invalid_value"),
            ({"turn": 0, "reward": 1, "turn_rewards": [1]}, 400, "invalid_value"),
            ({"turn_rewards": [1, 2]}, 400, "invalid_value"),
            ({"turn_rewards": ["much"]}, 400, "invalid_value"),
            ({"turn_rewards": 1}, 400, "invalid_value"),
        ):
            answer = await http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (body, answer.text)
        for content in (b'{"turn": 0, "reward": NaN}', b'{"turn": 0, "reward": 1e999}', b'{"turn_rewards": [1e999]}'):
            assert (await http.post(path, content=content)).status_code == 400, content
        assert (await http.post(path, json={"turn": 0, "reward": 1e308})).status_code == 200
        twice = await http.post(path, json={"turn": 0, "reward": 1})
        assert (twice.status_code, twice.json()["error"]["code"]) == (409, "turn_rewarded")
        again = await http.post(path, json={"turn_rewards": [1]})
        assert again.json()["error"]["code"] == "turn_rewarded"
        assert (await http.post(path, json={"reward": 2.5})).json()["reward"] == 2.5, "the whole, whatever the turns"
        late = await http.post(path, json={"turn": 0, "reward": 1})
        assert (late.status_code, late.json()["error"]["code"]) == (409, "episode_rewarded")


async def test_rewards_of_turns_that_add_up_to_no_number_leave_the_episode_open(words: Path) -> None:
    async with opened(Scripted(words, ["ab", "ab"]), words) as (http, episode):
        path, messages = f"/episodes/{episode['id']}", list(episode["messages"])
        messages.append({"role": "assistant", "content": await ask(episode, messages)})
        await ask(episode, [*messages, {"role": "user", "content": "Go on."}])
        refused = await http.post(f"{path}/reward", json={"turn_rewards": [1e308, 1e308]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reward")
        assert (await http.get(path)).json()["state"] == "open"
        assert (await http.post(f"{path}/reward", json={"turn_rewards": [1, 2]})).json()["reward"] == 3


async def test_an_episode_may_end_without_a_reward_or_be_late(words: Path) -> None:
    async with opened(Scripted(words, ["ab"]), words, EpisodeLimits(turn_seconds=0.5)) as (http, late):
        ended = (await http.post("/episodes", json={"prompt": "hi"})).json()
        await ask(ended, [{"role": "user", "content": "hi"}])
        assert (await http.post(f"/episodes/{ended['id']}/reward", json={})).json()["reward"] is None
        record = (await http.get(f"/episodes/{ended['id']}")).json()
        assert (record["end"], record["reward"], len(record["segments"])) == ("rewarded", None, 1)
        closed = (await http.post("/episodes", json={"prompt": "hi"})).json()
        assert (await http.delete(f"/episodes/{closed['id']}")).status_code == 200
        assert (await http.get(f"/episodes/{closed['id']}")).json()["end"] == "closed"

        async def is_over() -> bool:
            state: str = (await http.get(f"/episodes/{late['id']}")).json()["state"]
            return state == "ended"

        await until(is_over, 60)
        record = (await http.get(f"/episodes/{late['id']}")).json()
        assert (record["end"], record["turns"]) == ("timed_out", 0)
        assert metrics.OWN._value.get() == 0


async def test_episodes_and_records_are_bounded(words: Path) -> None:
    async with opened(Scripted(words, ["ab"] * 9), words, max_open=2, max_ended=1, max_mb=1) as (http, first):
        second = (await http.post("/episodes", json={"prompt": "hi"})).json()
        full = await http.post("/episodes", json={"prompt": "hi"})
        assert (full.status_code, full.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "records.max_open = 2" in full.json()["error"]["message"]
        removed = metrics.REMOVED.labels("number")._value.get()
        for episode in (first, second):
            assert (await http.delete(f"/episodes/{episode['id']}")).status_code == 200
        gone = await http.get(f"/episodes/{first['id']}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (410, "record_removed")
        assert (await http.get(f"/episodes/{second['id']}")).status_code == 200
        assert metrics.REMOVED.labels("number")._value.get() == removed + 1
        large = {"prompt": "hi", "task": {"a": "x" * 700_000}}
        third, fourth = (await http.post("/episodes", json=large)).json(), await http.post("/episodes", json=large)
        assert (fourth.status_code, fourth.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "records.max_mb = 1" in fourth.json()["error"]["message"]
        assert (await http.get(f"/episodes/{second['id']}")).status_code == 410, "made room for what is open"
        assert (await http.delete(f"/episodes/{third['id']}")).status_code == 200
        fifth = (await http.post("/episodes", json=large)).json()
        assert (await http.get(f"/episodes/{third['id']}")).status_code == 410, "the oldest record made room"
        asked = {"model": "tiny", "messages": QUESTION["messages"], "chat_template_kwargs": {"x": "y" * 400_000}}
        first_turn = await http.post(f"/episodes/{fifth['id']}/v1/chat/completions", json=asked)
        assert first_turn.status_code == 200
        turn = await http.post(f"/episodes/{fifth['id']}/v1/chat/completions", json=asked)
        assert (turn.status_code, turn.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert (await http.delete(f"/episodes/{fifth['id']}")).status_code == 200


async def test_a_record_is_kept_for_so_long(words: Path) -> None:
    async with opened(Scripted(words, []), words, seconds=0.2) as (http, episode):
        path = f"/episodes/{episode['id']}"
        assert (await http.delete(path)).status_code == 200

        async def is_gone() -> bool:
            return (await http.get(path)).status_code != 200

        await until(is_gone, 60)
        answer = await http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "record_removed")
        assert (await http.get("/episodes/forged")).status_code == 404


async def test_rewards_of_turns_reach_the_segments_that_are_trained_on(words: Path) -> None:
    policy = Scripted(words, ["the cat", "a b", "ab"])
    async with served(policy, words) as (url, gateway), httpx2.AsyncClient(base_url=url) as http:
        playing = asyncio.create_task(player(policy, gateway, words).play(prompt(n=1)))
        episode = (await http.post("/episodes")).json()
        path, messages = f"/episodes/{episode['id']}", list(episode["messages"])
        state = (await http.get(path)).json()
        assert (state["state"], state["environment"], state["task"]) == ("open", "helper", {"answer": 42})
        messages.append({"role": "assistant", "content": await ask(episode, messages)})
        assert (await http.post(f"{path}/reward", json={"turn": 0, "reward": 0.25})).status_code == 200
        await ask(episode, [{"role": "user", "content": "Another matter."}])
        assert (await http.post(f"{path}/reward", json={"turn": 1, "reward": 100})).status_code == 200
        await ask(episode, [*messages, {"role": "user", "content": "Go on."}])
        ended = await http.post(f"{path}/reward", json={"turn_rewards": [None, None, 0.5]})
        assert ended.json()["reward"] == 0.75, "without that of the branch that was left"
        group = await playing
        ended = await http.get(path)
        assert (ended.json()["state"], ended.json()["end"]) == ("ended", "rewarded")
        assert "segments" not in ended.json()
    (trajectory,) = group.trajectories
    assert trajectory.score.reward == 0.75
    assert [segment.reward for segment in wire.decode_trajectory(trajectory).turns] == [0.25, 0.5]


async def test_where_a_verifier_judges_turns_have_no_rewards(words: Path) -> None:
    policy = Scripted(words, ["the cat"])
    async with served(policy, words) as (url, gateway), httpx2.AsyncClient(base_url=url) as http:
        playing = asyncio.create_task(player(policy, gateway, words).play(prompt(n=1, verifier="exact")))
        episode = (await http.post("/episodes")).json()
        path = f"/episodes/{episode['id']}/reward"
        await ask(episode, list(episode["messages"]))
        for body in ({"turn": 0, "reward": 1}, {"turn_rewards": [1]}, {"reward": 1}):
            answer = await http.post(path, json=body)
            assert answer.status_code == 400
            assert "a verifier judges" in answer.json()["error"]["message"]
        assert (await http.post(path, json={"reward": None})).json()["reward"] is None
        await playing


@asynccontextmanager
async def called(policy: Scripted, words: Path, **records: Any) -> AsyncIterator[tuple[EnvironmentClient, Gateway]]:
    environments = make_environments({"helper": {"kind": "agent"}})
    async with (
        served(policy, words, records=RecordsSettings(**records)) as (_, gateway),
        environment_server(environments) as (port, servicer),
        EnvironmentClient(f"127.0.0.1:{port}") as client,
    ):
        with pytest.raises(PreconditionError, match=r"environments\.gateway\.enabled"):
            await client.claim_episode()
        servicer.serve_agents(gateway)
        yield client, gateway


async def test_the_same_over_grpc(words: Path) -> None:
    policy = Scripted(words, ["the cat", "It is 42."])
    question = [pb.Message(role=pb.ROLE_USER, content="6 * 7?")]
    async with called(policy, words, max_open=1) as (client, _):
        request = env.OpenEpisodeRequest(messages=question, task=wire.encode_struct({"answer": 42}), max_tokens=40)
        told = await client.open_episode(request)
        assert (list(told.messages), wire.decode_struct(told.task)) == (question, {"answer": 42})
        with pytest.raises(OverloadedError, match="max_open = 1"):
            await client.open_episode(request)
        episode = {"base_url": told.base_url}
        messages: list[Any] = [{"role": "user", "content": "6 * 7?"}]
        messages.append({"role": "assistant", "content": await ask(episode, messages)})
        await client.reward_turn(told.episode_id, 0, 0.25)
        await ask(episode, [*messages, {"role": "user", "content": "Sure?"}])
        state = await client.get_episode(told.episode_id)
        assert (state.end, state.turns, state.episode) == (env.EPISODE_END_UNSPECIFIED, 2, told)
        for turn, reward in ((5, 1.0), (1, float("nan")), (1, float("inf"))):
            with pytest.raises(InvalidInputError, match="turn"):
                await client.reward_turn(told.episode_id, turn, reward)
        with pytest.raises(InvalidInputError, match="parts"):
            await client.reward_episode(told.episode_id, parts={"a": float("nan")})
        with pytest.raises(PreconditionError, match="it counts once"):
            await client.reward_episode(told.episode_id, turn_rewards={0: 1.0})
        assert await client.reward_episode(told.episode_id, parts={"correct": 1.0}, turn_rewards={1: 0.5}) == 0.75
        with pytest.raises(PreconditionError, match="has its reward"):
            await client.reward_episode(told.episode_id, 1.0)
        with pytest.raises(PreconditionError, match="has ended"):
            await client.close_episode(told.episode_id)
        record = await client.get_episode(told.episode_id)
    assert record.end == env.EPISODE_END_REWARDED
    assert list(record.prompt_token_ids) == policy.asked[0][0]
    trajectory = wire.decode_trajectory(record.trajectory)
    assert [segment.reward for segment in trajectory.turns] == [0.25, 0.5]
    assert trajectory.completion.token_ids.tolist() == [token for each in policy.said for token in each.token_ids]
    assert trajectory.completion.logprobs.tolist() == [value for each in policy.said for value in each.logprobs]
    assert (record.trajectory.score.reward, dict(record.trajectory.score.parts)) == (0.75, {"correct": 1.0})


async def test_a_group_is_claimed_and_rewarded_over_grpc(words: Path) -> None:
    policy = Scripted(words, ["the cat"])
    async with called(policy, words) as (client, gateway):
        assert await client.claim_episode("helper", 0.0) is None
        with pytest.raises(InvalidInputError, match="wait_seconds is 601"):
            await client.claim_episode("helper", 601.0)
        playing = asyncio.create_task(player(policy, gateway, words).play(prompt(n=1)))
        told = await client.claim_episode("helper")
        assert told is not None
        assert told.environment == "helper"
        await ask({"base_url": told.base_url}, [{"role": "user", "content": "What is 6 times 7?"}])
        assert await client.reward_episode(told.episode_id, 1.0) == 1.0
        assert (await playing).trajectories[0].score.reward == 1.0


async def test_grpc_says_what_is_wrong(words: Path) -> None:
    async with called(Scripted(words, []), words) as (client, _):
        for request, said in (
            (env.OpenEpisodeRequest(), "set one of the two"),
            (env.OpenEpisodeRequest(text="hi", max_tokens=0), "max_tokens is 0"),
            (env.OpenEpisodeRequest(text="x" * 3000), "max_model_len"),
            (env.OpenEpisodeRequest(messages=[pb.Message(content="x")]), "role"),
        ):
            with pytest.raises(InvalidInputError, match=said) as refused:
                await client.open_episode(request)
            assert refused.value.status == "INVALID_ARGUMENT"
        with pytest.raises(NotFoundError, match="did you mean 'helper'"):
            await client.open_episode(env.OpenEpisodeRequest(text="hi", environment="helpr"))
        for call in (client.get_episode("forged"), client.close_episode("forged"), client.reward_turn("forged", 0, 1)):
            with pytest.raises(NotFoundError):
                await call
