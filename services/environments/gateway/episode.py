"""One episode that an agent plays: its requests become turns, which are recorded, until it is rewarded."""

import asyncio
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from routershift.client.requests import Sampling
from routershift.trajectory import Completion, Role
from services.environments.gateway import metrics
from services.environments.gateway.errors import ApiError, unsupported
from services.environments.gateway.inference import Turn, for_template, render, tools_of
from services.environments.gateway.model import Texts
from services.environments.gateway.recording import Asked, Recording, Request
from services.environments.gateway.schema import ChatRequest, CompletionRequest, Message
from services.environments.playing.episode import turn_seed
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.playing.limits import EpisodeLimits


class End(StrEnum):
    """How an episode ended, the label of the metrics."""

    REWARDED = "rewarded"
    CLOSED = "closed"  # by its agent, without a reward
    TIMED_OUT = "timed_out"
    UNCLAIMED = "unclaimed"
    GIVEN_UP = "given_up"  # another of its group failed, or the service stops


@dataclass(frozen=True, slots=True)
class Offer:
    """What all episodes of a group have in common."""

    environment: str
    prompt: str
    messages: Sequence[Mapping[str, Any]]
    task: Mapping[str, Any]
    sampling: Sampling  # of every turn, without n, seed and max_tokens
    seed: int | None
    max_tokens: int  # that the model samples in all turns of an episode together
    max_model_len: int
    return_router: bool
    is_judged: bool  # by a verifier, so that the agent gives no reward
    claim_seconds: float


class AgentEpisode:
    """One of them: makes turns of an agent's requests, and records them."""

    def __init__(self, offer: Offer, sample: int, limits: EpisodeLimits, texts: Texts) -> None:
        self.id = secrets.token_urlsafe(24)
        self.offer, self.sample, self.recording = offer, sample, Recording()
        self.ended: asyncio.Future[tuple[float, Mapping[str, float]]] = asyncio.get_running_loop().create_future()
        self.claimed = asyncio.Event()
        self.is_cut = False  # a turn was refused, as there was no room
        self._limits, self._texts = limits, texts
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

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a request is answered, the agent waits for us."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._touched = time.monotonic()

    async def played(self) -> tuple[float, Mapping[str, float]]:
        """Its reward and the parts of that, once it has ended.

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

    def reward(self, reward: float | None, parts: Mapping[str, float]) -> None:
        """Ends it. Raises ApiError."""
        if self.offer.is_judged and reward is not None:
            raise ApiError(
                f"reward is {reward:g}, and a verifier judges the episodes of this prompt; send null", param="reward"
            )
        if not self.offer.is_judged and reward is None:
            raise ApiError("reward is missing; set it to a finite number", param="reward")
        if not self.recording.turns:
            raise ApiError(
                "the episode has no turn yet, so there is nothing to reward; ask for one, or DELETE the episode",
                status=409,
                code="episode_without_turns",
            )
        self.ended.set_result((reward or 0.0, parts))

    def close(self) -> None:
        """Ends it without a reward: the group has failed."""
        error = EpisodeFailedError(
            f"environment {self.offer.environment}: an agent closed an episode without a reward",
            Reason.ENVIRONMENT_FAILED,
        )
        self.ended.set_exception(error)
        self.ended.exception()  # looked at, where nobody waits for it any more

    def _check(self, request: ChatRequest | CompletionRequest) -> None:
        """Raises ApiError for what an episode does not take: its tokens are sampled as the learner expects."""
        if request.n not in (None, 1):
            raise unsupported("n", request.n, "an episode has one continuation: send n = 1")
        for field in ("temperature", "top_p", "top_k", "min_p"):
            asked = getattr(request, field)
            neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}[field]
            ours = self.offer.sampling.get(field, neutral)
            if asked is not None and not math.isclose(max(0.0, asked), float(ours), rel_tol=1e-6):  # type: ignore[arg-type]
                raise unsupported(
                    field, asked, f"episodes are sampled with {ours:g}: leave it out, or change the table [rollout]"
                )
        if self.recording.turns >= self._limits.turns:
            self.is_cut = True
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
            self.is_cut = True
            raise ApiError(
                f"the episode has {len(ids)} tokens, {sampled} of them sampled; allowed: {offer.max_model_len}, and "
                f"rollout.max_tokens = {offer.max_tokens} sampled: end it with a reward",
                code="context_length_exceeded",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        sampling: Sampling = {**request.sampling(), **offer.sampling}
        sampling["n"] = 1
        sampling["max_tokens"] = min(room, request.limit) if request.limit is not None else room
        stops = [*offer.sampling.get("stop", ()), *request.stops]
        sampling["stop"] = list(dict.fromkeys(stops))
        if request.seed is None and offer.seed is not None:
            sampling["seed"] = turn_seed(offer.seed, self.sample, self.recording.turns)

        def record(completion: Completion, answer: Mapping[str, Any] | None) -> None:
            if self.ended.done() or not completion.token_ids.size:
                metrics.TURNS.labels("late").inc()
                return
            said = None if answer is None else Message.model_validate(answer, strict=False).for_template(0)
            self.recording.add(asked, completion, said)

        return Turn(ids, sampling, offer.return_router, record, request.stops)


def _role(message: Mapping[str, Any]) -> str:
    """In the words of segments."""
    return "system" if message["role"] == "developer" else str(message["role"])
