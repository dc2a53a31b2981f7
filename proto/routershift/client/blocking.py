"""Clients whose calls block, for scripts and notebooks."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, Unpack

import grpc

from routershift import wire
from routershift.client.channel import open_blocking_channel
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


class Client:
    """As `AsyncClient`."""

    def __init__(self, target: str, timeout: float = 60.0, access: Shown | None = None) -> None:
        """As `AsyncClient`."""
        access = access or Access.from_environment()
        self._bearer = Bearer(access)
        self._channel = open_blocking_channel(target, access)
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return self._bearer.metadata()

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout, metadata=self._metadata(), wait_for_ready=True)
        except grpc.RpcError as error:
            raise_typed(error, type(request).__name__.removesuffix("Request"))


class GenerationClient(Client):
    """Samples from the policy that serves now."""

    def __init__(self, target: str, timeout: float = 60.0, access: Shown | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = gen_grpc.GenerationServiceStub(self._channel)

    def generate(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        """n complete responses, in order of index; see `AsyncGenerationClient.generate`."""
        response = self._call(self._stub.Generate, generate_request(prompt, return_router, sampling))
        return [wire.decode_completion(c) for c in response.completions]

    def stream(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> Iterator[Completion]:
        """Pieces of the responses as they are sampled; see `AsyncGenerationClient.stream`."""
        request = gen.GenerateStreamRequest(request=generate_request(prompt, return_router, sampling))
        call = self._stub.GenerateStream(request, timeout=self._timeout, metadata=self._metadata(), wait_for_ready=True)
        seen: Counter[int] = Counter()
        try:
            for response in call:
                piece = wire.decode_completion(response.delta, seen[response.delta.index])
                seen[piece.index] += piece.token_ids.size
                yield piece
        except grpc.RpcError as error:
            raise_typed(error, "GenerateStream")
        finally:
            call.cancel()

    def status(self) -> gen.GenerationServiceGetStatusResponse:
        """What serves, and how busy it is."""
        response: gen.GenerationServiceGetStatusResponse = self._call(
            self._stub.GetStatus, gen.GenerationServiceGetStatusRequest()
        )
        return response


class RewardClient(Client):
    """Scores responses with a named verifier."""

    def __init__(self, target: str, timeout: float = 60.0, access: Shown | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = rew_grpc.RewardServiceStub(self._channel)

    def score(
        self, verifier: str, prompt: str, responses: Sequence[Response], reference: Mapping[str, Any]
    ) -> list[pb.Score]:
        """One Score a response, in order; see `AsyncRewardClient.score`."""
        answer = self._call(self._stub.Score, score_request(verifier, prompt, responses, reference))
        return list(answer.scores)

    def verifiers(self) -> list[rew.Verifier]:
        """Every verifier by its name, with the form of what it reads and gives."""
        answer = self._call(self._stub.ListVerifiers, rew.ListVerifiersRequest())
        return list(answer.verifiers)


class EnvironmentClient(Client):
    """Plays episodes with the policy that serves now, or step by step with another."""

    def __init__(self, target: str, timeout: float = 60.0, access: Shown | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = env_grpc.EnvironmentServiceStub(self._channel)

    def play(self, prompt: pb.Prompt, return_router: bool = False) -> pb.TrajectoryGroup:
        """A group of episodes, when all have ended; see `AsyncEnvironmentClient.play`."""
        response = self._call(self._stub.Play, env.PlayRequest(prompt=prompt, return_router=return_router))
        group: pb.TrajectoryGroup = response.group
        return group

    def reset(self, request: env.ResetRequest) -> env.ResetResponse:
        """Begins an episode; see `AsyncEnvironmentClient.reset`."""
        response: env.ResetResponse = self._call(self._stub.Reset, request)
        return response

    def step(self, request: env.StepRequest) -> env.StepResponse:
        """What the environment answers; see `AsyncEnvironmentClient.step`."""
        response: env.StepResponse = self._call(self._stub.Step, request)
        return response

    def close(self, episode_id: str) -> None:
        """Ends an episode, also one that is not there."""
        self._call(self._stub.Close, env.CloseRequest(episode_id=episode_id))

    def environments(self) -> list[env.Environment]:
        """What there is, with its tools."""
        response = self._call(self._stub.ListEnvironments, env.ListEnvironmentsRequest())
        return list(response.environments)

    def open_episode(self, request: env.OpenEpisodeRequest) -> env.AgentEpisode:
        """An episode of no group; see `AsyncEnvironmentClient.open_episode`."""
        response = self._call(self._stub.OpenEpisode, request)
        episode: env.AgentEpisode = response.episode
        return episode

    def claim_episode(self, environment: str = "", wait_seconds: float = 20.0) -> env.AgentEpisode | None:
        """An episode of a group, or None; see `AsyncEnvironmentClient.claim_episode`."""
        request = env.ClaimEpisodeRequest(environment=environment, wait_seconds=wait_seconds)
        response: env.ClaimEpisodeResponse = self._call(self._stub.ClaimEpisode, request)
        return response.episode if response.HasField("episode") else None

    def reward_turn(self, episode_id: str, turn: int, reward: float) -> None:
        """Rewards one turn of an agent's episode, which stays open; see `AsyncEnvironmentClient.reward_turn`."""
        self._call(self._stub.RewardTurn, env.RewardTurnRequest(episode_id=episode_id, turn=turn, reward=reward))

    def reward_episode(
        self,
        episode_id: str,
        reward: float | None = None,
        parts: Mapping[str, float] | None = None,
        turn_rewards: Mapping[int, float] | None = None,
    ) -> float | None:
        """Ends an agent's episode; gives its reward; see `AsyncEnvironmentClient.reward_episode`."""
        request = env.RewardEpisodeRequest(episode_id=episode_id, reward=reward, parts=parts, turn_rewards=turn_rewards)
        response: env.RewardEpisodeResponse = self._call(self._stub.RewardEpisode, request)
        return response.reward if response.HasField("reward") else None

    def close_episode(self, episode_id: str) -> None:
        """Ends an agent's episode without a reward; see `AsyncEnvironmentClient.close_episode`."""
        self._call(self._stub.CloseEpisode, env.CloseEpisodeRequest(episode_id=episode_id))

    def get_episode(self, episode_id: str) -> env.GetEpisodeResponse:
        """How far an agent's episode is; see `AsyncEnvironmentClient.get_episode`."""
        response: env.GetEpisodeResponse = self._call(
            self._stub.GetEpisode, env.GetEpisodeRequest(episode_id=episode_id)
        )
        return response
