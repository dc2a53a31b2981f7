"""A maze that is walked a step a turn, by what can be seen from where one stands."""

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from routershift.trajectory import Role
from services.environments.base import (
    Action,
    Environment,
    EnvironmentSettings,
    Message,
    MessagesObservation,
    Step,
    TextObservation,
)
from shared.errors import InvalidInputError

Cell = tuple[int, int]  # column from the west, row from the north

MOVES = {"N": (0, -1), "E": (1, 0), "S": (0, 1), "W": (-1, 0)}
_NAMES = {"NORTH": "N", "EAST": "E", "SOUTH": "S", "WEST": "W"} | {move: move for move in MOVES}
_LARGEST = 32
_READ = 2000  # characters of a turn, from its end, in which a move is looked for


class MazeSettings(EnvironmentSettings):
    """How large, how long, and how it is told."""

    size: int = Field(4, ge=2, le=_LARGEST, description="columns and rows, where the task does not say")
    moves: int | None = Field(None, ge=1, description="turns in an episode; default: four times the shortest way")
    form: Literal["text", "messages"] = Field(
        "text",
        description='"text": what is seen comes as text after the turn; "messages": as messages of the user, for '
        "models with a chat template",
    )


class MazeEnvironment(Environment):
    """From the north-west corner to the south-east one, of a maze with one way between any two cells.

    A task may have its `size` and which `maze` of that size it is: an integer, from which the maze follows, so that
    other mazes can be held out. Without it, the maze follows from the seed.

    The last word of a turn that is a direction (N, E, S, W, or its name) is the move; a turn without one, or into a
    wall, changes nothing. Each turn earns the share of the shortest way by which it comes nearer to the goal, so an
    episode that reaches it earns 1, and walking in circles nothing.
    """

    name = "maze"
    version = "1"
    description = "a maze to walk, one step a turn; the turns of an episode that reaches the goal earn 1 together"
    task_schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "size": {"type": "integer", "minimum": 2, "maximum": _LARGEST},
            "maze": {"type": "integer"},
        },
    }
    Settings = MazeSettings

    def __init__(self, settings: EnvironmentSettings) -> None:
        super().__init__(settings)
        self._settings = settings if isinstance(settings, MazeSettings) else MazeSettings()
        self._at: Cell = (0, 0)
        self._turns = 0

    async def reset(self, task: Mapping[str, Any], seed: int) -> TextObservation | MessagesObservation:
        size = task.get("size", self._settings.size)
        if isinstance(size, bool) or not isinstance(size, int) or not 2 <= size <= _LARGEST:
            raise InvalidInputError(f"reference.size is {size!r}; allowed: 2 to {_LARGEST}")
        number = task.get("maze", seed)
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidInputError(f"reference.maze is {number!r}; expected an integer, or none for any maze")
        self._open = carve(size, random.Random(number))  # noqa: S311  # a maze, no secret
        self._goal = (size - 1, size - 1)
        self._distances = distances(self._open, self._goal)
        self._shortest = self._distances[self._at]
        self._most = self._settings.moves or 4 * self._shortest
        return self._seen("")

    async def step(self, action: Action) -> Step:
        self._turns += 1
        before, move = self._distances[self._at], move_in(action.text)
        said = "" if move else "no move: write N, E, S or W. "
        if move and move not in self._open[self._at]:
            said = f"a wall is {move} of here. "
        elif move:
            self._at = _next(self._at, move)
        reached = self._at == self._goal
        return Step(
            None if reached else self._seen(said),
            reward=(before - self._distances[self._at]) / self._shortest,
            is_done=reached or self._turns == self._most,
            parts={"correct": float(reached), "moves": float(self._turns)},
        )

    def _seen(self, said: str) -> TextObservation | MessagesObservation:
        column, row = self._at
        ways = " ".join(self._open[self._at])
        text = f"{said}open: {ways}; goal: {self._goal[0] - column} E {self._goal[1] - row} S"
        if self._settings.form == "messages":
            return MessagesObservation((Message(Role.USER, text),))
        return TextObservation(f"\n{text}\n", Role.USER)


def carve(size: int, rng: random.Random) -> dict[Cell, Sequence[str]]:
    """The open directions of each cell, in the order N, E, S, W; a walk at random that turns back at dead ends."""
    found: dict[Cell, set[str]] = {(column, row): set() for column in range(size) for row in range(size)}
    seen: set[Cell] = {(0, 0)}
    path: list[Cell] = [(0, 0)]
    while path:
        here = path[-1]
        ways = [move for move in MOVES if (there := _next(here, move)) in found and there not in seen]
        if not ways:
            path.pop()
            continue
        move = rng.choice(ways)
        there = _next(here, move)
        found[here].add(move)
        found[there].add(_back(move))
        seen.add(there)
        path.append(there)
    return {cell: [move for move in MOVES if move in ways] for cell, ways in found.items()}


def distances(ways: Mapping[Cell, Sequence[str]], goal: Cell) -> dict[Cell, int]:
    """Moves from each cell to the goal."""
    found = {goal: 0}
    todo = deque([goal])
    while todo:
        here = todo.popleft()
        for move in ways[here]:
            if (there := _next(here, move)) not in found:
                found[there] = found[here] + 1
                todo.append(there)
    return found


def move_in(text: str) -> str | None:
    """The last word that is a direction, as N, E, S or W."""
    words = "".join(c if c.isalpha() else " " for c in text[-_READ:].upper()).split()
    return next((_NAMES[word] for word in reversed(words) if word in _NAMES), None)


def _next(cell: Cell, move: str) -> Cell:
    return cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]


def _back(move: str) -> str:
    return {"N": "S", "S": "N", "E": "W", "W": "E"}[move]
