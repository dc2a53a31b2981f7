"""Plays the episodes of a prompt, and makes one group of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from routershift import wire
from routershift.client.requests import Sampling
from routershift.v1 import trajectory_pb2 as pb
from services.environments.base import Environment, MessagesObservation, Observation
from services.environments.gateway.agent import AgentEnvironment, AgentSettings
from services.environments.gateway.episodes import Episodes
from services.environments.gateway.offer import Offer
from services.environments.playing.episode import Episode, Played, Policy, Rules, reset_seed
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.playing.limits import EpisodeLimits
from services.environments.playing.rendering import Rendering, as_dict, messages_of
from services.environments.registry import Configured, find
from services.environments.tool_calls.base import Parser
from shared.errors import InvalidInputError
from shared.sampling import MAX_SAMPLES
from shared.user_module import raised

log = logging.getLogger(__name__)

T = TypeVar("T")


class Player:
    """Plays prompts with the policy that serves, many of them at once if asked so."""

    def __init__(
        self,
        policy: Policy,
        environments: Mapping[str, Configured],
        rendering: Rendering,
        limits: EpisodeLimits,
        *,
        max_model_len: int,
        max_tokens: int,
        seed: int = 0,
        parser: Parser | None = None,
        agents: Episodes | None = None,
    ) -> None:
        """
        Args:
            environments: by the names that prompts have for them.
            max_model_len: tokens that prompt and trajectory may have together.
            max_tokens: sampled in all turns of an episode together, where the prompt does not say: rollout.max_tokens.
            seed: of the run, from which the seeds of resets follow.
            parser: of tool calls; None where the model has no form of them.
            agents: the episodes of the gateway; None where it is not served.
        """
        self._policy = policy
        self._environments = environments
        self._rendering = rendering
        self._limits = limits
        self._max_model_len = max_model_len
        self._max_tokens = max_tokens
        self._seed = seed
        self._parser = parser
        self._agents = agents

    async def play(self, prompt: pb.Prompt, *, return_router: bool = True) -> pb.TrajectoryGroup:
        """Plays prompt.sampling.n episodes of prompt.environment from one task and one state.

        They end all, or the group fails: there is no half one. Every environment that was made is closed then, also
        where the call is cancelled. The group's prompt has the token ids that it was played with. Its trajectories have
        scores unless prompt.verifier names who is to judge them.

        Args:
            return_router: with the experts of each sampled token.

        Raises:
            NotFoundError: no environment of its name.
            InvalidInputError: the prompt cannot be played; names the field, its value and what is allowed.
            EpisodeFailedError: an episode failed, by its `reason`; another attempt may not.
            RouterShiftError: what the policy raised, such as UnavailableError.
        """
        configured = find(self._environments, prompt.environment)
        samples = prompt.sampling.n if prompt.sampling.HasField("n") else 1
        if not 1 <= samples <= MAX_SAMPLES:
            raise InvalidInputError(f"sampling.n is {samples}; allowed: 1 to {MAX_SAMPLES}")
        task = wire.decode_struct(prompt.reference)
        environments = [self._made(configured) for _ in range(samples)]
        rules = self._rules(prompt, environments[0], return_router)
        if isinstance(environments[0], AgentEnvironment):
            token_ids, played = await self._by_agents(prompt, task, rules, environments[0].settings, samples)
            return self._group(prompt, token_ids, played, environments[0])
        episodes = [Episode(configured.name, made, rules, i) for i, made in enumerate(environments)]
        async with _closing(episodes), self._deadline(configured.name):
            seed = reset_seed(self._seed, prompt.prompt_id)
            first = await _all(episode.begin(task, seed) for episode in episodes)
            token_ids, messages, observation = await self._begun(prompt, first, environments[0])
            played = await _all(episode.play(token_ids, messages, observation) for episode in episodes)
        return self._group(prompt, token_ids, played, environments[0])

    async def _by_agents(
        self, prompt: pb.Prompt, task: Mapping[str, Any], rules: Rules, settings: AgentSettings, samples: int
    ) -> tuple[list[int], list[Played]]:
        """Token ids that all episodes begin with, and the episodes as agents have played them."""
        if self._agents is None:
            raise InvalidInputError(
                f"environment {prompt.environment} is played by agents; set environments.gateway.enabled"
            )
        offer = Offer(
            environment=prompt.environment,
            prompt=prompt.text or self._rendering.decode(prompt.token_ids),
            messages=messages_of(prompt),
            task=task,
            sampling=rules.sampling,
            seed=rules.seed,
            max_tokens=rules.max_tokens,
            max_model_len=rules.max_model_len,
            return_router=rules.return_router,
            is_judged=not rules.keeps_rewards,
            claim_seconds=settings.claim_seconds,
        )
        return await self._agents.play(offer, samples)

    def _made(self, configured: Configured) -> Environment:
        try:
            return configured.make()
        except Exception as error:  # whatever the environment raises
            raise EpisodeFailedError(f"environment {configured.name} cannot be made: {raised(error)}") from error

    def _rules(self, prompt: pb.Prompt, environment: Environment, return_router: bool) -> Rules:
        name = prompt.environment
        if not environment.rewards and not prompt.verifier:
            raise InvalidInputError(
                f"verifier is empty, and environment {name} rewards no episodes; name a verifier that judges them"
            )
        if environment.tools and self._parser is None:
            raise InvalidInputError(
                f"environment {name} has tools, and the chat template of the model writes calls in no known form; set "
                "environments.tool_calls"
            )
        given = prompt.sampling
        max_tokens = given.max_tokens if given.HasField("max_tokens") else self._max_tokens
        if max_tokens < 1:
            raise InvalidInputError(f"sampling.max_tokens is {max_tokens}; allowed: 1 and more")
        return Rules(
            policy=self._policy,
            rendering=self._rendering,
            parser=self._parser if environment.tools else None,
            limits=self._limits,
            max_model_len=self._max_model_len,
            max_tokens=max_tokens,
            sampling=_sampling(given, environment.stop),
            seed=given.seed if given.HasField("seed") else None,
            return_router=return_router,
            keeps_rewards=not prompt.verifier,
        )

    async def _begun(
        self, prompt: pb.Prompt, observations: Sequence[Observation | None], environment: Environment
    ) -> tuple[list[int], list[dict[str, Any]], Observation | None]:
        """Token ids of the prompt, the messages it was made of, and what is read after it.

        Messages with which the environment begins belong to the conversation of the prompt: the template renders them
        together.
        """
        first = observations[0]
        if any(other != first for other in observations):
            raise EpisodeFailedError(
                f"environment {prompt.environment}: reset gave episodes of one task and seed different observations; "
                "draw what is random from the seed"
            )
        is_ids = bool(prompt.token_ids or (prompt.text and not prompt.messages))
        if not isinstance(first, MessagesObservation):
            token_ids = await self._rendering.prompt(prompt, environment.tools)
            return token_ids, [] if is_ids else messages_of(prompt), first
        if is_ids:
            raise InvalidInputError(
                f"prompt is {'token_ids' if prompt.token_ids else 'text'}, and environment {prompt.environment} begins "
                "with messages; give the prompt as messages"
            )
        messages = [*messages_of(prompt), *(as_dict(message) for message in first.messages)]
        return await self._rendering.conversation(messages, environment.tools), messages, None

    @asynccontextmanager
    async def _deadline(self, name: str) -> AsyncIterator[None]:
        seconds = self._limits.episode_seconds
        try:
            async with asyncio.timeout(seconds) as deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            raise EpisodeFailedError(
                f"environment {name}: an episode has not ended within environments.episode_seconds = {seconds:g}",
                Reason.EPISODE_TIMED_OUT,
            ) from None

    def _group(
        self, prompt: pb.Prompt, token_ids: Sequence[int], played: Sequence[Played], environment: Environment
    ) -> pb.TrajectoryGroup:
        group = pb.TrajectoryGroup(prompt=prompt)
        group.prompt.token_ids[:] = token_ids
        group.generated_at.GetCurrentTime()
        for sample, each in enumerate(played):
            name = pb.TrajectoryId(
                run_id=prompt.run_id, prompt_id=prompt.prompt_id, attempt=prompt.attempt, sample=sample
            )
            trajectory = wire.encode_trajectory(name, each.trajectory)
            if not prompt.verifier:
                score = pb.Score(
                    outcome=pb.OUTCOME_SCORED,
                    reward=each.reward,
                    parts=each.parts,
                    verifier=prompt.environment,
                    verifier_version=environment.version,
                    seconds=each.seconds,
                )
                trajectory.score.CopyFrom(score)
            group.trajectories.append(trajectory)
        if not prompt.verifier:
            group.scored_at.CopyFrom(group.generated_at)
        return group


def _sampling(params: pb.SamplingParams, stop: Sequence[str]) -> Sampling:
    """What all turns are sampled with; `stop` has the texts of the environment."""
    sampling = Sampling(stop=list(dict.fromkeys([*params.stop, *stop])), stop_token_ids=list(params.stop_token_ids))
    if params.HasField("temperature"):
        sampling["temperature"] = params.temperature
    if params.HasField("top_p"):
        sampling["top_p"] = params.top_p
    if params.HasField("top_k"):
        sampling["top_k"] = params.top_k
    if params.HasField("min_p"):
        sampling["min_p"] = params.min_p
    return sampling


@asynccontextmanager
async def _closing(episodes: Sequence[Episode]) -> AsyncIterator[None]:
    """Closes all of them, however the block ends; one that cannot be closed has failed."""
    try:
        yield
    finally:
        closed = await asyncio.gather(*(episode.close() for episode in episodes), return_exceptions=True)
        for error in closed:
            if isinstance(error, Exception):
                log.warning("%s", error)


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them return, in order. Where one raises, the others are cancelled, and that is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
