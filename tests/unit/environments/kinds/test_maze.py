"""The maze: one way between any two cells, the same for all episodes of a seed, and rewards that tell progress."""

import asyncio
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routershift.trajectory import FinishReason
from services.environments.base import Action, MessagesObservation, Observation, Step, TextObservation
from services.environments.kinds.maze import MazeEnvironment, MazeSettings, carve, distances, move_in
from shared.errors import InvalidInputError


def made(seed: int, **changes: object) -> tuple[MazeEnvironment, str]:
    maze = MazeEnvironment(MazeSettings.model_validate(changes))
    return maze, text_of(asyncio.run(maze.reset({}, seed)))


def text_of(observation: Observation | None) -> str:
    assert isinstance(observation, TextObservation)
    return observation.text


def walk(maze: MazeEnvironment, said: str) -> Step:
    return asyncio.run(maze.step(Action(said, FinishReason.STOP)))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(0, 1 << 63))
def test_there_is_one_way_between_any_two_cells(size: int, seed: int) -> None:
    ways = carve(size, random.Random(seed))
    assert sum(map(len, ways.values())) == 2 * (size * size - 1), "a tree"
    assert len(distances(ways, (size - 1, size - 1))) == size * size, "all of it can be reached"


def solve(maze: MazeEnvironment, seen: str) -> list[Step]:
    """With a hand on the wall, by what is seen alone."""
    steps: list[Step] = []
    heading = "E"
    while not (steps and steps[-1].is_done):
        found = re.search("open: ([NESW ]+);", seen)
        assert found is not None
        order = [("NESW" * 3)[("NESW".index(heading) + turn) % 4] for turn in (3, 0, 1, 2)]
        heading = next(move for move in order if move in found[1].split())
        steps.append(walk(maze, f"I go {heading}."))
        if steps[-1].observation is not None:
            seen = text_of(steps[-1].observation)
    return steps


@pytest.mark.parametrize("seed", range(5))
def test_an_episode_that_reaches_the_goal_earns_one(seed: int) -> None:
    steps = solve(*made(seed, moves=1000))
    assert sum(step.reward or 0.0 for step in steps) == pytest.approx(1.0)
    assert steps[-1].parts == {"correct": 1.0, "moves": float(len(steps))}
    assert all(step.parts["correct"] == 0.0 for step in steps[:-1])


def test_walls_and_words_that_are_no_move_change_nothing() -> None:
    maze, seen = made(1, moves=6)
    closed = next(move for move in "NESW" if move not in seen.split(";")[0].split()[1:])
    steps = [walk(maze, said) for said in ("", "up?", closed, "x" * 10_000, "\ud800", "n0rth")]
    assert [step.reward for step in steps] == [0.0] * 6
    assert f"a wall is {closed} of here. " in text_of(steps[2].observation)
    assert "no move: write N, E, S or W. " in text_of(steps[0].observation)
    assert [step.is_done for step in steps] == [False] * 5 + [True], "its moves are used up"
    assert steps[-1].parts["correct"] == 0.0


def test_walking_in_circles_earns_nothing() -> None:
    maze, seen = made(1, moves=100)
    way = seen.split(";")[0].split()[1]
    back = {"N": "S", "S": "N", "E": "W", "W": "E"}[way]
    assert sum((walk(maze, way).reward or 0.0) + (walk(maze, back).reward or 0.0) for _ in range(20)) == 0.0


def test_one_seed_is_one_maze() -> None:
    assert made(5, size=8)[0]._open == made(5, size=8)[0]._open
    assert made(5, size=8)[0]._open != made(6, size=8)[0]._open


def test_a_task_may_say_which_maze_it_is() -> None:
    """Whatever the seed of the episode: so other mazes can be held out."""
    named = []
    for seed in (1, 2):
        maze = MazeEnvironment(MazeSettings(size=8))
        asyncio.run(maze.reset({"maze": 5}, seed))
        named.append(maze._open)
    assert named[0] == named[1] == made(5, size=8)[0]._open


@pytest.mark.parametrize("number", ["5", True, 3.5, None, [1]])
def test_a_maze_that_is_no_number_is_bad_input(number: object) -> None:
    with pytest.raises(InvalidInputError, match=r"reference\.maze is .*; expected an integer"):
        asyncio.run(MazeEnvironment(MazeSettings()).reset({"maze": number}, 0))


@pytest.mark.parametrize("size", [1, 33, "4", True, 3.5, None])
def test_a_task_of_another_size_is_bad_input(size: object) -> None:
    with pytest.raises(InvalidInputError, match=r"reference\.size is .*; allowed: 2 to 32"):
        asyncio.run(MazeEnvironment(MazeSettings()).reset({"size": size}, 0))


def test_it_may_be_told_in_messages() -> None:
    maze = MazeEnvironment(MazeSettings(form="messages"))
    first = asyncio.run(maze.reset({"size": 3}, 0))
    assert isinstance(first, MessagesObservation)
    assert first.messages[0].content.endswith("goal: 2 E 2 S")


@pytest.mark.parametrize(
    ("text", "move"),
    [("N", "N"), ("I go north, then EAST.", "E"), ("s", "S"), ("<think>N or S</think> w!", "W"), ("nest", None)],
)
def test_the_last_direction_is_the_move(text: str, move: str | None) -> None:
    assert move_in(text) == move
