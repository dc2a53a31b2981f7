"""Environments of other packages play episodes from their own Python, as the page about them shows."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from routershift import wire
from routershift.trajectory import FinishReason, Trajectory
from routershift.v1 import trajectory_pb2 as pb
from services.environments.playing.failures import EpisodeFailedError
from services.environments.playing.limits import EpisodeLimits
from tests.support import ecosystem
from tests.support.gateway import Scripted, player, prompt, save_tokenizer, served

pytestmark = ecosystem.MARKS


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tiny"
    save_tokenizer(folder)
    return folder


@contextlib.asynccontextmanager
async def running(folder: Path, *command: str | Path, **variables: str) -> AsyncIterator[Path]:
    """A child for as long as the block lasts; its output is in the file."""
    output = folder / f"{Path(command[0]).name}.txt"
    with output.open("wb") as file:
        child = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdout=file, stderr=file, env={**os.environ, **variables}
        )
    try:
        yield output
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


async def play(
    policy: Scripted, words: Path, folder: Path, task: dict[str, int], limits: EpisodeLimits, *command: str | Path
) -> pb.TrajectoryGroup:
    """The group of two episodes that the command plays, one after the other."""
    asked = prompt(n=2)
    asked.reference.CopyFrom(wire.encode_struct(task))
    async with served(policy, words, limits=limits) as (url, gateway):
        variables = {"ROUTERSHIFT_GATEWAY": url, "ROUTERSHIFT_ENVIRONMENT": "helper"}
        async with running(folder, *command, **variables) as output, asyncio.timeout(ecosystem.SECONDS):
            try:
                return await player(policy, gateway, words, limits, claim_seconds=ecosystem.SECONDS).play(asked)
            except EpisodeFailedError as error:
                said = output.read_text()
                if "failed to prepare uv script" in said:
                    pytest.skip(f"verifiers cannot install its program here: {said.strip().splitlines()[-1]}")
                raise AssertionError(said) from error


def assert_exact(policy: Scripted, group: pb.TrajectoryGroup, sample: int, trajectory: Trajectory) -> None:
    """An episode of two turns: what was sampled is what is trained, after what the model read."""
    turns = policy.said[2 * sample : 2 * sample + 2]
    assert trajectory.completion.token_ids.tolist() == [token for turn in turns for token in turn.token_ids]
    whole = [*group.prompt.token_ids, *trajectory.token_ids.tolist()]
    assert whole == [*policy.asked[2 * sample + 1][0], *turns[1].token_ids.tolist()]


async def test_an_environment_of_verifiers_is_recorded_with_its_rewards(words: Path, tmp_path: Path) -> None:
    agent = ecosystem.verifiers()
    ecosystem.write_page(tmp_path)
    policy = Scripted(words, ["I say [1].", "[8]", "[20]", "[4] " + "so " * 70])
    limits = EpisodeLimits(turn_seconds=ecosystem.SECONDS, episode_seconds=ecosystem.SECONDS)
    command = (agent, "verifiers_agent.py", "guess", "player")
    group = await play(policy, words, tmp_path, {"task": 3}, limits, *command)
    assert "You are playing Guess The Number." in policy.tokens.decode(list(group.prompt.token_ids))
    won, cut = (wire.decode_trajectory(trajectory) for trajectory in group.trajectories)
    said = [[segment.text for segment in each.segments if segment.is_sampled] for each in (won, cut)]
    assert said == [["I say [1].", "[8]"], ["[20]", "[4] " + "so " * 70]]
    hints = [policy.tokens.decode(trajectory.given_ids.tolist()) for trajectory in (won, cut)]
    assert "The target number is higher." in hints[0]
    assert "The target number is lower." in hints[1]
    for sample, trajectory in enumerate((won, cut)):
        assert_exact(policy, group, sample, trajectory)
    assert [trajectory.score.reward for trajectory in group.trajectories] == [1.0, 0.0]
    assert [dict(trajectory.score.parts) for trajectory in group.trajectories] == [
        {"game_reward": 1.0, "correct": 1.0},
        {"game_reward": 0.0, "correct": 0.0},
    ]
    assert won.completion.finish_reason is FinishReason.STOP
    assert cut.completion.finish_reason is FinishReason.LENGTH, "the third guess had no room"


async def test_an_environment_of_openenv_is_recorded_with_its_rewards(words: Path, tmp_path: Path) -> None:
    agent = ecosystem.openenv()
    ecosystem.write_page(tmp_path)
    policy = Scripted(words, ["four", "so long a message", "ab", "so " * 70])
    limits = EpisodeLimits(turns=3, turn_seconds=ecosystem.SECONDS, episode_seconds=ecosystem.SECONDS)
    with ecosystem.echo_server(agent, tmp_path) as url:
        command = (agent, "openenv_agent.py", url, "message", "2")
        group = await play(policy, words, tmp_path, {"seed": 1}, limits, *command)
    assert [trajectory.score.reward for trajectory in group.trajectories] == pytest.approx([1.4, 1.2])
    for sample, message in enumerate(group.trajectories):
        trajectory = wire.decode_trajectory(message)
        assert_exact(policy, group, sample, trajectory)
        assert [segment.is_sampled for segment in trajectory.segments] == [True, False, True]
        echo = policy.tokens.decode(trajectory.given_ids.tolist())
        assert f'"echoed_message": "{policy.said[2 * sample].text}"' in echo
