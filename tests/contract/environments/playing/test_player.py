"""Episodes with the generation service: real weights, real routes, over gRPC."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.environments.base import Action, Step, TextObservation
from services.environments.playing.limits import EpisodeLimits
from services.environments.playing.player import Player
from services.environments.playing.rendering import Rendering
from services.environments.registry import make_environments
from services.environments.tool_calls.registry import make_parser
from shared.clients import GenerationClient
from shared.streams.run import Run
from tests.support.episodes import player, prompt, scripted
from tests.support.generation import PROMPT, generation_server, save_chat_model
from tests.support.models import TOP_K, save_model
from tests.support.reference import Reference


async def answers(action: Action, turn: int) -> Step:
    if turn < 2:
        return Step(TextObservation("42,"), reward=0.25)
    return Step(reward=1.0, is_done=True, parts={"correct": 1.0})


async def test_every_sampled_token_has_the_log_prob_and_the_routes_of_its_place(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    reference = Reference(model)
    kind = scripted(answers, stop=("?",))
    async with generation_server(run, tmp_path, model) as address, GenerationClient(address) as client:
        asked = player(client, kind, AutoTokenizer.from_pretrained(model))
        groups = await asyncio.gather(*(asked.play(prompt(n=3, seed=5, max_tokens=30)) for _ in range(2)))
    first, again = ([wire.decode_trajectory(t) for t in group.trajectories] for group in groups)
    prompt_ids = list(groups[0].prompt.token_ids)
    several = 0
    for message, trajectory, same in zip(groups[0].trajectories, first, again, strict=True):
        assert trajectory.token_ids.tolist() == same.token_ids.tolist(), "one seed, one episode"
        several += len(trajectory.segments) > 1
        trace = trajectory.completion.router_trace
        assert trace is not None
        assert trace.expert_ids.shape[0] == trajectory.completion.token_ids.size == trajectory.completion.logprobs.size
        ids = trajectory.token_ids
        logits, routers = reference.forward(prompt_ids, ids.tolist())
        at = trajectory.sampled_at
        logprobs = (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))[at, ids[at]]
        assert np.abs(logprobs - trajectory.completion.logprobs).max() < 1e-3
        assert routers is not None
        chosen = np.sort(np.argsort(-routers[at], axis=-1)[..., :TOP_K], axis=-1)
        assert (chosen == np.sort(trace.expert_ids, axis=-1)).mean() > 0.99
        assert message.score.outcome == pb.OUTCOME_SCORED
    assert several, "an episode of several turns"
    assert kind.open == 0


@pytest.mark.parametrize(
    ("table", "verifier", "task"),
    [
        ({"kind": "calculator", "checks": 2}, "countdown", {"numbers": [3, 7, 5], "target": 26}),
        ({"kind": "maze", "size": 2, "moves": 3}, "", {}),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else None,
)
async def test_shipped_environments_play_with_a_real_model(
    run: Run, tmp_path: Path, table: dict[str, Any], verifier: str, task: dict[str, Any]
) -> None:
    model = save_model(tmp_path / "model")
    async with generation_server(run, tmp_path, model) as address, GenerationClient(address) as client:
        asked = Player(
            client,
            make_environments({"mine": table}),
            Rendering.of(model),
            EpisodeLimits(),
            max_model_len=256,
            max_tokens=100,
        )
        played = prompt(PROMPT, n=8, environment="mine", task=task, verifier=verifier, seed=1)
        group = await asked.play(played)
    trajectories = [wire.decode_trajectory(message) for message in group.trajectories]
    assert len(trajectories) == 8
    assert max(trajectory.completion.token_ids.size for trajectory in trajectories) <= 100
    assert any(sum(segment.is_sampled for segment in t.segments) > 1 for t in trajectories), "several turns"
    for message in group.trajectories:
        assert message.HasField("score") == (not verifier)
        if not verifier:
            assert (message.score.verifier, set(message.score.parts)) == ("mine", {"correct", "moves"})


async def test_tools_stand_in_the_prompt_of_a_real_model(run: Run, tmp_path: Path) -> None:
    """One that never calls them: its first turn is its answer."""
    model = save_chat_model(tmp_path / "model")
    rendering = Rendering.of(model)
    async with generation_server(run, tmp_path, model) as address, GenerationClient(address) as client:
        asked = Player(
            client,
            make_environments({}),
            rendering,
            EpisodeLimits(),
            max_model_len=256,
            max_tokens=20,
            parser=make_parser("hermes", None),
        )
        played = prompt("", n=4, environment="python", verifier="exact", task={"answer": "42"}, seed=1)
        played.messages.add(role=pb.ROLE_USER, content="3,7:10")
        group = await asked.play(played)
    assert rendering.decode(list(group.prompt.token_ids)) == "<eos>3,7:10="
    assert [len(trajectory.segments) for trajectory in group.trajectories] == [0] * 4
    assert not any(trajectory.HasField("score") for trajectory in group.trajectories)
