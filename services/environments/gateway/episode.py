"""One episode that an agent plays: its requests become turns, which are recorded, until it is rewarded."""

import asyncio
import json
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from routershift.client.requests import Sampling
from routershift.trajectory import Completion, FinishReason, Role
from services.environments.gateway import metrics
from services.environments.gateway.conversation import Message
from services.environments.gateway.errors import ApiError, unsupported
from services.environments.gateway.model import Texts
from services.environments.gateway.offer import Given, Offer
from services.environments.gateway.recording import Asked, Recording, Request
from services.environments.gateway.schema import ChatRequest, CompletionRequest
from services.environments.gateway.session import Turn, for_template, render, tools_of
from services.environments.playing.answers import LONGEST_NAME, MOST_PARTS
from services.environments.playing.episode import turn_seed
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.playing.limits import EpisodeLimits

ResultT = TypeVar("ResultT")

_TOKEN_BYTES = 48  # that a token takes while its episode is open: id, log-prob, and its place among all until there


class AgentEpisode:
    """One of them: makes turns of an agent's requests, and records them."""

    def __init__(
        self,
        offer: Offer,
        sample: int,
        limits: EpisodeLimits,
        texts: Texts,
        admit: Callable[[], None] | None = None,
    ) -> None:
        """Args: sample: index in the group; admit: raises ApiError where there is no room for another turn."""
        self.id = secrets.token_urlsafe(24)
        self.offer, self.sample, self.recording = offer, sample, Recording()
        self.ended: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        self.claimed = asyncio.Event()
        self.agent: str | None = None  # that claimed it, of those that the service started
        self.cut: FinishReason | None = None  # length, once a turn was refused as there was no room
        self.size = 0  # bytes that its turns take, about
        self._limits, self._texts, self._admit = limits, texts, admit
        self._busy = 0
        self._touched = time.monotonic()

    async def chat(self, request: ChatRequest) -> Turn:
        """A turn. Raises ApiError, InvalidInputError."""
        self._check(request)
        asked = await self._asked(request)
        return self._turn(request, asked)

    async def text(self, request: CompletionRequest, prompt: str | Sequence[int]) -> Turn:
        """A turn. Raises ApiError, InvalidInputError."""
        self._check(request)
        if len(request.prompts) > 1:
            raise unsupported("prompt", f"{len(request.prompts)} prompts", "an episode goes on from one: send one")
        ids = await self._texts.encode(prompt, "prompt") if isinstance(prompt, str) else list(prompt)
        parent = self.recording.followed_by_ids(ids)
        given = tuple(ids[len(parent.token_ids) :] if parent else ids)
        text = self._texts.decode(given)
        return self._turn(request, Asked(parent, given, Role.USER, text, Request()))

    async def during(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """What a part of an answer's work gives; the agent waits for us meanwhile.

        Raises:
            ApiError: the episode has ended first, so the work was cancelled: nothing of it would be recorded.
        """
        self._busy += 1
        working = asyncio.create_task(work)
        try:
            either: set[asyncio.Future[Any]] = {working, self.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ApiError(
                    "the episode has ended before this answer", status=410, kind="not_found_error", code="episode_ended"
                )
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            self._busy -= 1
            self._touched = time.monotonic()

    async def played(self) -> Given:
        """What it was worth, once it has ended.

        Raises:
            EpisodeFailedError: it was closed, or its agent was late.
        """
        offer, limits = self.offer, self._limits
        waiting = asyncio.create_task(self.claimed.wait())
        try:
            either: set[asyncio.Future[Any]] = {waiting, self.ended}
            await asyncio.wait(either, timeout=offer.claim_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self.claimed.is_set() and not self.ended.done():
            raise EpisodeFailedError(
                f"environment {offer.environment}: no agent has claimed an episode within claim_seconds = "
                f"{offer.claim_seconds:g}; start one, or more of them",
                Reason.EPISODE_TIMED_OUT,
            )
        deadline = time.monotonic() + limits.episode_seconds
        self._touched = time.monotonic()
        while not self.ended.done():
            now = time.monotonic()
            late = self._touched + limits.turn_seconds if not self._busy else math.inf
            if now >= deadline:
                raise EpisodeFailedError(
                    f"environment {offer.environment}: an agent has not ended its episode within "
                    f"environments.episode_seconds = {limits.episode_seconds:g}",
                    Reason.EPISODE_TIMED_OUT,
                )
            if now >= late:
                raise EpisodeFailedError(
                    f"environment {offer.environment}: an agent has asked for nothing within "
                    f"environments.turn_seconds = {limits.turn_seconds:g} of the last answer",
                    Reason.ENVIRONMENT_TIMED_OUT,
                )
            # What is waited for may begin or end meanwhile; a turn may have to wait for its own deadline.
            await asyncio.wait({self.ended}, timeout=min(deadline, late, now + limits.turn_seconds) - now)
        return self.ended.result()

    def reward_turns(self, rewards: Mapping[int, float]) -> None:
        """Args: rewards: finite, by the numbers of the turns. Raises ApiError, and then none of them counts."""
        self._check_turns(rewards)
        self.recording.reward_turns(rewards)

    def reward(self, reward: float | None, parts: Mapping[str, float], turns: Mapping[int, float]) -> Given:
        """Ends it; gives what it was worth.

        Args:
            reward: of the whole episode; default: the sum of the rewards of its turns.
            parts: of it, by name.
            turns: rewards of turns that have none yet, by their numbers.

        Raises:
            ApiError: it cannot be ended so, and is open as before.
        """
        if self.offer.is_judged and reward is not None:
            raise ApiError(
                f"reward is {reward:g}, and a verifier judges the episodes of this prompt; send null", param="reward"
            )
        if not self.recording.turns:
            raise ApiError(
                "the episode has no turn yet, so there is nothing to reward; ask for one, or DELETE the episode",
                status=409,
                code="episode_without_turns",
            )
        _check_parts(parts)
        self._check_turns(turns)
        if reward is None:
            reward = self.recording.earned(turns)
        if reward is None and self.offer.is_trained and not self.offer.is_judged:
            raise ApiError("reward is missing; set it to a finite number", param="reward")
        if reward is not None and not math.isfinite(reward):
            raise ApiError(f"reward is {reward}, or what the turns add up to; expected a finite number", param="reward")
        self.recording.reward_turns(turns)
        given = Given(reward, parts)
        self.ended.set_result(given)
        return given

    def fail(self, how: str, reason: Reason) -> None:
        """Ends it without a reward: the group has failed. `how` goes on from "an agent"."""
        self.ended.set_exception(EpisodeFailedError(f"environment {self.offer.environment}: an agent {how}", reason))
        self.ended.exception()  # looked at, where nobody waits for it any more

    def _check_turns(self, rewards: Mapping[int, float]) -> None:
        """Raises ApiError for turns that cannot be rewarded."""
        for turn, reward in rewards.items():
            if self.offer.is_judged:
                raise ApiError(
                    f"turn {turn} is given {reward:g}, and a verifier judges the episodes of this prompt; leave it out",
                    param="turn",
                )
            if not math.isfinite(reward):
                raise ApiError(f"the reward of turn {turn} is {reward}; expected a finite number", param="reward")
            if not 0 <= turn < self.recording.turns:
                raise ApiError(
                    f"turn is {turn}, and the episode has {self.recording.turns} turns that were answered; the first "
                    "is 0",
                    param="turn",
                )
            if self.recording.has_reward(turn):
                raise ApiError(
                    f"turn {turn} has its reward; it counts once", status=409, code="turn_rewarded", param="turn"
                )

    def _check(self, request: ChatRequest | CompletionRequest) -> None:
        """Raises ApiError for what an episode does not take: what is trained on is sampled as the learner expects."""
        if self._admit is not None:
            self._admit()
        if request.n not in (None, 1):
            raise unsupported("n", request.n, "an episode has one continuation: send n = 1")
        for field in ("temperature", "top_p", "top_k", "min_p"):
            asked = getattr(request, field)
            neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}[field]
            ours = asked if self.offer.sampling is None else self.offer.sampling.get(field, neutral)
            if asked is not None and not math.isclose(max(0.0, asked), float(ours), rel_tol=1e-6):  # type: ignore[arg-type]
                raise unsupported(
                    field, asked, f"episodes are sampled with {ours:g}: leave it out, or change the table [rollout]"
                )
        if self.recording.turns >= self._limits.turns:
            self.cut = FinishReason.LENGTH
            raise ApiError(
                f"the episode has {self.recording.turns} turns; allowed: environments.turns = {self._limits.turns}: "
                "end it with a reward",
                code="turn_limit_exceeded",
            )

    async def _asked(self, request: ChatRequest) -> Asked:
        """The turn of a conversation, joined to the one that it goes on from."""
        messages, tools = for_template(request), tools_of(request)
        whole = Request(tuple(messages), tuple(tools or ()), request.chat_template_kwargs)
        parent = self.recording.followed_by(whole)
        if parent is None:
            text = await render(self._texts, request)
            ids = await self._texts.encode(text, "messages", add_special_tokens=False)
            return Asked(None, tuple(ids), Role(_role(messages[-1])), text, whole)
        known, added = messages[: len(parent.messages)], messages[len(parent.messages) :]
        given = await asyncio.to_thread(self._joined, parent.completion, known, added, tools, whole.variables)
        text = "\n".join(message["content"] for message in added)
        return Asked(parent, tuple(given), Role(_role(added[0])), text, whole)

    def _joined(
        self,
        completion: Completion,
        known: Sequence[Mapping[str, Any]],
        added: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        variables: Mapping[str, Any] | None,
    ) -> list[int]:
        """Token ids of what was added."""
        calls = [call["function"]["name"] for call in known[-1].get("tool_calls", ())]
        return self._texts.chat.following(known, completion.token_ids.tolist(), added, calls, tools, variables)

    def _turn(self, request: ChatRequest | CompletionRequest, asked: Asked) -> Turn:
        offer, ids = self.offer, asked.token_ids
        sampled = asked.parent.sampled_tokens if asked.parent else 0
        room = min(offer.max_tokens - sampled, offer.max_model_len - len(ids))
        if room < 1:
            self.cut = FinishReason.LENGTH
            raise ApiError(
                f"the episode has {len(ids)} tokens, {sampled} of them sampled; allowed: {offer.max_model_len}, and "
                f"rollout.max_tokens = {offer.max_tokens} sampled: end it with a reward",
                code="context_length_exceeded",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        fixed: Sampling = offer.sampling or {}
        sampling: Sampling = {**request.sampling(), **fixed}
        sampling["n"] = 1
        sampling["max_tokens"] = min(room, request.limit) if request.limit is not None else room
        stops = [*fixed.get("stop", ()), *request.stops]
        sampling["stop"] = list(dict.fromkeys(stops))
        if request.seed is None and offer.seed is not None:
            sampling["seed"] = turn_seed(offer.seed, self.sample, self.recording.turns)

        def record(completion: Completion, answer: Mapping[str, Any] | None) -> None:
            if self.ended.done() or not completion.token_ids.size:
                metrics.TURNS.labels("late").inc()
                return
            said = None if answer is None else Message.model_validate(answer, strict=False).for_template(0)
            self.recording.add(asked, completion, said)
            if not offer.is_trained:
                self.size += _size(asked, completion, said)

        return Turn(ids, sampling, offer.return_router, record, request.stops, waits=offer.is_trained)


def _check_parts(parts: Mapping[str, float]) -> None:
    """Raises ApiError for too many of them, names that are too long, or values that are no numbers."""
    if len(parts) > MOST_PARTS or any(not 0 < len(name) <= LONGEST_NAME for name in parts):
        raise ApiError(
            f"parts has {len(parts)} entries; allowed: {MOST_PARTS}, with names of 1 to {LONGEST_NAME} characters",
            param="parts",
        )
    for name, value in parts.items():
        if not math.isfinite(value):
            raise ApiError(f"parts.{name} is {value}; expected a finite number", param="parts")


def _role(message: Mapping[str, Any]) -> str:
    """In the words of segments."""
    return "system" if message["role"] == "developer" else str(message["role"])


def _size(asked: Asked, completion: Completion, said: Mapping[str, Any] | None) -> int:
    """Bytes that a turn takes, about: all tokens until its end, and its messages."""
    request = asked.request
    characters = len(json.dumps([request.messages, request.tools, request.variables, said]))
    return _TOKEN_BYTES * (len(asked.token_ids) + completion.token_ids.size) + characters
