"""The gRPC methods of episodes that agents play: the same as the paths of the gateway."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from routershift import wire
from routershift.v1 import environment_pb2 as env
from routershift.v1 import trajectory_pb2 as pb
from services.environments.gateway.episode import AgentEpisode
from services.environments.gateway.episodes import MAX_WAIT_SECONDS, WAIT_SECONDS, Episodes
from services.environments.gateway.errors import ApiError, as_call
from services.environments.gateway.opening import Opening
from services.environments.gateway.records import told
from services.environments.playing.rendering import messages_of
from shared.errors import InvalidInputError, PreconditionError
from shared.rpc.server import begin


class Agents(Protocol):
    """The gateway, where it is served."""

    episodes: Episodes
    opening: Opening
    address: str


class AgentMethods:
    """Answers FAILED_PRECONDITION until `serve_agents`."""

    _agents: Agents | None = None

    def serve_agents(self, agents: Agents) -> None:
        self._agents = agents

    async def OpenEpisode(self, request: env.OpenEpisodeRequest, context: object) -> env.OpenEpisodeResponse:
        with _errors():
            agents = self._served()
            episode = await agents.opening.open(
                request.environment,
                request.text,
                messages_of(pb.Prompt(messages=request.messages)),
                wire.decode_struct(request.task),
                request.max_tokens if request.HasField("max_tokens") else None,
            )
            return env.OpenEpisodeResponse(episode=_told(agents, episode))

    async def ClaimEpisode(self, request: env.ClaimEpisodeRequest, context: object) -> env.ClaimEpisodeResponse:
        with _errors():
            agents = self._served()
            seconds = request.wait_seconds if request.HasField("wait_seconds") else WAIT_SECONDS
            if not 0 <= seconds <= MAX_WAIT_SECONDS:
                raise InvalidInputError(f"wait_seconds is {seconds:g}; allowed: 0 to {MAX_WAIT_SECONDS:g}")
            await begin(context)
            episode = await agents.episodes.claim(request.environment or None, seconds)
            return env.ClaimEpisodeResponse(episode=None if episode is None else _told(agents, episode))

    async def RewardTurn(self, request: env.RewardTurnRequest, context: object) -> env.RewardTurnResponse:
        with _errors():
            await begin(context)
            self._served().episodes.reward_turns(request.episode_id, {request.turn: request.reward})
            return env.RewardTurnResponse()

    async def RewardEpisode(self, request: env.RewardEpisodeRequest, context: object) -> env.RewardEpisodeResponse:
        with _errors():
            await begin(context)
            reward = request.reward if request.HasField("reward") else None
            earned = self._served().episodes.reward(
                request.episode_id, reward, dict(request.parts), dict(request.turn_rewards)
            )
            return env.RewardEpisodeResponse(reward=earned)

    async def CloseEpisode(self, request: env.CloseEpisodeRequest, context: object) -> env.CloseEpisodeResponse:
        with _errors():
            await begin(context)
            self._served().episodes.close(request.episode_id)
            return env.CloseEpisodeResponse()

    async def GetEpisode(self, request: env.GetEpisodeRequest, context: object) -> env.GetEpisodeResponse:
        with _errors():
            agents = self._served()
            record = agents.episodes.get(request.episode_id)
            record.episode.base_url = _base_url(agents, request.episode_id)
            return record

    def _served(self) -> Agents:
        if self._agents is None:
            raise PreconditionError(
                "the gateway is not served: set environments.gateway.enabled, and wait until generation serves"
            )
        return self._agents


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        raise as_call(error) from error


def _told(agents: Agents, episode: AgentEpisode) -> env.AgentEpisode:
    return told(episode, _base_url(agents, episode.id))


def _base_url(agents: Agents, identity: str) -> str:
    return f"{agents.address}/episodes/{identity}/v1"
