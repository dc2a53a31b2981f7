"""Makes the start model of the maze recipe: a tiny Qwen3-MoE that has seen others walk, and walks half at random.

    python -m deploy.recipes.maze.make_model --seed 0 --out DIR    # in the repository

Its teacher keeps a hand on the wall, which leads through every maze, but takes every second step at random, and at
times into a wall. So the model reaches the goal in time at about every third maze, and reinforcement learning has to
find out which of the two habits of its teacher pays.
"""

import asyncio
import random

import numpy as np

from deploy.recipes.maze.make_rows import SIZE
from deploy.recipes.tiny_model import TEACHING_STREAM, Batches, Example, build_tokenizer, in_lengths, make
from routershift.trajectory import FinishReason
from services.environments.base import Action, Observation, TextObservation
from services.environments.kinds.maze import MOVES, MazeEnvironment, MazeSettings

PROMPT = "walk"
TURNS = 16  # of an episode, as the recipe has it
MAX_EPISODE_TOKENS = 2 * TURNS  # a direction and <eos> in each turn
LONGEST = 256  # tokens of prompt, turns, and what is seen in between
SYMBOLS = (
    PROMPT, "\n", "\nopen:", "open:", "; goal:", "\na wall is ", " of here. ", "\nno move: write N, E, S or W. ",
    *MOVES, *(f" {move}" for move in MOVES), *(f" {number}" for number in range(SIZE)),
)  # fmt: skip
_CLOCKWISE = "NESW"
_STRAY_SHARE, _BLIND_SHARE = 0.5, 0.03  # of its steps: at random where a way is open, and in any direction


async def teach(number: int, rng: random.Random) -> Example:
    """The prompt, then by turns what is seen and how the teacher goes on, as the environment tells it."""
    environment = MazeEnvironment(MazeSettings(size=SIZE, moves=TURNS))
    seen = _text(await environment.reset({"maze": number}, 0))
    example: Example = (PROMPT + seen,)
    heading = "E"
    while True:
        ways = seen.partition("open:")[2].partition(";")[0].split()
        if (drawn := rng.random()) < _BLIND_SHARE:
            move = rng.choice(_CLOCKWISE)
        elif drawn < _BLIND_SHARE + _STRAY_SHARE:
            move = rng.choice(ways)
        else:
            move = next(move for move in _left_first(heading) if move in ways)
        heading = move if move in ways else heading
        step = await environment.step(Action(move, FinishReason.STOP))
        if step.is_done:
            return (*example, move)
        seen = _text(step.observation)
        example += (f"{move}<eos>", seen)


def _text(observation: Observation | None) -> str:
    return observation.text if isinstance(observation, TextObservation) else ""


def _left_first(heading: str) -> list[str]:
    """The directions from the left hand to behind."""
    at = _CLOCKWISE.index(heading)
    return [_CLOCKWISE[(at + turn) % len(_CLOCKWISE)] for turn in (3, 0, 1, 2)]


def main() -> None:
    tokenizer = build_tokenizer(SYMBOLS, LONGEST)

    def batches(seed: int, steps: int, batch: int) -> Batches:
        def draw(index: int, share: float, rng: np.random.Generator) -> Example:
            own = random.Random(int(rng.integers(1 << 63)))  # noqa: S311
            return asyncio.run(teach(TEACHING_STREAM * (seed + 1) + index, own))

        return in_lengths(tokenizer, draw, seed, steps, batch)

    make("maze", tokenizer, batches, MAX_EPISODE_TOKENS, steps=600, batch=32)


if __name__ == "__main__":
    main()
