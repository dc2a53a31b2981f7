"""One episode: the model and an environment answer each other, in token ids."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Unpack

from routershift.client.requests import Prompt, Sampling
from routershift.trajectory import Completion, FinishReason, Role, Trajectory
from services.environments.base import (
    Action,
    Environment,
    MessagesObservation,
    Observation,
    Step,
    TextObservation,
    ToolCall,
)
from services.environments.playing.answers import checked_observation, checked_step
from services.environments.playing.calls import ask
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.playing.limits import EpisodeLimits
from services.environments.playing.rendering import Rendering, as_dict
from services.environments.playing.transcript import Transcript
from services.environments.tool_calls.base import Parser
from shared.errors import CorruptDataError, InvalidInputError

_CORRECT = "correct"  # the part that says whether an episode was a success


class Policy(Protocol):
    """What samples: `shared.clients.GenerationClient` is one."""

    async def generate(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        """n complete responses, in order of index. What it raises ends the group."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """How the model plays: the same in all episodes of a group."""

    policy: Policy
    rendering: Rendering
    parser: Parser | None  # of calls; None where the environment has no tools
    limits: EpisodeLimits
    max_model_len: int  # tokens of prompt and trajectory together
    max_tokens: int  # that the model samples in all turns of an episode together
    sampling: Sampling  # of every turn, without n, seed and max_tokens
    seed: int | None  # of the sampling of the group
    return_router: bool
    keeps_rewards: bool  # False where a verifier judges the episode


@dataclass(frozen=True, slots=True)
class Played:
    """An episode that has ended."""

    trajectory: Trajectory
    reward: float  # the sum of those of its turns
    parts: Mapping[str, float]
    seconds: float


class Episode:
    """Plays one episode with an environment that was made for it."""

    def __init__(self, name: str, environment: Environment, rules: Rules, sample: int) -> None:
        """Args: name: of the environment in the recipe; sample: index of the episode in its group."""
        self._name = name
        self._environment = environment
        self._rules = rules
        self._sample = sample
        self._tools = list(environment.tools) if rules.parser else []
        self._messages: list[dict[str, Any]] = []
        self._calls = 0

    async def begin(self, task: Mapping[str, Any], seed: int) -> Observation | None:
        """What the environment says before the first turn.

        Raises:
            InvalidInputError: the task is none of the environment.
            EpisodeFailedError: the environment failed.
        """
        answer = await self._ask("reset", lambda: self._environment.reset(task, seed))
        with self._faults("reset"):
            return checked_observation(answer, self._rules.limits.observation_tokens, self._rules.rendering.vocab_size)

    async def play(
        self, prompt: Sequence[int], messages: Sequence[Mapping[str, Any]], observation: Observation | None
    ) -> Played:
        """Plays to the end.

        Args:
            prompt: token ids.
            messages: those of the conversation that the prompt was made of; empty where it was text or ids.
            observation: what is read before the first turn, in text or ids.

        Raises:
            InvalidInputError: prompt and first observation leave the model no room for a token.
            EpisodeFailedError: the environment failed, or a turn was aborted too often.
            RouterShiftError: the policy cannot answer.
        """
        began = time.perf_counter()
        rules, transcript = self._rules, Transcript(prompt)
        self._messages = [dict(message) for message in messages]
        if observation is not None:
            await self._observe(transcript, observation, sampled=[], calls=[])
        if (length := len(transcript.token_ids)) >= rules.max_model_len:
            raise InvalidInputError(
                f"prompt and first observation of environment {self._name} are {length} tokens long; allowed: below "
                f"the model's {rules.max_model_len}; shorten them or raise generation.max_model_len"
            )
        rewards: list[float] = []
        step = Step()
        finish_reason: FinishReason | None = FinishReason.LENGTH  # unless the environment ends it
        for turn in range(rules.limits.turns):
            room = min(rules.max_tokens - transcript.sampled_tokens, rules.max_model_len - len(transcript.token_ids))
            if room < 1:
                break
            completion = await self._sample_turn(transcript.token_ids, turn, room)
            transcript.add_turn(completion)
            calls = self._calls_of(completion)
            step = await self._step(completion, calls)
            if step.reward is not None:
                rewards.append(step.reward)
                if rules.keeps_rewards:
                    transcript.reward_turn(step.reward)
            if step.is_done or step.observation is None:
                finish_reason = None  # that of the last turn
                break
            self._messages.append({"role": str(Role.ASSISTANT), "content": completion.text})
            sampled: list[int] = completion.token_ids.tolist()
            await self._observe(transcript, step.observation, sampled, [call.name for call in calls if call.name])
        if finish_reason is None and not rewards and rules.keeps_rewards:
            raise EpisodeFailedError(
                f"environment {self._name}: an episode ended and none of its {transcript.turns} turns was rewarded; "
                "expected a reward with the last one, or rewards = False and a verifier"
            )
        reward = sum(rewards)
        if not math.isfinite(reward):
            raise EpisodeFailedError(f"environment {self._name}: the rewards of an episode add up to {reward}")
        trajectory = transcript.trajectory(self._sample, finish_reason)
        # An environment may say only at the end whether it was a success. One that was cut short of it was none.
        cut = {_CORRECT: 0.0} if finish_reason is FinishReason.LENGTH and rules.keeps_rewards else {}
        return Played(trajectory, reward, {**cut, **step.parts}, time.perf_counter() - began)

    async def close(self) -> None:
        """Frees what the environment made. Raises EpisodeFailedError."""
        await self._ask("close", self._environment.close)

    async def _sample_turn(self, token_ids: list[int], turn: int, room: int) -> Completion:
        """A turn of the model; one that new weights cut is sampled again, from the same tokens."""
        rules = self._rules
        sampling: Sampling = {**rules.sampling, "n": 1, "max_tokens": room}
        if rules.seed is not None:
            sampling["seed"] = turn_seed(rules.seed, self._sample, turn)
        for _ in range(rules.limits.attempts):
            (completion,) = await rules.policy.generate(token_ids, return_router=rules.return_router, **sampling)
            if completion.finish_reason is FinishReason.ABORTED:
                continue
            if not completion.token_ids.size or completion.finish_reason is None:
                raise CorruptDataError("generation answered a turn without a token; expected one at least")
            return completion
        raise EpisodeFailedError(
            f"turn {turn} of an episode was aborted {rules.limits.attempts} times by new weights; raise "
            "environments.attempts, or set generation.update_policy to 'keep'",
            Reason.ABORTED,
        )

    def _calls_of(self, completion: Completion) -> tuple[ToolCall, ...]:
        if self._rules.parser is None:
            return ()
        said = completion.text
        if self._rules.parser.needs_special_tokens:
            said = self._rules.rendering.decode(completion.token_ids.tolist())
        calls = self._rules.parser.parse(said, self._calls, self._tools).tool_calls
        self._calls += len(calls)
        return calls

    async def _step(self, completion: Completion, calls: tuple[ToolCall, ...]) -> Step:
        finish_reason = completion.finish_reason or FinishReason.STOP
        action = Action(completion.text, finish_reason, calls)
        with self._faults("step"):
            answer = await self._ask("step", lambda: self._environment.step(action))
            return checked_step(answer, self._rules.limits.observation_tokens, self._rules.rendering.vocab_size)

    async def _observe(
        self, transcript: Transcript, observation: Observation, sampled: Sequence[int], calls: Sequence[str]
    ) -> None:
        """Appends what the model reads next."""
        most = self._rules.limits.observation_tokens
        with self._faults("an observation"):
            ids = await self._rules.rendering.observation(observation, sampled, self._messages, calls, self._tools)
            if len(ids) > most:
                raise InvalidInputError(
                    f"it is {len(ids)} tokens long; expected up to {most}: cut it, saying so in the text, or raise "
                    "environments.observation_tokens"
                )
        if isinstance(observation, MessagesObservation):
            self._messages += [as_dict(message) for message in observation.messages]
            text = "\n".join(message.content for message in observation.messages)
            transcript.add_given(ids, observation.messages[0].role, text)
        else:
            given = observation
            text = given.text if isinstance(given, TextObservation) else self._rules.rendering.decode(ids)
            self._messages.append({"role": str(observation.role), "content": text})
            transcript.add_given(ids, observation.role, text)

    async def _ask(self, method: str, call: Callable[[], Any]) -> Any:
        return await ask(self._name, method, call, self._rules.limits.turn_seconds)

    @contextmanager
    def _faults(self, method: str) -> Iterator[None]:
        """What is wrong with an answer of the environment is its fault: no bad input, and no reward."""
        try:
            yield
        except InvalidInputError as error:
            raise EpisodeFailedError(f"environment {self._name}: {method}: {error}") from error


def turn_seed(seed: int, sample: int, turn: int) -> int:
    """With which one turn is sampled. An episode's first is sampled as a response without an environment would be."""
    if turn == 0:
        return seed + sample
    return _hashed(seed, sample, turn)


def reset_seed(seed: int, prompt_id: str) -> int:
    """With which all episodes of a prompt begin."""
    return _hashed(seed, prompt_id)


def _hashed(*parts: int | str) -> int:
    """A number of 63 bits."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
