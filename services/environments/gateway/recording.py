"""The turns of one episode as an agent asked for them: a tree, as it may begin again from any point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from routershift.trajectory import Completion, FinishReason, Role, Trajectory
from services.environments.playing.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Request:
    """What a turn was asked with, for the question whether the next one goes on from it."""

    messages: tuple[Mapping[str, Any], ...] = ()  # as templates read them; empty for a text completion
    tools: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, Any] | None = None  # of the template


@dataclass(frozen=True, slots=True)
class Asked:
    """A turn before it is sampled."""

    parent: "Node | None"  # the turn that it goes on from
    given: tuple[int, ...]  # token ids that came since
    role: Role
    text: str
    request: Request

    @property
    def token_ids(self) -> list[int]:
        """All that the turn is sampled from."""
        return [*(self.parent.token_ids if self.parent else ()), *self.given]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A turn that was sampled."""

    asked: Asked
    completion: Completion
    messages: tuple[Mapping[str, Any], ...]  # those of the request, and the answer
    token_ids: tuple[int, ...]  # all until here

    @property
    def path(self) -> list["Node"]:
        """From the first turn to this one."""
        turns, node = [self], self.asked.parent
        while node is not None:
            turns.append(node)
            node = node.asked.parent
        return turns[::-1]

    @property
    def sampled_tokens(self) -> int:
        return sum(node.completion.token_ids.size for node in self.path)


class Recording:
    """All turns of an episode. The last one and those that it goes on from are trained on."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._rewards: dict[Node, float] = {}

    @property
    def turns(self) -> int:
        return len(self._nodes)

    def has_reward(self, turn: int) -> bool:
        return self._nodes[turn] in self._rewards

    def earned(self, more: Mapping[int, float]) -> float | None:
        """The sum of what the turns that are trained on have earned; None where none has a reward.

        Args:
            more: rewards of turns that have none yet, by their numbers.
        """
        rewards = self._rewards | {self._nodes[turn]: reward for turn, reward in more.items()}
        earned = [rewards[node] for node in self._path if node in rewards]
        return sum(earned) if earned else None

    def reward_turns(self, rewards: Mapping[int, float]) -> None:
        """Args: rewards: of turns that have none yet, by their numbers."""
        self._rewards |= {self._nodes[turn]: reward for turn, reward in rewards.items()}

    @property
    def branches(self) -> int:
        """How often a turn did not go on from the one before it."""
        return sum(node.asked.parent is not before for before, node in zip(self._nodes, self._nodes[1:], strict=False))

    @property
    def left_out(self) -> int:
        """Turns that are not trained on."""
        return len(self._nodes) - len(self._path)

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the first request of what is trained on."""
        return self._path[0].asked.given

    @property
    def _path(self) -> list[Node]:
        """The turns that are trained on."""
        return self._nodes[-1].path if self._nodes else []

    def followed_by(self, request: Request) -> Node | None:
        """The turn that a conversation goes on from: that with most of its messages; of several, the last."""
        found: Node | None = None
        for node in self._nodes:
            if not node.messages or (request.tools, request.variables) != (
                node.asked.request.tools,
                node.asked.request.variables,
            ):
                continue
            length = len(node.messages)
            if len(request.messages) > length and _same(request.messages[:length], node.messages):
                found = node if found is None or length >= len(found.messages) else found
        return found

    def followed_by_ids(self, token_ids: Sequence[int]) -> Node | None:
        """The turn that these token ids go on from: the longest one, of several the last."""
        found: Node | None = None
        whole = tuple(token_ids)
        for node in self._nodes:
            if whole[: len(node.token_ids)] == node.token_ids:
                found = node if found is None or len(node.token_ids) >= len(found.token_ids) else found
        return found

    def add(self, asked: Asked, completion: Completion, answer: Mapping[str, Any] | None) -> None:
        """Args: answer: the assistant's message as templates read it; None for a text completion."""
        messages = (*asked.request.messages, answer) if answer is not None else ()
        ids = (*asked.token_ids, *completion.token_ids.tolist())
        self._nodes.append(Node(asked, completion, messages, ids))

    def trajectory(self, prompt: Sequence[int], sample: int, finish_reason: FinishReason | None) -> Trajectory:
        """What is trained on.

        Args:
            prompt: token ids with which the first request begins; the rest of that is given.
            sample: index in the group.
            finish_reason: default: that of the last turn.

        Raises:
            CorruptDataError: there is no turn.
        """
        transcript = Transcript(prompt)
        for i, node in enumerate(self._path):
            given = node.asked.given[len(prompt) :] if i == 0 else node.asked.given
            transcript.add_given(list(given), node.asked.role, node.asked.text)
            transcript.add_turn(node.completion)
            if (reward := self._rewards.get(node)) is not None:
                transcript.reward_turn(reward)
        return transcript.trajectory(sample, finish_reason)


def _same(messages: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> bool:
    return all(_said(a) == _said(b) for a, b in zip(messages, known, strict=True))


def _said(message: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a message what it is; clients leave out or add the rest."""
    calls = [(call["id"], call["function"]) for call in message.get("tool_calls", ())]
    return message["role"], message["content"], calls, message.get("tool_call_id"), message.get("name")
