"""Clients whose calls are awaited, for many of them at once."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self, Unpack

import grpc

from routershift import wire
from routershift.client.channel import open_channel
from routershift.client.credentials import Access, Bearer, Shown
from routershift.client.requests import Prompt, Response, Sampling, generate_request, score_request
from routershift.client.status import raise_typed
from routershift.trajectory import Completion
from routershift.v1 import environment_pb2 as env
from routershift.v1 import environment_pb2_grpc as env_grpc
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import reward_pb2_grpc as rew_grpc
from routershift.v1 import trajectory_pb2 as pb


class AsyncClient:
    """Opens the channel with the block and closes it after. Every call has a deadline and typed errors.

    A token that the server does not know, or that is not for the method, raises `UnauthenticatedError` or
    `ForbiddenError`, both of them PreconditionErrors. The `status` of an error is that of the call.
    """

    def __init__(self, target: str, timeout: float = 60.0, access: Shown | None = None) -> None:
        """
        Args:
            target: host:port, or dns:///name:port for all replicas.
            timeout: seconds for each call, retries and the wait for a service that starts included.
            access: certificates and token; default: what the environment says, see `Access.from_environment`.

        Raises:
            NotFoundError, InvalidInputError: a file of it is missing or wrong, or a token would go in clear text over
                a network.
        """
        access = access or Access.from_environment()
        self._bearer = Bearer(access)
        self._channel = open_channel(target, access)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return self._bearer.metadata()

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout, metadata=self._metadata(), wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise_typed(error, type(request).__name__.removesuffix("Request"))


class AsyncGenerationClient(AsyncClient):
    """Samples from the policy that serves now."""

    def __init__(self, target: str, timeout: float = 60.0, access: Shown | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = gen_grpc.GenerationServiceStub(self._channel)

    async def generate(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        """n complete responses, in order of index.

        Args:
            prompt: text, token ids, or a conversation as [{"role": "user", "content": "..."}, ...].
            return_router: with the experts of each token, as full as the service's setting router_export says.
            sampling: fields of SamplingParams; those left out take the service's defaults.

        Raises:
            InvalidInputError: a parameter out of range, or a prompt too long; the message names it.
            PreconditionError: the service exports no routers, or its model has no chat template.
            OverloadedError, UnavailableError, DeadlineError: the service cannot answer now, retries included.
        """
        response = await self._call(self._stub.Generate, generate_request(prompt, return_router, sampling))
        return [wire.decode_completion(c) for c in response.completions]

    async def stream(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[Completion]:
        """Pieces of the responses as they are sampled, those of n samples interleaved; see `generate`.

        A sample's last piece has its finish_reason and the router trace of the whole sample. Leaving the loop cancels
        the request.
        """
        request = gen.GenerateStreamRequest(request=generate_request(prompt, return_router, sampling))
        call = self._stub.GenerateStream(request, timeout=self._timeout, metadata=self._metadata(), wait_for_ready=True)
        seen: Counter[int] = Counter()
        try:
            async for response in call:
                piece = wire.decode_completion(response.delta, seen[response.delta.index])
                seen[piece.index] += piece.token_ids.size
                yield piece
        except grpc.aio.AioRpcError as error:
            raise_typed(error, "GenerateStream")
        finally:
            call.cancel()

    async def status(self) -> gen.GenerationServiceGetStatusResponse:
        """What serves, and how busy it is."""
        response: gen.GenerationServiceGetStatusResponse = await self._call(
            self._stub.GetStatus, gen.GenerationServiceGetStatusRequest()
        )
        return response


class AsyncRewardClient(AsyncClient):
    """Scores responses with a named verifier."""

    def __init__(self, target: str, timeout: float = 60.0, access: Shown | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = rew_grpc.RewardServiceStub(self._channel)

    async def score(
        self, verifier: str, prompt: str, responses: Sequence[Response], reference: Mapping[str, Any]
    ) -> list[pb.Score]:
        """One Score a response, in order. Look at `outcome` before `reward`.

        Args:
            responses: texts; completions, whose special tokens go along; or trajectories or messages of conversations
                in which others spoke too, such as a tool.
            reference: JSON values, in the form of the verifier's `reference_schema`.

        Raises:
            NotFoundError: no verifier of that name.
            InvalidInputError: a reference that JSON does not have, or a response of another form.
        """
        answer = await self._call(self._stub.Score, score_request(verifier, prompt, responses, reference))
        return list(answer.scores)

    async def verifiers(self) -> list[rew.Verifier]:
        """Every verifier by its name, with the form of what it reads and gives."""
        answer = await self._call(self._stub.ListVerifiers, rew.ListVerifiersRequest())
        return list(answer.verifiers)


class AsyncEnvironmentClient(AsyncClient):
    """Plays episodes with the policy that serves now, or step by step with another."""

    def __init__(self, target: str, timeout: float = 60.0, access: Shown | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = env_grpc.EnvironmentServiceStub(self._channel)

    async def play(self, prompt: pb.Prompt, return_router: bool = False) -> pb.TrajectoryGroup:
        """A group of episodes, when all have ended. It is scored, unless the prompt names a verifier.

        Args:
            prompt: `environment`, `reference` (the task), `sampling`, and the prompt itself.
            return_router: with the experts of each sampled token.

        Raises:
            NotFoundError, InvalidInputError: no such environment, or a prompt that cannot be played.
            UnavailableError, OverloadedError, DeadlineError: it cannot be played now, or an environment failed.
        """
        response = await self._call(self._stub.Play, env.PlayRequest(prompt=prompt, return_router=return_router))
        group: pb.TrajectoryGroup = response.group
        return group

    async def reset(self, request: env.ResetRequest) -> env.ResetResponse:
        """Begins an episode.

        Raises:
            NotFoundError, InvalidInputError: no such environment, or a task that is none.
            OverloadedError: too many are open.
        """
        response: env.ResetResponse = await self._call(self._stub.Reset, request)
        return response

    async def step(self, request: env.StepRequest) -> env.StepResponse:
        """What the environment answers. It may be asked for again: a turn is done once.

        Raises:
            NotFoundError: no such episode is open.
            PreconditionError: another turn is due, or none.
            UnavailableError, DeadlineError: the environment failed, which ends the episode.
        """
        response: env.StepResponse = await self._call(self._stub.Step, request)
        return response

    async def close(self, episode_id: str) -> None:
        """Ends an episode, also one that is not there."""
        await self._call(self._stub.Close, env.CloseRequest(episode_id=episode_id))

    async def environments(self) -> list[env.Environment]:
        """What there is, with its tools."""
        response = await self._call(self._stub.ListEnvironments, env.ListEnvironmentsRequest())
        return list(response.environments)

    async def open_episode(self, request: env.OpenEpisodeRequest) -> env.AgentEpisode:
        """An episode of no group, to be played at its `base_url` with any client of the OpenAI API: never trained on.

        Raises:
            InvalidInputError, NotFoundError: a prompt that no turn could follow, or no such environment.
            OverloadedError: too many are open.
            PreconditionError: the gateway is not served.
        """
        response = await self._call(self._stub.OpenEpisode, request)
        episode: env.AgentEpisode = response.episode
        return episode

    async def claim_episode(self, environment: str = "", wait_seconds: float = 20.0) -> env.AgentEpisode | None:
        """An episode of a group that waits for an agent; None where none has come in time.

        Args:
            environment: default: any.
            wait_seconds: up to 600, and below the client's `timeout`.
        """
        request = env.ClaimEpisodeRequest(environment=environment, wait_seconds=wait_seconds)
        response: env.ClaimEpisodeResponse = await self._call(self._stub.ClaimEpisode, request)
        return response.episode if response.HasField("episode") else None

    async def reward_turn(self, episode_id: str, turn: int, reward: float) -> None:
        """Rewards one turn of an agent's episode, which stays open.

        Raises:
            InvalidInputError: no such turn, or no finite reward.
            PreconditionError: the turn has its reward, or the episode has ended.
        """
        await self._call(self._stub.RewardTurn, env.RewardTurnRequest(episode_id=episode_id, turn=turn, reward=reward))

    async def reward_episode(
        self,
        episode_id: str,
        reward: float | None = None,
        parts: Mapping[str, float] | None = None,
        turn_rewards: Mapping[int, float] | None = None,
    ) -> float | None:
        """Ends an agent's episode; gives its reward.

        Args:
            reward: default: the sum of the rewards of its turns. None where a verifier judges it.
            parts: named contributions to it.
            turn_rewards: of turns that have none yet, by their numbers.

        Raises:
            InvalidInputError: a reward that is missing or not finite, or no such turn.
            PreconditionError: it has ended, or has no turn.
        """
        request = env.RewardEpisodeRequest(episode_id=episode_id, reward=reward, parts=parts, turn_rewards=turn_rewards)
        response: env.RewardEpisodeResponse = await self._call(self._stub.RewardEpisode, request)
        return response.reward if response.HasField("reward") else None

    async def close_episode(self, episode_id: str) -> None:
        """Ends an agent's episode without a reward. Raises NotFoundError, PreconditionError where it has ended."""
        await self._call(self._stub.CloseEpisode, env.CloseEpisodeRequest(episode_id=episode_id))

    async def get_episode(self, episode_id: str) -> env.GetEpisodeResponse:
        """How far an agent's episode is; with its tokens, where it was opened and has ended.

        Raises:
            NotFoundError: no such episode.
            PreconditionError: its record is not kept any more.
        """
        response: env.GetEpisodeResponse = await self._call(
            self._stub.GetEpisode, env.GetEpisodeRequest(episode_id=episode_id)
        )
        return response
